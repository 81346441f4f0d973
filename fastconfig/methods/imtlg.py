"""IMTL-G: equal projections on all unit gradients (Liu et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..checks import check_rcond
from .base import Rule
from .operator import GramOperator
from .solvers import pinv_apply

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class IMTLG(Rule):
    """Coefficients that sum to one ("Towards Impartial Multi-task Learning", section 3.1)."""

    native = "imtlg"
    oracle = staticmethod(reference.imtlg)

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        alive = norms > 0
        inverse = torch.where(alive, 1 / norms, 0)
        x = pinv_apply(cosines, alive.to(norms.dtype), rcond)
        v = x * inverse
        total = v.sum(-1, keepdim=True)
        resolved = v.shape[-1] * torch.finfo(v.dtype).eps * v.abs().sum(-1, keepdim=True)
        return torch.where(total.abs() > resolved, x / total, 0)


class IMTLGOperator(GramOperator):
    """IMTL-G (Liu et al. 2021, "Towards Impartial Multi-task Learning", section 3.1).

    The combination whose coefficients sum to one and whose projections on all unit gradients are equal; the
    minimum-norm one if gradients depend on each other, zero if there is none (opposed gradients).

    Args:
        rcond, process_group: as in :func:`ConFIG_update`.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.IMTLGOperator().calculate_gradient(grads)
        tensor([0.2918, 0.4721])
    """

    _rule = IMTLG()

    def __init__(self, *, rcond: float | None = None, process_group: ProcessGroup | None = None) -> None:
        super().__init__(IMTLG(rcond=check_rcond(rcond)), process_group)
