"""PCGrad: each gradient loses what conflicts with the others, one after another (arXiv:2001.06782)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .base import Rule


class PCGrad(Rule):
    """Algorithm 1 of Yu et al. 2020.

    Args:
        order: (m, m) or (B, m, m) int64: row i lists the rows in the order in which gradient i is projected
            against them (i itself is skipped); None is 0..m-1 for every i.
        mean: average the projected gradients instead of adding them up.
    """

    native = "pcgrad"
    oracle = staticmethod(reference.pcgrad)

    def __init__(self, order: Tensor | None = None, mean: bool = False) -> None:
        super().__init__()
        self.order, self.mean = order, mean

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        # b[i]: gradient i in units of the unit gradients, while it is projected; all i side by side
        m = norms.shape[-1]
        b = torch.diag_embed(norms)
        rows = torch.arange(m, device=norms.device)
        order = rows.expand(m, m) if self.order is None else self.order
        for step in range(m):
            j = order[..., step].expand(b.shape[:-1])
            against = torch.take_along_dim(cosines, j.unsqueeze(-1), dim=-2)  # row j(i) of C for each i
            along = (b * against).sum(-1).clamp(max=0)
            along = torch.where(j == rows, 0, along)
            b.scatter_add_(-1, j.unsqueeze(-1), -along.unsqueeze(-1))
        return b.mean(-2) if self.mean else b.sum(-2)
