"""Krum and Multi-Krum: the gradients that lie closest to others, against a few that may be anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import whole
from .base import Rule
from .operator import GramOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Krum(Rule):
    """The mean of the gradients with the smallest scores ("Machine Learning with Adversaries", section 4).

    The score of gradient i is the sum of |g_i - g_j|^2 over the m - n_byzantine - 2 gradients closest to it
    (Blanchard et al. 2017); of equal scores the first counts. TorchJD adds up the distances themselves, not
    their squares, and may select others. A zero gradient is a gradient like any other here.

    Args:
        n_byzantine: how many gradients may be arbitrary, f; at least f + 3 gradients are needed. The paper's
            guarantee needs more than 2 f + 2.
        n_selected: how many to average: 1 is Krum, more is Multi-Krum.

    Raises:
        TypeError, ValueError: for other numbers; and where there are too few gradients.
    """

    def __init__(self, n_byzantine: int = 0, n_selected: int = 1) -> None:
        super().__init__()
        if whole("n_byzantine", n_byzantine) < 0:
            raise ValueError(f"n_byzantine: got {n_byzantine}, want at least 0")
        if whole("n_selected", n_selected) < 1:
            raise ValueError(f"n_selected: got {n_selected}, want at least 1")
        self.n_byzantine, self.n_selected = int(n_byzantine), int(n_selected)

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m, least = norms.shape[-1], max(self.n_byzantine + 3, self.n_selected)
        if m < least:
            raise ValueError(f"grads: got {m} gradients, want at least {least} for {self!r}")
        size = norms.amax(-1, keepdim=True)
        scaled = torch.where(size > 0, norms / size, 0)  # squares of 1e-30 are gone, of the scaled ones are 0
        rows, columns = scaled.unsqueeze(-1), scaled.unsqueeze(-2)
        apart = (2 - (cosines + cosines.mT)).clamp(min=0)  # the same bits both ways: scores may be equal
        squared = (rows - columns).square() + rows * columns * apart
        squared.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        closest = squared.sort(-1).values[..., : m - self.n_byzantine - 2]
        chosen = closest.sum(-1).argsort(dim=-1, stable=True)[..., : self.n_selected]
        picked = torch.zeros_like(norms).scatter_(-1, chosen, 1 / self.n_selected)
        return picked * norms

    @staticmethod
    def oracle(rows: Tensor, n_byzantine: int = 0, n_selected: int = 1) -> Tensor:
        """The paper's formula on the full rows, in float64."""
        full = rows.double()
        scores = []
        for i, row in enumerate(full):
            apart = sorted(float((row - other).square().sum()) for j, other in enumerate(full) if j != i)
            scores.append(sum(apart[: len(full) - n_byzantine - 2]))
        order = sorted(range(len(full)), key=lambda i: (scores[i], i))
        return full[order[:n_selected]].mean(0)


class KrumOperator(GramOperator):
    """Krum, or Multi-Krum (Blanchard et al. 2017); see :class:`Krum`.

    Args:
        n_byzantine, n_selected: as in :class:`Krum`.
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Raises:
        TypeError, ValueError: as for :class:`Krum`.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.1, 0.0], [-9.0, 9.0]])
        >>> fastconfig.KrumOperator(n_byzantine=1, n_selected=2).calculate_gradient(grads)
        tensor([1.0000, 0.0500])
    """

    def __init__(
        self, n_byzantine: int = 0, n_selected: int = 1, process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__(Krum(n_byzantine, n_selected), process_group)
