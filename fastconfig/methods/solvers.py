"""Small linear problems that methods share, in plain torch float64, batched."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps


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
            return cholesky_solved(factor, column).squeeze(-1)
    lower, order, rank = _pivoted_cholesky(cosines, 2 * rcond)  # on Schur diagonals: twice
    m = w.shape[-1]
    used = torch.arange(m, device=w.device) < rank.unsqueeze(-1)

    ordered = torch.take_along_dim(lower, order.unsqueeze(-1), dim=-2)  # lower triangular
    padded = ordered + torch.diag_embed((~used).to(w.dtype))
    solved = cholesky_solved(padded, torch.take_along_dim(column, order.unsqueeze(-1), dim=-2))
    direct = torch.zeros_like(column).scatter_(-2, order.unsqueeze(-1), solved)

    inner = lower.mT @ lower + torch.diag_embed((~used).to(w.dtype))
    factor = torch.linalg.cholesky_ex(inner)[0]
    projected = lower.mT @ column
    y = cholesky_solved(factor, projected)
    supported = (projected * y).sum((-2, -1)) > (rcond * rcond) * w.square().sum(-1)
    minimal = lower @ cholesky_solved(factor, y)
    minimal = torch.where(supported[..., None, None], minimal, 0)

    return torch.where((rank == m)[..., None, None], direct, minimal).squeeze(-1)


def cholesky_solved(factor: Tensor, sides: Tensor) -> Tensor:
    """(L L^T)^-1 b: in two steps, since no CUDA graph captures torch.cholesky_solve of several problems.

    Args:
        factor: (..., m, m), L.
        sides: (..., m, k), b.
    """
    half = torch.linalg.solve_triangular(factor, sides, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


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


def one_hot(index: Tensor, m: int) -> Tensor:
    """(..., m) bool from (...); a unit matrix's row at a single index would wait for a device to tell it."""
    return torch.arange(m, device=index.device) == index.unsqueeze(-1)


def ridge_of(rcond: float, m: int) -> float:
    """What a quadratic program adds to the diagonal of C: all that rounding of C may hide, and no more.

    As if every unit gradient had a part of that squared length that it shares with none: so none depends on
    the others, the optimum is unique, and an active set comes to it whatever the gradients. A product u_j . v
    of the answer v = sum_j w_j u_j is off by at most that times w_j, as it is by rounding of C anyway. It
    grows with m, for rounding of the Cholesky factor of many dependent gradients must not use it up.
    """
    return max(rcond / 64, max(8, m) * _EPS)


def dual_cone(cosines: Tensor, start: Tensor, rcond: float) -> Tensor:
    """w >= start, of which v = sum_j w_j u_j is sum_j start_j u_j projected on {v: u_j . v >= 0 for all j}.

    Zero where v is not :func:`certain`.

    Args:
        cosines: (..., m, m) float64, C of the unit gradients u_j.
        start: (..., m) float64, of any sign; C is expanded to its leading dimensions.
        rcond: cut-off on squared lengths, relative.

    Returns:
        (..., m) float64.
    """
    cosines = cosines.expand(*start.shape, start.shape[-1])
    slope = (cosines @ start.unsqueeze(-1)).squeeze(-1)
    w = start + nonnegative(cosines, slope, start.abs().sum(-1, keepdim=True), rcond)
    return torch.where(certain(cosines, w, rcond), w, 0)


def certain(cosines: Tensor, w: Tensor, rcond: float) -> Tensor:
    """(..., 1): whether |v|^2 > rcond / 8 (sum_j |w_j|)^2 of v = sum_j w_j u_j, above all rounding of C."""
    squared = (w * (cosines @ w.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)
    return squared > max(rcond / 8, 8 * _EPS) * w.abs().sum(-1, keepdim=True).square()


def nonnegative(matrix: Tensor, q: Tensor, size: Tensor, rcond: float) -> Tensor:
    """mu >= 0 of least 1/2 mu^T M mu + q^T mu: non-negative least squares by inner products.

    M = B^T B and q = -B^T b for some vectors B, b of lengths near one. The active set method of Lawson and
    Hanson (1974, chapter 23) on M with a ridge (:func:`ridge_of`): exact steps, each lowers the objective, so
    none comes back to a set. The coordinate of the steepest slope enters, not of the greatest gain, which
    vectors that nearly depend on the set would promise. Then one step on M itself takes out what the ridge
    costs, where it can. On a device a fixed number of steps, without a look at the values; of few vectors the
    best of all sets.

    Args:
        matrix: (..., m, m) float64, positive semidefinite up to rounding.
        q: (..., m) float64, in the range of M.
        size: (..., 1) float64, what |b| is made of: slopes are as certain as rounding of that leaves them.
        rcond: decides on the ridge (:func:`ridge_of`).

    Returns:
        (..., m) float64: M mu + q is not below zero, and zero where mu > 0, up to the ridge times the sum of
        ``size`` and mu.
    """
    m = q.shape[-1]
    on_cpu = q.device.type == "cpu"
    ridge = ridge_of(rcond, m)
    identity = torch.eye(m, dtype=q.dtype, device=q.device)
    if m <= (4 if on_cpu else 8) and q.numel() * m << m <= 1 << 24:
        return _best_of_all(matrix, q, size, ridge, identity)
    ridged = matrix + ridge * identity
    mu = torch.zeros_like(q)
    free = torch.zeros_like(q, dtype=torch.bool)  # the set: what may be positive
    for _ in range(4 * m + 10):
        held = free
        inner = held.unsqueeze(-1) & held.unsqueeze(-2)
        factor, broken = torch.linalg.cholesky_ex(torch.where(inner, ridged, identity))
        z = cholesky_solved(factor, torch.where(held, -q, 0).unsqueeze(-1)).squeeze(-1)

        sound = (broken == 0).unsqueeze(-1)  # else M is not positive semidefinite: that is the end
        leaving = held & ~(z > 0) & sound
        ratio = torch.where(leaving, torch.where(mu > 0, mu / (mu - z), 0), torch.inf)
        step = ratio.amin(-1, keepdim=True).clamp(max=1)
        leaving &= ratio <= step
        moved = torch.where(held & sound, mu + step * (z - mu), mu).clamp(min=0)
        moved = torch.where(leaving, 0, moved)

        slope = _slopes(matrix, q, moved)
        steep = slope < -ridge / 4 * (size + moved.sum(-1, keepdim=True))
        enters = sound & ~leaving.any(-1, keepdim=True) & steep & ~held
        enters &= one_hot(torch.where(enters, slope, 0).argmin(-1), m)
        free, mu = (held & ~leaving) | enters, moved
        if on_cpu and not bool((leaving | enters).any()):
            break
    return _refined(matrix, q, mu, held, factor)


def _slopes(matrix: Tensor, q: Tensor, mu: Tensor) -> Tensor:
    return q + (matrix @ mu.unsqueeze(-1)).squeeze(-1)


def _refined(matrix: Tensor, q: Tensor, mu: Tensor, held: Tensor, factor: Tensor) -> Tensor:
    """mu, or what a step from there makes of it, by the factor of M with a ridge on the set ``held``."""

    def error(mu: Tensor) -> Tensor:
        slope = _slopes(matrix, q, mu)
        return torch.where(mu > 0, slope.abs(), -slope).amax(-1, keepdim=True)

    side = torch.where(held, -_slopes(matrix, q, mu), 0).unsqueeze(-1)
    other = (mu + cholesky_solved(factor, side).squeeze(-1)).clamp(min=0)
    return torch.where(error(other) <= error(mu), other, mu)


def _best_of_all(matrix: Tensor, q: Tensor, size: Tensor, ridge: float, identity: Tensor) -> Tensor:
    """:func:`nonnegative` by the solutions on all sets at once: the one of the least negative slope."""
    m = q.shape[-1]
    places = torch.arange(m, device=q.device)
    free = (torch.arange(1 << m, device=q.device).unsqueeze(-1) >> places & 1).bool()  # (sets, m)
    inner = free.unsqueeze(-1) & free.unsqueeze(-2)
    ridged = (matrix + ridge * identity).unsqueeze(-3)
    factor, broken = torch.linalg.cholesky_ex(torch.where(inner, ridged, identity))
    side = torch.where(free, -q.unsqueeze(-2), 0).unsqueeze(-1)
    z = cholesky_solved(factor, side).squeeze(-1)
    slope = _slopes(matrix.unsqueeze(-3), q.unsqueeze(-2), z)
    valid = (broken == 0) & ((z > 0) | ~free).all(-1)
    worst = torch.where(free, 0, -slope).amax(-1)
    worst = torch.where(valid, torch.maximum(worst, ridge / 4 * (size + z.sum(-1))), torch.inf)
    best = worst.argmin(-1, keepdim=True).unsqueeze(-1)
    mu = torch.take_along_dim(z, best, dim=-2).squeeze(-2)
    chosen = torch.take_along_dim(factor, best.unsqueeze(-1), dim=-3).squeeze(-3)
    return _refined(matrix, q, mu, mu > 0, chosen)


def nearest_in_cone(cosines: Tensor, wanted: Tensor, size: Tensor, rcond: float) -> tuple[Tensor, Tensor]:
    """Least sum of unit vectors, with coefficients y >= 0, that has the products C y >= wanted.

    Goldfarb and Idnani 1983 for the identity as Hessian, in the dual: each step adds a constraint that is
    violated, or drops one that stands in its way.

    Args:
        cosines: (..., k, k) float64, unit diagonal.
        wanted: (..., k) float64.
        size: (..., 1) float64, whose rounding the products may have.
        rcond: share of itself, squared, that a unit vector must have apart from those in use.

    Returns:
        y (..., k) and whether it is met (...); False where the constraints contradict each other by more than
        what ``rcond`` says of the unit vectors.
    """
    k = wanted.shape[-1]
    y, active = torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    entering = torch.full(wanted.shape[:-1], -1, device=wanted.device)  # the constraint to be added, or -1
    done = torch.zeros_like(entering, dtype=torch.bool)
    met, let_go = torch.ones_like(done), torch.zeros_like(active)
    eye = torch.eye(k, dtype=wanted.dtype, device=wanted.device)
    least = max(2 * rcond, 1e-12)
    for _ in range(10 * k):
        slack = (cosines @ y.unsqueeze(-1)).squeeze(-1) - wanted
        scale = size + wanted.abs() + y.abs().sum(-1, keepdim=True)
        relative = torch.where(active | let_go, 0, slack / torch.where(scale > 0, scale, 1))
        worst, p = relative.min(-1)
        p = torch.where(entering >= 0, entering, p)
        done |= (entering < 0) & (worst >= -1e-13)
        if wanted.device.type == "cpu" and bool(done.all()):
            break
        at = p.unsqueeze(-1)
        column = torch.take_along_dim(cosines, at.unsqueeze(-1), dim=-1).squeeze(-1)
        both = active.unsqueeze(-1) & active.unsqueeze(-2)
        held = torch.where(active, column, 0)
        factor = torch.linalg.cholesky_ex(torch.where(both, cosines, eye))[0]
        r = cholesky_solved(factor, held.unsqueeze(-1)).squeeze(-1)
        apart = 1 - (held * r).sum(-1)
        ratios = torch.where(active & (r > 0), y / r, torch.inf)
        partial, leaving = ratios.min(-1)
        lack = -slack.gather(-1, at).squeeze(-1)
        full = torch.where(apart > least, lack / apart, torch.inf)
        step = torch.minimum(partial, full)
        stuck = ~done & step.isinf()
        broken = stuck & (relative.gather(-1, at).squeeze(-1) < -(least**0.5))
        met &= ~broken
        done |= broken
        moves = ~done & ~stuck
        step = torch.where(moves, step, 0).unsqueeze(-1)
        y = (y - step * torch.where(active, r, 0)).scatter_add(-1, at, step)
        added = moves & (full <= partial)
        dropped = moves & ~added
        out = torch.zeros_like(active).scatter_(-1, leaving.unsqueeze(-1), dropped.unsqueeze(-1))
        active = (active & ~out) | torch.zeros_like(active).scatter_(-1, at, added.unsqueeze(-1))
        y = torch.where(out, 0, y)
        let_go |= torch.zeros_like(active).scatter_(-1, at, (stuck & ~broken).unsqueeze(-1))
        entering = torch.where(dropped, p, -1)
    return y, met
