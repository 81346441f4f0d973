"""MGDA: the shortest convex combination of the gradients (Désidéri 2012; arXiv:1810.04650)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..checks import check_rcond
from ..numbers import cutoff
from .base import Rule
from .operator import GramOperator
from .solvers import certain, nonnegative

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MGDA(Rule):
    """c >= 0 of sum one with sum_i c_i g_i of least length.

    Désidéri 2012, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization"; equation 3 of
    Sener and Koltun 2018, "Multi-Task Learning as Multi-Objective Optimization". Its product with every
    gradient is at least its squared length. Where it is zero up to rounding the gradients are Pareto
    stationary and the update is zero: where any gradient is zero, and where the squared length is at most
    rcond times the square of the summed lengths of its parts. The program is solved exactly; TorchJD stops
    after 100 steps of Frank and Wolfe, 2 to 3 % off with 8 gradients or more.

    In unit gradients: y = c d is the solution of min |sum_i y_i u_i|^2 + (1 - r . y)^2, y >= 0, up to its
    length, with r_i the least norm over d_i. rcond is 1e-13 whatever the gradients' dtype.
    """

    def cutoff(self, dtype: torch.dtype) -> float:
        return super().cutoff(torch.float64)

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        least = norms.amin(-1, keepdim=True)
        r = torch.where(least > 0, least / norms, 0)
        y = nonnegative(cosines + r.unsqueeze(-1) * r.unsqueeze(-2), -r, torch.ones_like(least), rcond)
        return torch.where(certain(cosines, y, rcond), y * (least / (r * y).sum(-1, keepdim=True)), 0)

    @staticmethod
    def oracle(rows: Tensor, *, rcond: float | None = None) -> Tensor:
        """By least squares on the rows, with one more element that is 1 / |g_i|.

        Args:
            rows: (m, N) gradients.
            rcond: cut-off on squared lengths.

        Returns:
            (N,) float64.
        """
        if not torch.isfinite(rows).all():
            return reference._all_nan(rows)
        full, norms = reference._float64_rows(rows)
        if not norms.all():
            return torch.zeros_like(full[0])
        rcond = cutoff(torch.float64) if rcond is None else rcond
        units, r = full / norms[:, None], norms.min() / norms
        target = torch.cat([torch.zeros_like(full[0]), r.new_ones(1)])
        y = reference.nonnegative_least_squares(torch.cat([units, r[:, None]], 1), target, rcond)
        v = y @ units
        resolved = v.square().sum() > rcond * y.sum() ** 2
        return v * (norms.min() / (r @ y)) if resolved else torch.zeros_like(v)


class MGDAOperator(GramOperator):
    """MGDA (Désidéri 2012; Sener and Koltun 2018): the shortest convex combination of the gradients.

    Zero where that is what they have: where they are Pareto stationary, or any is zero.

    Args:
        rcond, process_group: as in :func:`ConFIG_update`; rcond is 1e-13 by default.
    """

    _rule = MGDA()

    def __init__(self, *, rcond: float | None = None, process_group: ProcessGroup | None = None) -> None:
        super().__init__(MGDA(rcond=check_rcond(rcond)), process_group)
