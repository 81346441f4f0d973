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

_EPS = torch.finfo(torch.float64).eps


class Krum(Rule):
    """The mean of the gradients with the smallest scores ("Machine Learning with Adversaries", section 4).

    The score of gradient i is the sum of |g_i - g_j|^2 over the m - n_byzantine - 2 gradients closest to it
    (Blanchard et al. 2017). Of equal scores the first counts, as in the paper; scores that differ by less
    than what rounding of G may make of them are equal. TorchJD adds up the distances themselves, not their
    squares, and may select others. A zero gradient is a gradient like any other here.

    Args:
        n_byzantine: how many gradients may be arbitrary, f; at least f + 3 gradients are needed. The paper's
            guarantee needs more than 2 f + 2.
        n_selected: how many to average: 1 is Krum, more is Multi-Krum.

    Raises:
        TypeError, ValueError: for other numbers; and where there are too few gradients.
    """

    native = "krum"
    iterates = False

    def __init__(self, n_byzantine: int = 0, n_selected: int = 1) -> None:
        super().__init__()
        if whole("n_byzantine", n_byzantine) < 0:
            raise ValueError(f"n_byzantine: got {n_byzantine}, want at least 0")
        if whole("n_selected", n_selected) < 1:
            raise ValueError(f"n_selected: got {n_selected}, want at least 1")
        self.n_byzantine, self.n_selected = int(n_byzantine), int(n_selected)
        self.parameters = (self.n_byzantine, self.n_selected)

    def for_rows(self, m: int, device: torch.device) -> Rule:
        least = max(self.n_byzantine + 3, self.n_selected)
        if m < least:
            raise ValueError(f"grads: got {m} gradients, want at least {least} for {self!r}")
        return self

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m = norms.shape[-1]
        self.for_rows(m, norms.device)
        size, closest = norms.amax(-1, keepdim=True), m - self.n_byzantine - 2
        scaled = torch.where(size > 0, norms / size, 0)  # squares of 1e-30 are gone, of the scaled ones are 0
        rows, columns = scaled.unsqueeze(-1), scaled.unsqueeze(-2)
        angle = (2 - (cosines + cosines.mT)).clamp(min=0)  # the same bits both ways
        apart = (rows - columns).square() + rows * columns * angle
        apart.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
        scores = apart.sort(-1).values[..., :closest].sum(-1)
        rounding = 8 * _EPS * closest * (scaled.square() + scores)
        least, most = scores - rounding, scores + rounding
        picked = torch.zeros_like(norms, dtype=torch.bool)
        for _ in range(self.n_selected):
            bound = torch.where(picked, torch.inf, most).amin(-1, keepdim=True)
            first = (~picked & (least <= bound)).int().argmax(-1, keepdim=True)
            picked = picked.scatter(-1, first, True)
        return torch.where(picked, norms / self.n_selected, 0)

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
