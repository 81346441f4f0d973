"""Products of parameters of which `make test` runs every pair of values, and `make test-all` the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest

#: repeats with another value what a quicker test does; `make test-all` runs it
slow = pytest.mark.slow


def cases(*parameters: Sequence[Any], together: int = 2) -> list[Any]:
    """The product of the parameters, for ``pytest.mark.parametrize``; what adds nothing is marked slow.

    Args:
        parameters: the values of each.
        together: combinations of the values of so many parameters are run; with 1, each value once.
    """
    rows = list(product(*map(range, map(len, parameters))))
    chosen = covering(rows, together)
    made = []
    for row in rows:
        values = [given[k] for given, k in zip(parameters, row, strict=True)]
        made.append(pytest.param(*values, marks=() if row in chosen else slow))
    return made


def covering(rows: Sequence[tuple[int, ...]], together: int) -> set[tuple[int, ...]]:
    """Some of the rows: each combination of ``together`` columns' values in them is in one of these."""
    parts = {row: set(combinations(enumerate(row), together)) for row in rows}
    missing = set().union(*parts.values())
    chosen: set[tuple[int, ...]] = set()
    while missing:
        best = max(rows, key=lambda row: len(parts[row] & missing))
        chosen.add(best)
        missing -= parts[best]
    return chosen


def some(values: Sequence[Any], quick: Sequence[Any]) -> list[Any]:
    """Values of one parameter for ``pytest.mark.parametrize``, slow but for the quick ones."""
    return [pytest.param(value, marks=() if value in quick else slow) for value in values]
