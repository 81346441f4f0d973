"""The class names and parameters of ``torchjd.aggregation``: exact at any scale, and served by every backend.

    >>> from fastconfig.aggregation import UPGrad, UPGradWeighting
    >>> UPGrad()(jacobian)  # (m, N): the update
    >>> UPGradWeighting()(jacobian @ jacobian.T)  # (m, m): its weights
    >>> fastconfig.backward(losses, network, UPGrad())  # losses to .grad, without a Jacobian

An answer differs from TorchJD's only where that is not the paper's; docs/methods.md has the list. Arguments
that are settings of TorchJD's solvers are accepted and have no effect: the answers are exact. ``TrimmedMean``
and ``GradDrop`` look at every coordinate by itself, not at G; they are not here.
"""

from __future__ import annotations

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
