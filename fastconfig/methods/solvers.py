"""Small linear problems that methods share, in plain torch float64, batched."""

from __future__ import annotations

import torch
from torch import Tensor


def pinv_apply(cosines: Tensor, w: Tensor, rcond: float) -> Tensor:
    """x = pinv(C) w, the minimum-norm solution, by pivoted Cholesky.

    C = L L^T with L (m, r) cut at the numerical rank r. At full rank C x = w is solved directly, and on a
    CPU without pivots where the rank is beyond doubt; below, pinv(C) = L (L^T L)^-2 L^T. Weights that the
    range of C does not support give zero.

    Args:
        cosines: (..., m, m) float64, unit diagonal.
        w: (..., m) float64.
        rcond: cut-off on the eigenvalues of C relative to the largest.
    """
    w = w.expand(cosines.shape[:-1])
    column = w.unsqueeze(-1)
    if cosines.device.type == "cpu":  # elsewhere the look at the rank would wait for the device
        factor, broken = torch.linalg.cholesky_ex(cosines)
        determinant = factor.diagonal(dim1=-2, dim2=-1).prod(-1).square()
        # every Schur diagonal is > 2 rcond: eigenvalues that add up to m have a product < e times the least
        if not broken.any() and bool((determinant > 6 * rcond).all()):
            return torch.cholesky_solve(column, factor).squeeze(-1)
    lower, order, rank = _pivoted_cholesky(cosines, 2 * rcond)  # on Schur diagonals: twice
    m = w.shape[-1]
    used = torch.arange(m, device=w.device) < rank.unsqueeze(-1)

    ordered = torch.take_along_dim(lower, order.unsqueeze(-1), dim=-2)  # lower triangular
    padded = ordered + torch.diag_embed((~used).to(w.dtype))
    solved = torch.cholesky_solve(torch.take_along_dim(column, order.unsqueeze(-1), dim=-2), padded)
    direct = torch.zeros_like(column).scatter_(-2, order.unsqueeze(-1), solved)

    inner = lower.mT @ lower + torch.diag_embed((~used).to(w.dtype))
    factor = torch.linalg.cholesky_ex(inner)[0]
    projected = lower.mT @ column
    y = torch.cholesky_solve(projected, factor)
    supported = (projected * y).sum((-2, -1)) > (rcond * rcond) * w.square().sum(-1)
    minimal = lower @ torch.cholesky_solve(y, factor)
    minimal = torch.where(supported[..., None, None], minimal, 0)

    return torch.where((rank == m)[..., None, None], direct, minimal).squeeze(-1)


def _pivoted_cholesky(cosines: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """L (..., m, m) in the rows' own order with columns beyond the rank zero, pivots, rank (...)."""
    m = cosines.shape[-1]
    lower = torch.zeros_like(cosines)
    schur = cosines.diagonal(dim1=-2, dim2=-1).clone()
    pivots = []
    rank = torch.zeros(schur.shape[:-1], dtype=torch.int64, device=schur.device)
    for k in range(m):
        best, pivot = schur.max(-1, keepdim=True)
        pivots.append(pivot)
        taken = best > tolerance
        rank += taken.squeeze(-1)
        at = pivot.unsqueeze(-1)
        column = torch.take_along_dim(cosines, at, dim=-1).squeeze(-1)
        column = column - (lower @ torch.take_along_dim(lower, at, dim=-2).mT).squeeze(-1)
        column = torch.where(schur == -torch.inf, 0, column / best.sqrt())  # pivots taken before
        column.scatter_(-1, pivot, best.sqrt())
        column = torch.where(taken, column, 0)
        lower[..., k] = column
        schur = (schur - column.square()).scatter(-1, pivot, -torch.inf)
    return lower, torch.cat(pivots, dim=-1), rank
