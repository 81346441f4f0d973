"""Conflict-free gradient updates: ConFIG, PCGrad, PPCGrad and IMTL-G from one read of the gradients.

Public names are resolved on first use, so that ``import fastconfig`` costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import aggregation, distributed, monitor, ops, reference
    from .acceleration import accelerate
    from .backends import BackendUnavailable, explain, last_backend, use_backend
    from .grad_operator import (
        ConFIG_update,
        ConFIG_update_double,
        ConFIGOperator,
        GradientOperator,
        GramOperator,
        IMTLGOperator,
        PCGradOperator,
        PPCGradOperator,
    )
    from .length_model import (
        LengthModel,
        ProjectionLength,
        TrackArithmeticAverage,
        TrackGeometricAverage,
        TrackHarmonicAverage,
        TrackMaximum,
        TrackMinimum,
        TrackSpecific,
    )
    from .loss_recorder import LatestLossRecorder, LossRecorder, MomentumLossRecorder
    from .methods import (
        AlignedMTLOperator,
        CAGradOperator,
        ConstantOperator,
        DualProjOperator,
        EveryOperator,
        FairGradOperator,
        GradVacOperator,
        KrumOperator,
        LogLossesOperator,
        MeanOperator,
        MGDAOperator,
        NashMTLOperator,
        PCDOperator,
        RandomOperator,
        Rule,
        SumOperator,
        UPGradOperator,
    )
    from .momentum_operator import MomentumOperator, PseudoMomentumOperator, SeparateMomentumOperator
    from .training import backward, mtl_backward, weights
    from .utils import apply_gradient_vector, get_gradient_vector
    from .weight_model import EqualWeight, WeightModel

__version__ = "0.2.0"

_HOMES = {
    "acceleration": ("accelerate",),
    "backends": ("BackendUnavailable", "explain", "last_backend", "use_backend"),
    "grad_operator": (
        "ConFIG_update",
        "ConFIG_update_double",
        "ConFIGOperator",
        "GradientOperator",
        "GramOperator",
        "IMTLGOperator",
        "PCGradOperator",
        "PPCGradOperator",
    ),
    "length_model": (
        "LengthModel",
        "ProjectionLength",
        "TrackArithmeticAverage",
        "TrackGeometricAverage",
        "TrackHarmonicAverage",
        "TrackMaximum",
        "TrackMinimum",
        "TrackSpecific",
    ),
    "loss_recorder": ("LatestLossRecorder", "LossRecorder", "MomentumLossRecorder"),
    "methods": (
        "AlignedMTLOperator",
        "CAGradOperator",
        "ConstantOperator",
        "DualProjOperator",
        "EveryOperator",
        "FairGradOperator",
        "GradVacOperator",
        "KrumOperator",
        "LogLossesOperator",
        "MGDAOperator",
        "MeanOperator",
        "NashMTLOperator",
        "PCDOperator",
        "RandomOperator",
        "Rule",
        "SumOperator",
        "UPGradOperator",
    ),
    "momentum_operator": ("MomentumOperator", "PseudoMomentumOperator", "SeparateMomentumOperator"),
    "training": ("backward", "mtl_backward", "weights"),
    "utils": ("apply_gradient_vector", "get_gradient_vector"),
    "weight_model": ("EqualWeight", "WeightModel"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = (  # that dir() names; every other module of the package resolves, too
    "aggregation",
    "backends",
    "distributed",
    "grad_operator",
    "length_model",
    "loss_recorder",
    "methods",
    "momentum_operator",
    "monitor",
    "ops",
    "pcgrad",
    "reference",
    "utils",
    "weight_model",
)

__all__ = [
    "AlignedMTLOperator",
    "BackendUnavailable",
    "CAGradOperator",
    "ConFIGOperator",
    "ConFIG_update",
    "ConFIG_update_double",
    "ConstantOperator",
    "DualProjOperator",
    "EqualWeight",
    "EveryOperator",
    "FairGradOperator",
    "GradVacOperator",
    "GradientOperator",
    "GramOperator",
    "IMTLGOperator",
    "KrumOperator",
    "LatestLossRecorder",
    "LengthModel",
    "LogLossesOperator",
    "LossRecorder",
    "MGDAOperator",
    "MeanOperator",
    "MomentumLossRecorder",
    "MomentumOperator",
    "NashMTLOperator",
    "PCDOperator",
    "PCGradOperator",
    "PPCGradOperator",
    "ProjectionLength",
    "PseudoMomentumOperator",
    "RandomOperator",
    "Rule",
    "SeparateMomentumOperator",
    "SumOperator",
    "TrackArithmeticAverage",
    "TrackGeometricAverage",
    "TrackHarmonicAverage",
    "TrackMaximum",
    "TrackMinimum",
    "TrackSpecific",
    "UPGradOperator",
    "WeightModel",
    "accelerate",
    "aggregation",
    "apply_gradient_vector",
    "backward",
    "distributed",
    "explain",
    "get_gradient_vector",
    "last_backend",
    "methods",
    "monitor",
    "mtl_backward",
    "ops",
    "reference",
    "use_backend",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOME or _is_operator(name):
        value = getattr(importlib.import_module(f".{_HOME.get(name, 'methods')}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f".{name}", __name__) is not None:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_operator(name: str) -> bool:
    """Whether a method has an operator of this name; type checkers know those that are listed above."""
    kind = name.removesuffix("Operator")
    return kind != name and kind in importlib.import_module(".methods", __name__).METHODS.values()


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
