"""IMTL-G: equal projections on all unit gradients (Liu et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .base import Rule
from .solvers import pinv_apply


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
