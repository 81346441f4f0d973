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
    gradient is at least its squared length. The update is zero where gradients are Pareto stationary: where
    any is zero, and where a convex combination of unit gradients is, up to rounding (a squared length of at
    most rcond / 8). The program is solved exactly; TorchJD stops after 100 steps of Frank and Wolfe, 2 to 3 %
    off with 8 gradients or more.

    No cosine of the update with a gradient is below -16 eps times sum_i c_i |g_i| / |update| (of more than 8
    gradients -(m + 8) eps), which is what rounding of G and of the coefficients may cost.

    In unit gradients: y = c d is the solution of min |sum_i y_i u_i|^2 + (1 - r . y)^2, y >= 0, up to its
    length, with r_i the least norm over d_i. rcond is 1e-13 whatever the gradients' dtype.
    """

    native = "mgda"
    rank_dtype = torch.float64

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        least = norms.amin(-1, keepdim=True)
        r = torch.where(least > 0, least / norms, 0)
        both = torch.stack([torch.ones_like(r), r], -2)  # that of unit gradients tells stationary ones
        cosines = cosines.unsqueeze(-3)
        matrix = cosines + both.unsqueeze(-1) * both.unsqueeze(-2)
        y = nonnegative(matrix, -both, torch.ones_like(both[..., :1]), rcond)
        moving = certain(cosines, y, rcond).all(-2)
        y = y[..., 1, :]
        return torch.where(moving, y * (least / (r * y).sum(-1, keepdim=True)), 0)

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
        for last in (torch.ones_like(r), r):  # the shortest of unit gradients tells stationary ones
            target = torch.cat([torch.zeros_like(full[0]), r.new_ones(1)])
            y = reference.nonnegative_least_squares(torch.cat([units, last[:, None]], 1), target)
            if not reference.certain(y, y @ units, rcond):
                return torch.zeros_like(full[0])
        return (y @ units) * (norms.min() / (r @ y))


class MGDAOperator(GramOperator):
    """MGDA (Désidéri 2012; Sener and Koltun 2018): the shortest convex combination of the gradients.

    Zero where that is what they have: where they are Pareto stationary, or any is zero.

    Args:
        rcond, process_group: as in :func:`ConFIG_update`; rcond is 1e-13 by default.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.MGDAOperator().calculate_gradient(grads)
        tensor([0.3077, 0.4615])
    """

    _rule = MGDA()

    def __init__(self, *, rcond: float | None = None, process_group: ProcessGroup | None = None) -> None:
        super().__init__(MGDA(rcond=check_rcond(rcond)), process_group)
