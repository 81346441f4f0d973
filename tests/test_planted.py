"""The list of planted faults fits the sources: plant.py in ``planted`` runs it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from planted import ALL, Fault

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def test_there_are_many_and_no_two_alike() -> None:
    assert len(ALL) >= 60
    assert max(Counter(fault.name for fault in ALL).values()) == 1
    assert max(Counter((fault.file, fault.old, fault.new) for fault in ALL).values()) == 1


@pytest.mark.parametrize("fault", ALL, ids=[fault.name for fault in ALL])
def test_each_can_be_planted(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert fault.new != fault.old
    assert fault.tests
    for test in fault.tests:
        name, *inside = test.partition("[")[0].split("::")
        found = (TESTS / name).read_text()
        assert all(f"def {part}" in found or f"class {part}" in found for part in inside)
