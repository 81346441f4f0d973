"""The oracle: each method as its paper writes it, on the full rows in float64, never through G.

Slow, memory-hungry and readable. Every backend is tested against these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .numbers import cutoff

_KEPT_BITS = 76  # of a row and of a product, counted from the largest elements


def gram(rows: Tensor) -> Tensor:
    """G = A A^T to the last bits of float64, independent of the BLAS and of its order of summation.

    Each row is split into slices of so few bits, counted from its largest element, that all products and
    sums of two slices are exact in float64 (Ozaki et al. 2012, "Error-free transformations of matrix
    multiplication", doi:10.1007/s11075-011-9478-1).

    Args:
        rows: (m, N) finite gradients, any served dtype.

    Returns:
        (m, m) float64, symmetric; an entry is off by at most (2^-51 + N 2^-74) |g_i| |g_j|.
    """
    rest = rows.detach().to(torch.float64)
    if not rest.numel():
        return rest.new_zeros(len(rest), len(rest))
    exponents = torch.frexp(rest.abs().amax(1)).exponent.tolist()
    scale = rest.new_tensor([math.ldexp(1.0, exponent) for exponent in exponents])
    rest = rest / scale[:, None]  # all below one
    bits = (53 - (rest.shape[1] - 1).bit_length()) // 2
    slices: list[Tensor] = []
    while rest.any() and len(slices) * bits < _KEPT_BITS:
        unit = 2.0 ** (-bits * (len(slices) + 1))
        slices.append((rest / unit).trunc() * unit)
        rest = rest - slices[-1]
    half = rest.new_zeros(len(rest), len(rest))
    for k in reversed(range(min(2 * len(slices) - 1, -(-_KEPT_BITS // bits)))):  # the smallest products first
        for i in range(max(k - len(slices) + 1, 0), k // 2 + 1):
            product = slices[i] @ slices[k - i].T
            half += product / 2 if 2 * i == k else product
    return (half + half.T) * scale[:, None] * scale


def config(
    rows: Tensor,
    weights: Tensor | None = None,
    length: str = "projection",
    *,
    track_id: int = 0,
    rcond: float | None = None,
) -> Tensor:
    """ConFIG (Liu, Chu and Thuerey 2024, arXiv:2408.11104, equations 2 and 3).

    g_u = unit(pinv([unit(g_1), ..., unit(g_m)]^T) w), then scaled by the length model.

    Args:
        rows: (m, N) gradients, any served dtype.
        weights: (m,) direction weights, ones by default.
        length: "projection", "minimum", "maximum", "harmonic", "arithmetic", "geometric", "specific".
        track_id: row whose norm is tracked, for ``length="specific"``.
        rcond: cut-off on squared singular values, relative to the largest; by default that of rows.dtype.

    Returns:
        (N,) float64.
    """
    if not torch.isfinite(rows).all():
        return _all_nan(rows)
    rcond = cutoff(rows.dtype) if rcond is None else rcond
    full, norms = _float64_rows(rows)
    alive = norms > 0
    if not alive.any():
        return full.new_zeros(full.shape[1])
    units = full[alive] / norms[alive, None]
    w = full.new_ones(len(full)) if weights is None else weights.to(full)
    direction = _unit(_pinv_apply(units, w[alive], rcond)[0])
    if length == "projection":
        return (full @ direction).sum() * direction
    tracked = norms[track_id] if length == "specific" else _tracked(norms[alive], length)
    return tracked * (units @ direction).sum() * direction


def pcgrad(rows: Tensor, order: Sequence[Sequence[int]] | None = None, reduction: str = "sum") -> Tensor:
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Args:
        rows: (m, N) gradients.
        order: for each row the order in which the others are visited; 0..m-1 by default.
        reduction: "sum" (the paper's) or "mean" of the projected gradients.

    Returns:
        (N,) float64.
    """
    if not torch.isfinite(rows).all():
        return _all_nan(rows)
    full, norms = _float64_rows(rows)
    m = len(full)
    projected = full.clone()
    for i in range(m):
        for j in range(m) if order is None else order[i]:
            if j == i or norms[j] == 0:
                continue
            along = torch.dot(projected[i], full[j] / norms[j])
            if along < 0:
                projected[i] -= along * (full[j] / norms[j])
    return projected.sum(0) if reduction == "sum" else projected.mean(0)


def ppcgrad(rows: Tensor, reduction: str = "sum") -> Tensor:
    """PPCGrad: PCGrad with every projection taken against the original gradients, so order-free.

    Args:
        rows: (m, N) gradients.
        reduction: "sum" or "mean" of the projected gradients.

    Returns:
        (N,) float64.
    """
    if not torch.isfinite(rows).all():
        return _all_nan(rows)
    full, norms = _float64_rows(rows)
    projected = full.clone()
    for i in range(len(full)):
        for j in range(len(full)):
            if j == i or norms[j] == 0:
                continue
            along = torch.dot(full[i], full[j] / norms[j])
            if along < 0:
                projected[i] -= along * (full[j] / norms[j])
    return projected.sum(0) if reduction == "sum" else projected.mean(0)


def imtlg(rows: Tensor, *, rcond: float | None = None) -> Tensor:
    """IMTL-G (Liu et al. 2021, "Towards Impartial Multi-task Learning", section 3.1).

    The affine combination (coefficients that sum to one) whose projections on all unit gradients are
    equal; among dependent rows the minimum-norm one. Zero where no such combination exists.

    Args:
        rows: (m, N) gradients.
        rcond: as in :func:`config`.

    Returns:
        (N,) float64.
    """
    if not torch.isfinite(rows).all():
        return _all_nan(rows)
    rcond = cutoff(rows.dtype) if rcond is None else rcond
    full, norms = _float64_rows(rows)
    alive = norms > 0
    if not alive.any():
        return full.new_zeros(full.shape[1])
    units = full[alive] / norms[alive, None]
    direction, x = _pinv_apply(units, full.new_ones(int(alive.sum())), rcond)
    v = x / norms[alive]
    if v.sum().abs() <= len(v) * torch.finfo(torch.float64).eps * v.abs().sum():
        return torch.zeros_like(direction)
    return direction / v.sum()


class Momentum:
    """M-ConFIG (Liu, Chu and Thuerey 2024, algorithm 1) on full vectors in float64.

    Args:
        m: number of gradients.
        merge: (m, N) bias-corrected momenta -> (N,).
        beta_1, beta_2: moving average constants.

    Attributes:
        divisor: (N,) what the last merged momentum was divided by, root of the second moment and 1e-8.
    """

    def __init__(
        self,
        m: int,
        merge: Callable[[Tensor], Tensor] = config,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
    ) -> None:
        self.merge = merge
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.counts, self.updates = [0] * m, 0
        self.momenta: Tensor | None = None
        self.second = self.fake = self.divisor = torch.zeros((), dtype=torch.float64, device="cpu")

    def step(self, indexes: Sequence[int], rows: Tensor) -> Tensor:
        """One step.

        Args:
            indexes: which k gradients come.
            rows: (k, N) these gradients.

        Returns:
            (N,) float64; zeros until every gradient has come.
        """
        if self.momenta is None:
            self.momenta = rows.new_zeros(len(self.counts), rows.shape[1], dtype=torch.float64)
        for i, row in zip(indexes, rows.double(), strict=True):
            self.counts[i] += 1
            self.momenta[i] = self.beta_1 * self.momenta[i] + (1 - self.beta_1) * row
        if 0 in self.counts:
            return torch.zeros_like(self.momenta[0])
        self.updates += 1
        decayed = self.momenta.new_tensor([1 - self.beta_1**t for t in self.counts])
        u = self.merge(self.momenta / decayed[:, None])
        fake = u * (1 - self.beta_1**self.updates)
        gradient = (fake - self.beta_1 * self.fake) / (1 - self.beta_1)
        self.fake = fake
        self.second = self.beta_2 * self.second + (1 - self.beta_2) * gradient**2
        self.divisor = (self.second / (1 - self.beta_2**self.updates)).sqrt() + 1e-8
        return u / self.divisor


def _float64_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    full = rows.detach().to(torch.float64)
    return full, torch.linalg.vector_norm(full, dim=1)


def _all_nan(rows: Tensor) -> Tensor:
    return torch.full(rows.shape[1:], torch.nan, dtype=torch.float64, device=rows.device)


def _unit(vector: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vector)
    return vector / norm if norm > 0 else vector


def _pinv_apply(units: Tensor, w: Tensor, rcond: float) -> tuple[Tensor, Tensor]:
    """u = pinv(units) w, and x with u = units^T x of minimum norm.

    units^T = Q R keeps the singular value decomposition m x m and sees the rows themselves. Weights that
    no retained direction supports (opposed rows) give zero: what is left of them is rounding.
    """
    q, r = torch.linalg.qr(units.T)
    left, sigma, right = torch.linalg.svd(r, full_matrices=False)  # units = right^T sigma left^T q^T
    kept = sigma**2 > rcond * sigma[0] ** 2
    supported = right[kept] @ w
    if kept.sum() < len(w) and torch.linalg.vector_norm(supported) <= rcond * torch.linalg.vector_norm(w):
        supported = torch.zeros_like(supported)
    u = q @ (left[:, kept] @ (supported / sigma[kept]))
    x = right[kept].T @ (supported / sigma[kept] ** 2)
    return u, x


def _tracked(norms: Tensor, length: str) -> Tensor:
    match length:
        case "minimum":
            return norms.min()
        case "maximum":
            return norms.max()
        case "harmonic":
            return len(norms) / (1 / norms).sum()
        case "arithmetic":
            return norms.mean()
        case "geometric":
            return norms.log().mean().exp()
    raise ValueError(f"length: got {length!r}, want a length model's name")


def onto_dual_cone(rows: Tensor, shares: Tensor, rcond: float | None = None) -> Tensor:
    """The projection of sum_i shares_i g_i on {v: g_j . v >= 0 for all j}, by least squares on the rows.

    Args:
        rows: (m, N) gradients.
        shares: (m,) float64.
        rcond: cut-off on squared lengths, relative; by default float64's.

    Returns:
        (N,) float64; zero where it is not :func:`certain`.
    """
    if not torch.isfinite(rows).all():
        return _all_nan(rows)
    rcond = cutoff(torch.float64) if rcond is None else rcond
    full, norms = _float64_rows(rows)
    alive = norms > 0
    if not alive.any():
        return torch.zeros_like(full[0])
    units, start = full[alive] / norms[alive, None], (shares * norms)[alive]
    largest = start.abs().max()
    start = start / largest if largest > 0 else start
    w = start + nonnegative_least_squares(units, -(start @ units))
    v = w @ units
    return largest * v if certain(w, v, rcond) else torch.zeros_like(v)


def certain(w: Tensor, v: Tensor, rcond: float) -> bool:
    """Whether |v|^2 > rcond / 8 (sum_i |w_i|)^2 of v = sum_i w_i u_i: above what rounding of C may hide."""
    least = max(rcond / 8, 8 * torch.finfo(v.dtype).eps)
    return bool(v.square().sum() > least * w.abs().sum() ** 2)


def nonnegative_least_squares(rows: Tensor, target: Tensor) -> Tensor:
    """x >= 0 of least |sum_i x_i a_i - b|: NNLS of Lawson and Hanson (1974, chapter 23) on the rows.

    A row that is a combination of those in use, up to rounding of the rows, stays out.

    Args:
        rows: (m, N) float64 a_i, of lengths near one.
        target: (N,) float64 b.

    Returns:
        (m,) float64.
    """
    eps = torch.finfo(rows.dtype).eps
    r = torch.linalg.qr(torch.cat([rows, target[None]]).T).R  # lengths and products as they were
    columns, b = r[:, :-1], r[:, -1]
    x = columns.new_zeros(columns.shape[1])
    used: list[int] = []
    while True:
        slopes = columns.T @ (b - columns @ x)
        tolerance = 4 * eps * (x.sum() + torch.linalg.vector_norm(b))
        for entering in slopes.argsort(descending=True).tolist():
            if entering in used or slopes[entering] <= tolerance:
                continue
            parts = _least_squares(columns[:, used], columns[:, entering])
            rest = columns[:, entering] - columns[:, used] @ parts
            if rest.norm() > 64 * eps * (1 + parts.abs().sum()):
                break
        else:
            return x
        used.append(entering)
        if _least_squares(columns[:, used], b)[-1] <= 0:
            return x  # what is left of the slopes is rounding
        while (z := _least_squares(columns[:, used], b)).min() <= 0:
            steps = torch.where(z > 0, torch.inf, x[used] / (x[used] - z))
            x[used] += steps.min() * (z - x[used])
            x[[i for i, step in zip(used, steps, strict=True) if step == steps.min()]] = 0
            used = [i for i, step in zip(used, steps, strict=True) if step > steps.min()]
        x[used] = z


def _least_squares(columns: Tensor, b: Tensor) -> Tensor:
    """The solution for independent columns."""
    q, r = torch.linalg.qr(columns)
    return torch.linalg.solve_triangular(r, (q.T @ b)[:, None], upper=True)[:, 0]


def fair(rows: Tensor, alpha: float, *, rcond: float | None = None) -> Tensor:
    """v = sum_i (g_i . v)^-alpha g_i, of the greatest sum_i (g_i . v)^(1 - alpha) / (1 - alpha) - |v|^2 / 2.

    Newton's method on v, from the shortest convex combination of the unit gradients.

    Args:
        rows: (m, N) gradients.
        alpha: >= 0; the mean of the rows if 0.
        rcond: cut-off on that combination's squared length; by default float64's.

    Returns:
        (N,) float64; zero where that combination is.
    """
    if not torch.isfinite(rows).all():
        return _all_nan(rows)
    rcond = cutoff(torch.float64) if rcond is None else rcond
    full, norms = _float64_rows(rows)
    alive = norms > 0
    if alpha == 0 or not alive.any():
        return full.mean(0)
    q, r = torch.linalg.qr((full[alive] / norms[alive, None]).T)
    units, most = r.T, norms.max()
    weights = (norms[alive] / most) ** (1 - alpha)
    extended = torch.cat([units, torch.ones_like(weights)[:, None]], 1)
    x = nonnegative_least_squares(extended, torch.eye(extended.shape[1], dtype=r.dtype, device=r.device)[-1])
    v = x @ units / x.sum()
    if v.square().sum() <= rcond:
        return torch.zeros_like(full[0])
    gains = units @ v
    v *= ((weights * gains ** (1 - alpha)).sum() / v.square().sum()) ** (1 / (1 + alpha))
    for _ in range(1000):
        gains = units @ v
        shares = weights * gains**-alpha
        bend = (units.T * (alpha * shares / gains)) @ units + torch.eye(
            len(v), dtype=v.dtype, device=v.device
        )
        s = torch.linalg.solve(bend, shares @ units - v)
        if s.norm() <= 1e-15 * v.norm():
            break
        relative = units @ s / gains
        step = min(1.0, 0.9 / max(-float(relative.min()), 1e-30))
        while step > 1e-12:  # not past the greatest value on the way
            slope = (weights * (gains * (1 + step * relative)) ** -alpha) @ (units @ s) - (v + step * s) @ s
            if slope >= -1e-3 * (shares @ (units @ s) - v @ s).abs() or relative.abs().max() < 1e-3:
                break
            step /= 2
        v = v + step * s
    return most ** ((1 - alpha) / (1 + alpha)) * (q @ v)
