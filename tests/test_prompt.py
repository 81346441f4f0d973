"""What a user sees at the prompt: names, ``dir()``, and what objects print as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import python

import fastconfig
from fastconfig.methods import RULES


def test_modules_resolve_without_an_import_of_their_own() -> None:
    code = "import fastconfig; print(fastconfig.pcgrad.PCGrad.__name__, fastconfig.utils.__name__)"
    run = python(code)
    assert run.stdout.split() == ["PCGrad", "fastconfig.utils"], run.stderr
    with pytest.raises(AttributeError, match="has no attribute 'nothing_of_this_name'"):
        _ = fastconfig.nothing_of_this_name


def test_dir_names_what_users_use() -> None:
    names = [name for name in dir(fastconfig) if not name.startswith("__")]
    assert set(fastconfig.__all__) <= set(names)
    assert not {"annotations", "importlib", "Any", "TYPE_CHECKING"} & set(names)
    assert all(hasattr(fastconfig, name) for name in names)


def test_objects_print_as_the_call_that_makes_them() -> None:
    length = fastconfig.TrackSpecific(1)
    cases = {
        "ConFIGOperator()": fastconfig.ConFIGOperator(),
        "ConFIGOperator(length_model=TrackSpecific(1))": fastconfig.ConFIGOperator(length_model=length),
        "UPGradOperator(pref_vector=[1.0, 2.0])": fastconfig.UPGradOperator([1.0, 2.0]),
        "CAGradOperator(c=0.3)": fastconfig.CAGradOperator(0.3),
        "PCDOperator()": fastconfig.PCDOperator(),
        "EqualWeight()": fastconfig.EqualWeight(),
        "LatestLossRecorder(3)": fastconfig.LatestLossRecorder(3),
        "ConstantOperator(<tensor (9,) on cpu>)": fastconfig.ConstantOperator(torch.ones(9)),
    }
    for text, shown in cases.items():
        assert repr(shown) == text
    operators = [value for name in fastconfig.__all__ if isinstance(value := getattr(fastconfig, name), type)]
    for kind in [*operators, *RULES.values()]:
        try:
            shown = kind()
        except (TypeError, ValueError):
            continue  # has arguments that it needs
        assert " object at 0x" not in repr(shown), kind


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[1]
    if not (root / "CITATION.cff").exists():
        pytest.skip("the tests lie outside of the checkout")
    version = fastconfig.__version__
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}] - " in (root / "CHANGELOG.md").read_text(encoding="utf-8")
