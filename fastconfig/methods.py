"""Gram matrix -> coefficients in plain torch float64: the readable version of csrc/coefficients.hpp.

Everything is batched (leading dimensions of the Gram matrix) and free of host synchronisation, so that
it may run inside a CUDA graph. All methods work on C = D^-1 G D^-1 and on coefficients of the *unit*
gradients, so that row norms from 1e-30 to 1e30 meet no overflow; the division by d comes last.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .numbers import DTYPES, cutoff
from .transforms import refuse_transforms

METHODS = ("config", "pcgrad", "ppcgrad", "imtlg")
LENGTHS = (
    "projection",
    "minimum",
    "maximum",
    "harmonic",
    "arithmetic",
    "geometric",
    "specific",
    "none",  # the direction pinv(units) w as it is: a user's own length model scales it
)
REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True, eq=False)
class Rule:
    """How coefficients follow from a Gram matrix; checked where it is made, by :func:`make_rule`.

    Attributes:
        method: one of METHODS.
        weights: (m,) or (B, m) float64 direction weights of ConFIG; None is all ones.
        length: one of LENGTHS, for ConFIG.
        track_id: row that length "specific" tracks, 0..m-1.
        order: (m, m) or (B, m, m) int64 for PCGrad: row i lists the rows in the order in which gradient
            i is projected against them (i itself is skipped); None is 0..m-1 for every i.
        mean: PCGrad and PPCGrad average instead of adding up.
        rcond: cut-off on the eigenvalues of C relative to the largest; None takes the dtype's.
    """

    method: str = "config"
    weights: Tensor | None = None
    length: str = "projection"
    track_id: int = 0
    order: Tensor | None = None
    mean: bool = False
    rcond: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made of it: that is about this very object, and made again for a copy."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def native_address(self) -> int:
        """Where :attr:`native` lies."""
        return int(self.native.address)

    def cutoff(self, dtype: torch.dtype) -> float:
        """The eigenvalue cut-off for gradients of this dtype."""
        return cutoff(dtype) if self.rcond is None else self.rcond

    @cached_property
    def cutoffs(self) -> tuple[float, ...]:
        """:meth:`cutoff` of all dtypes, in their order."""
        return tuple(float(self.cutoff(dtype)) for dtype in DTYPES)

    @cached_property
    def native(self) -> Any:
        """The same rule for the compiled code; its tensors must lie on the CPU."""
        from . import _C

        w, order = self.weights, self.order
        return _C.Rule(
            method=METHODS.index(self.method),
            length=LENGTHS.index(self.length),
            track_id=self.track_id,
            mean=self.mean,
            weights=0 if w is None else w.data_ptr(),
            weights_step=0 if w is None or w.dim() == 1 else w.shape[-1],
            order=0 if order is None else order.data_ptr(),
            order_step=0 if order is None or order.dim() == 2 else order[0].numel(),
        )


def make_rule(
    method: str,
    m: int,
    device: torch.device,
    *,
    batch: int | None = None,
    weights: Tensor | None = None,
    length: str = "projection",
    track_id: int = 0,
    order: Tensor | None = None,
    reduction: str = "sum",
    rcond: float | None = None,
) -> Rule:
    """A checked :class:`Rule` whose tensors are contiguous, on ``device``, in float64 and int64.

    Raises:
        ValueError: naming the argument, what came and what is wanted.
    """
    _want("method", method, METHODS)
    _want("length", length, LENGTHS)
    _want("reduction", reduction, REDUCTIONS)
    if length == "specific" and not -m <= track_id < m:
        raise ValueError(f"track_id: got {track_id}, want {-m}..{m - 1} for {m} gradients")
    if rcond is not None and not 0 <= rcond < 1:
        raise ValueError(f"rcond: got {rcond}, want None or a number from 0 to 1 (1 excluded)")
    if weights is not None:
        weights = _fit("weights", weights, (m,), batch, torch.float64, device)
    if order is not None:
        order = _fit("order", order, (m, m), batch, torch.int64, device)
        ascending = torch.arange(m, device=device).expand_as(order)
        if device.type == "cpu" and not torch.equal(order.sort(-1).values, ascending):
            raise ValueError(f"order: got {order.tolist()}, want permutations of 0..{m - 1} as rows")
    return Rule(method, weights, length, track_id % m, order, reduction == "mean", rcond)


@torch.no_grad()
def coefficients(gram: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """Coefficients c of the merged gradient sum_i c_i g_i.

    Args:
        gram: (..., m, m) float64.
        rule: the method and its settings, on the same device.
        dtype: dtype of the gradients, which sets the rank cut-off.

    Returns:
        (..., m) float64; all NaN for a problem with NaN or Inf on the diagonal of its Gram matrix.
    """
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0)
    cosines = gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    cosines.diagonal(dim1=-2, dim2=-1).fill_(1)  # also for a zero gradient: alone, and with weight zero
    match rule.method:
        case "config":
            x = _config(cosines, norms, rule, rule.cutoff(dtype))
        case "pcgrad":
            x = _pcgrad(cosines, norms, rule)
        case "ppcgrad":
            x = _ppcgrad(cosines, norms, rule)
        case "imtlg":
            x = _imtlg(cosines, inverse, rule.cutoff(dtype))
        case _:
            raise ValueError(f"method: got {rule.method!r}, want one of {', '.join(map(repr, METHODS))}")
    return torch.where(norms.isfinite().all(-1, keepdim=True), x * inverse, torch.nan)


@torch.no_grad()
def compiled_coefficients(gram: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """:func:`coefficients` by csrc/coefficients.hpp, for Gram matrices and rules in CPU memory."""
    from . import _C

    refuse_transforms("gram")
    gram = gram.contiguous()
    c = torch.empty(gram.shape[:-1], dtype=torch.float64, device=gram.device)
    m = gram.shape[-1]
    _C.coefficients(gram.data_ptr(), c.data_ptr(), c.numel() // m, m, rule.native, rule.cutoff(dtype))
    return c


def _config(cosines: Tensor, norms: Tensor, rule: Rule, rcond: float) -> Tensor:
    alive = (norms > 0).to(norms.dtype)
    w = alive if rule.weights is None else rule.weights * alive
    x = pinv_apply(cosines, w, rcond)
    if rule.length == "none":
        return x
    projections = (cosines @ x.unsqueeze(-1)).squeeze(-1)  # unit gradients on the direction
    squared = (x * projections).sum(-1, keepdim=True)  # |direction|^2
    if rule.length == "projection":
        total = (norms * projections).sum(-1, keepdim=True)
    else:
        total = tracked(norms, rule.length, rule.track_id) * projections.sum(-1, keepdim=True)
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


def _pcgrad(cosines: Tensor, norms: Tensor, rule: Rule) -> Tensor:
    # b[i]: gradient i in units of the unit gradients, while it is projected; all i side by side
    m = norms.shape[-1]
    b = torch.diag_embed(norms)
    rows = torch.arange(m, device=norms.device)
    order = rows.expand(m, m) if rule.order is None else rule.order
    for step in range(m):
        j = order[..., step].expand(b.shape[:-1])
        against = torch.take_along_dim(cosines, j.unsqueeze(-1), dim=-2)  # row j(i) of C for each i
        along = (b * against).sum(-1).clamp(max=0)
        along = torch.where(j == rows, 0, along)
        b.scatter_add_(-1, j.unsqueeze(-1), -along.unsqueeze(-1))
    return b.mean(-2) if rule.mean else b.sum(-2)


def _ppcgrad(cosines: Tensor, norms: Tensor, rule: Rule) -> Tensor:
    m = norms.shape[-1]
    conflicts = cosines.clamp(max=0)  # its diagonal is never negative
    x = norms - (norms.unsqueeze(-1) * conflicts).sum(-2)
    return x / m if rule.mean else x


def _imtlg(cosines: Tensor, inverse: Tensor, rcond: float) -> Tensor:
    alive = (inverse > 0).to(inverse.dtype)
    x = pinv_apply(cosines, alive, rcond)
    v = x * inverse
    total = v.sum(-1, keepdim=True)
    resolved = v.shape[-1] * torch.finfo(v.dtype).eps * v.abs().sum(-1, keepdim=True)
    return torch.where(total.abs() > resolved, x / total, 0)


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


def _want(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{argument}: got {value!r}, want one of {names}")


def _fit(
    argument: str,
    value: Tensor,
    shape: tuple[int, ...],
    batch: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    shapes = [shape] if batch is None else [shape, (batch, *shape)]
    if tuple(value.shape) not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise ValueError(f"{argument}: got shape {tuple(value.shape)}, want {wanted}")
    return value.detach().to(device=device, dtype=dtype).contiguous()
