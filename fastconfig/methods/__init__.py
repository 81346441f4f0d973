"""The methods, one a file: a rule, its oracle and its operator; :data:`RULES` has the rules by name.

A file of this folder with a rule, its ``oracle`` and the rule's operator, ``class KrumOperator`` beside
``class Krum``, is a method: nothing else has to name it. Names are resolved on first use: backends, which
operators stand on, take the base of all rules from here.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aligned import AlignedMTL, AlignedMTLOperator
    from .base import LENGTHS, ByFunction, Rule, as_rule, native_coefficients
    from .cagrad import CAGrad, CAGradOperator
    from .config import ConFIG, tracked
    from .constant import Constant, ConstantOperator
    from .dualproj import DualProj, DualProjOperator
    from .every import Every, EveryOperator
    from .fairgrad import FairGrad, FairGradOperator
    from .gradvac import GradVac, GradVacOperator
    from .imtlg import IMTLG, IMTLGOperator
    from .krum import Krum, KrumOperator
    from .loglosses import LogLosses, LogLossesOperator
    from .making import REDUCTIONS, make_rule
    from .mean import Mean, MeanOperator
    from .mgda import MGDA, MGDAOperator
    from .nash import NashMTL, NashMTLOperator
    from .operator import GradientOperator, GramOperator
    from .pcd import PCD, PCDOperator
    from .pcgrad import PCGrad, PCGradOperator
    from .ppcgrad import PPCGrad, PPCGradOperator
    from .random import Random, RandomOperator
    from .solvers import pinv_apply
    from .sum import Sum, SumOperator
    from .upgrad import UPGrad, UPGradOperator

    RULES: dict[str, type[Rule]]

METHODS = {  # a method's name, also that of its file, and its rule, in the order of tables; others are found
    "config": "ConFIG",
    "pcgrad": "PCGrad",
    "ppcgrad": "PPCGrad",
    "imtlg": "IMTLG",
    "upgrad": "UPGrad",
    "dualproj": "DualProj",
    "mgda": "MGDA",
    "cagrad": "CAGrad",
    "nash": "NashMTL",
    "fairgrad": "FairGrad",
    "aligned": "AlignedMTL",
    "mean": "Mean",
    "sum": "Sum",
    "constant": "Constant",
    "random": "Random",
    "gradvac": "GradVac",
    "krum": "Krum",
    "pcd": "PCD",
}


def _found() -> dict[str, str]:
    """The methods in the other files of this folder, by their text: imports would take torch's seconds."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in METHODS or path.stem.startswith("_"):
            continue
        text = path.read_text(encoding="utf-8")
        if "def oracle(" not in text:
            continue
        for kind in re.findall(r"^class (\w+)Operator\(", text, re.MULTILINE):
            if f"\nclass {kind}(" in text:
                found[path.stem] = kind
    return found


METHODS |= _found()  # the bench, the demo, aggregation, the generic tests and the table in the docs follow

__all__ = [
    "IMTLG",
    "LENGTHS",
    "METHODS",
    "MGDA",
    "PCD",
    "REDUCTIONS",
    "RULES",
    "AlignedMTL",
    "AlignedMTLOperator",
    "ByFunction",
    "CAGrad",
    "CAGradOperator",
    "ConFIG",
    "Constant",
    "ConstantOperator",
    "DualProj",
    "DualProjOperator",
    "Every",
    "EveryOperator",
    "FairGrad",
    "FairGradOperator",
    "GradVac",
    "GradVacOperator",
    "GradientOperator",
    "GramOperator",
    "IMTLGOperator",
    "Krum",
    "KrumOperator",
    "LogLosses",
    "LogLossesOperator",
    "MGDAOperator",
    "Mean",
    "MeanOperator",
    "NashMTL",
    "NashMTLOperator",
    "PCDOperator",
    "PCGrad",
    "PCGradOperator",
    "PPCGrad",
    "PPCGradOperator",
    "Random",
    "RandomOperator",
    "Rule",
    "Sum",
    "SumOperator",
    "UPGrad",
    "UPGradOperator",
    "as_rule",
    "make_rule",
    "native_coefficients",
    "pinv_apply",
    "tracked",
]

_HOME = {
    "GradientOperator": "operator",
    "GramOperator": "operator",
    "REDUCTIONS": "making",
    "make_rule": "making",
    "Every": "every",
    "EveryOperator": "every",
    "LogLosses": "loglosses",
    "LogLossesOperator": "loglosses",
    "pinv_apply": "solvers",
    "tracked": "config",
    **dict.fromkeys(("LENGTHS", "ByFunction", "Rule", "as_rule", "native_coefficients"), "base"),
    **{kind: name for name, kind in METHODS.items()},
    **{f"{kind}Operator": name for name, kind in METHODS.items() if name != "config"},
}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "RULES":
        value = {method: __getattr__(kind) for method, kind in METHODS.items()}
    elif name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
