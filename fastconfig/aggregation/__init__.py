"""The class names and parameters of ``torchjd.aggregation``: exact at any scale, and served by every backend.

    >>> from fastconfig.aggregation import UPGrad, UPGradWeighting
    >>> UPGrad()(jacobian)  # (m, N): the update
    >>> UPGradWeighting()(jacobian @ jacobian.T)  # (m, m): its weights
    >>> fastconfig.backward(losses, network, UPGrad())  # losses to .grad, without a Jacobian

Answers differ from TorchJD's only where TorchJD's is not the paper's: docs/from/torchjd.md lists these.
Arguments that configure TorchJD's solvers are accepted and ignored, because the answers are exact.
``TrimmedMean`` and ``GradDrop`` are not here: they look at every coordinate, not at the Gram matrix.

A method that TorchJD does not have is here by its rule's name, too, with the parameters of its operator.
"""

from __future__ import annotations

from typing import Any

from ..methods import METHODS
from .base import Aggregator, GramianWeightedAggregator, WeightedAggregator, Weighting, jac_to_grad
from .simple import (
    IMTLG,
    PCD,
    ConFIG,
    ConFIGWeighting,
    Constant,
    ConstantWeighting,
    GradVac,
    GradVacWeighting,
    IMTLGWeighting,
    Krum,
    KrumWeighting,
    Mean,
    MeanWeighting,
    PCDWeighting,
    PCGrad,
    PCGradWeighting,
    Random,
    RandomWeighting,
    Sum,
    SumWeighting,
)
from .solved import (
    MGDA,
    AlignedMTL,
    AlignedMTLWeighting,
    CAGrad,
    CAGradWeighting,
    DualProj,
    DualProjWeighting,
    FairGrad,
    FairGradWeighting,
    MGDAWeighting,
    NashMTL,
    NashMTLWeighting,
    UPGrad,
    UPGradWeighting,
)

__all__ = [
    "IMTLG",
    "MGDA",
    "PCD",
    "Aggregator",
    "AlignedMTL",
    "AlignedMTLWeighting",
    "CAGrad",
    "CAGradWeighting",
    "ConFIG",
    "ConFIGWeighting",
    "Constant",
    "ConstantWeighting",
    "DualProj",
    "DualProjWeighting",
    "FairGrad",
    "FairGradWeighting",
    "GradVac",
    "GradVacWeighting",
    "GramianWeightedAggregator",
    "IMTLGWeighting",
    "Krum",
    "KrumWeighting",
    "MGDAWeighting",
    "Mean",
    "MeanWeighting",
    "NashMTL",
    "NashMTLWeighting",
    "PCDWeighting",
    "PCGrad",
    "PCGradWeighting",
    "Random",
    "RandomWeighting",
    "Sum",
    "SumWeighting",
    "UPGrad",
    "UPGradWeighting",
    "WeightedAggregator",
    "Weighting",
    "jac_to_grad",
]


def __getattr__(name: str) -> Any:
    kind = name.removesuffix("Weighting")
    if kind not in METHODS.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .made import made

    value = made(kind)[kind != name]
    globals()[name] = value
    return value
