"""Aggregators with weights by a formula, a projection order or a selection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import methods
from ..methods.preference import PreferenceOperator
from .base import (
    GramianWeightedAggregator,
    StatefulAggregator,
    StatefulWeighting,
    WeightedAggregator,
    Weighting,
)


class _Counting(Weighting):
    """A weighting that only counts the rows, so that it takes a Jacobian (m, N), too."""

    def forward(self, matrix: Tensor, /, *, dtype: torch.dtype | None = None) -> Tensor:
        """The weights of so many rows, in the dtype of ``matrix``, (m, N)."""
        return super().forward(torch.eye(matrix.shape[-2], dtype=matrix.dtype, device=matrix.device))


class MeanWeighting(_Counting):
    """1/m each."""

    _operator = methods.MeanOperator

    def __init__(self) -> None:
        super().__init__()


class Mean(WeightedAggregator):
    """The mean of the gradients."""

    def __init__(self) -> None:
        super().__init__(MeanWeighting())


class SumWeighting(_Counting):
    """1 each."""

    _operator = methods.SumOperator

    def __init__(self) -> None:
        super().__init__()


class Sum(WeightedAggregator):
    """The sum of the gradients."""

    def __init__(self) -> None:
        super().__init__(SumWeighting())


class ConstantWeighting(_Counting):
    """Always the same weights.

    Args:
        weights: (m,).
    """

    _operator = methods.ConstantOperator

    def __init__(self, weights: Any) -> None:
        super().__init__(weights=weights)


class Constant(WeightedAggregator):
    """A weighted sum of the gradients.

    Args:
        weights: (m,).
    """

    def __init__(self, weights: Any) -> None:
        super().__init__(ConstantWeighting(weights))


class RandomWeighting(_Counting):
    """Positive random weights that add up to one.

    Args:
        generator: source of the random numbers, on the CPU; torch's default generator by default.
    """

    _operator = methods.RandomOperator

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator=generator)


class Random(WeightedAggregator):
    """RLW: random weights that add up to one; see :class:`fastconfig.methods.Random`.

    Args:
        generator: source of the random numbers, on the CPU; torch's default generator by default.
    """

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        super().__init__(RandomWeighting(generator=generator))


class KrumWeighting(Weighting):
    """The weights of :class:`Krum`; its parameters."""

    _operator = methods.KrumOperator

    def __init__(self, n_byzantine: int, n_selected: int = 1) -> None:
        super().__init__(n_byzantine=n_byzantine, n_selected=n_selected)


class Krum(GramianWeightedAggregator):
    """Krum and Multi-Krum; see :class:`fastconfig.methods.Krum`. Its scores are the paper's.

    Args:
        n_byzantine: how many gradients may be arbitrary.
        n_selected: how many to average.
    """

    def __init__(self, n_byzantine: int, n_selected: int = 1) -> None:
        super().__init__(KrumWeighting(n_byzantine, n_selected))

    def __str__(self) -> str:
        return f"Krum{self.n_byzantine}-{self.n_selected}"


def _shuffled(**settings: Any) -> methods.PCGradOperator:
    return methods.PCGradOperator(shuffle=True, **settings)


class PCGradWeighting(Weighting):
    """The weights of :class:`PCGrad`; its parameters."""

    _operator = staticmethod(_shuffled)

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator=generator)


class PCGrad(GramianWeightedAggregator):
    """PCGrad in random order; see :class:`fastconfig.PCGradOperator`.

    Args:
        generator: source of the order, on the CPU; torch's default generator by default.
    """

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        super().__init__(PCGradWeighting(generator=generator))


class GradVacWeighting(StatefulWeighting):
    """The weights of :class:`GradVac`; its parameters."""

    _operator = methods.GradVacOperator
    _ignored = ("eps",)

    def __init__(
        self, beta: float = 0.5, eps: float = 1e-8, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(beta=beta, eps=eps, generator=generator)


class GradVac(StatefulAggregator):
    """GradVac; see :class:`fastconfig.methods.GradVac`.

    Args:
        beta: weight of a new cosine in its target.
        eps: no effect: no denominator needs it.
        generator: source of the order, on the CPU; torch's default generator by default.
    """

    def __init__(
        self, beta: float = 0.5, eps: float = 1e-8, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(GradVacWeighting(beta, eps, generator=generator))


class PCDWeighting(StatefulWeighting):
    """The weights of :class:`PCD`; its parameters."""

    _operator = methods.PCDOperator

    def __init__(self, tau: Any = 0.02, beta: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(tau=tau, beta=beta, eps=eps)


class PCD(StatefulAggregator):
    """Priority-constrained descent; see :class:`fastconfig.methods.PCD`.

    Args:
        tau: share of progress of each gradient but the first, 0 to 1; one for all, or (m - 1,).
        beta: constant of the moving average of the squared norms.
        eps: added to it.
    """

    def __init__(self, tau: Any = 0.02, beta: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(PCDWeighting(tau, beta, eps))


class IMTLGWeighting(Weighting):
    """The weights of :class:`IMTLG`."""

    _operator = methods.IMTLGOperator

    def __init__(self) -> None:
        super().__init__()


class IMTLG(GramianWeightedAggregator):
    """IMTL-G; see :class:`fastconfig.IMTLGOperator`."""

    def __init__(self) -> None:
        super().__init__(IMTLGWeighting())


class _WeightedConFIG(PreferenceOperator):
    _kind = methods.ConFIG


class ConFIGWeighting(Weighting):
    """The weights of :class:`ConFIG`; its parameters."""

    _operator = _WeightedConFIG

    def __init__(self, pref_vector: Any = None) -> None:
        super().__init__(pref_vector=pref_vector)


class ConFIG(GramianWeightedAggregator):
    """ConFIG; see :func:`fastconfig.ConFIG_update`.

    Args:
        pref_vector: (m,) direction weights, not negative; ones by default.
    """

    def __init__(self, pref_vector: Any = None) -> None:
        super().__init__(ConFIGWeighting(pref_vector))
