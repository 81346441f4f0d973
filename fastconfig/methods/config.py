"""ConFIG: equal cosines with all gradients, or in the ratio of the weights (arXiv:2408.11104)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .base import LENGTHS, Rule
from .solvers import pinv_apply


class ConFIG(Rule):
    """x = pinv(C) w, scaled by the length model (Liu, Chu and Thuerey 2024, equations 2 and 3).

    Args:
        weights: (m,) or (B, m) float64 direction weights; None is all ones.
        length: one of LENGTHS.
        track_id: row that length "specific" tracks, 0..m-1.
    """

    native = "config"
    oracle = staticmethod(reference.config)

    def __init__(
        self,
        weights: Tensor | None = None,
        length: str = "projection",
        track_id: int = 0,
        *,
        rcond: float | None = None,
    ) -> None:
        super().__init__(rcond=rcond)
        self.weights, self.length, self.track_id = weights, length, track_id

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        alive = (norms > 0).to(norms.dtype)
        w = alive if self.weights is None else self.weights * alive
        x = pinv_apply(cosines, w, rcond)
        if self.length == "none":
            return x
        projections = (cosines @ x.unsqueeze(-1)).squeeze(-1)  # unit gradients on the direction
        squared = (x * projections).sum(-1, keepdim=True)  # |direction|^2
        if self.length == "projection":
            total = (norms * projections).sum(-1, keepdim=True)
        else:
            total = tracked(norms, self.length, self.track_id) * projections.sum(-1, keepdim=True)
        return torch.where(squared > 0, x * (total / squared), 0)


def tracked(norms: Tensor, length: str, track_id: int = 0) -> Tensor:
    """The length that the Track* models scale every gradient to, over the non-zero gradients.

    Args:
        norms: (..., m).

    Returns:
        (..., 1).
    """
    if length == "specific":
        return norms[..., track_id, None]
    alive = norms > 0
    count = alive.sum(-1, keepdim=True)
    match length:
        case "minimum":
            value = torch.where(alive, norms, torch.inf).amin(-1, keepdim=True)
        case "maximum":
            value = norms.amax(-1, keepdim=True)
        case "harmonic":
            value = count / torch.where(alive, 1 / norms, 0).sum(-1, keepdim=True)
        case "arithmetic":
            value = norms.sum(-1, keepdim=True) / count
        case "geometric":
            value = (torch.where(alive, norms.log(), 0).sum(-1, keepdim=True) / count).exp()
        case _:
            raise ValueError(f"length: got {length!r}, want one of {', '.join(map(repr, LENGTHS))}")
    return torch.where(count > 0, value, 0)
