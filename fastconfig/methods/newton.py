"""Newton's method for bargaining problems C b = w b^-p, b > 0, in plain torch float64, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from .solvers import cholesky_solved

_EPS = torch.finfo(torch.float64).eps
_NASH_STEPS = 30  # half as many more as opposed gradients at the cut-off take
_FAIR_STEPS = 200
_FAIR_STEPS_ON_DEVICE = 60  # where all are taken
_TO_THE_EDGE = 0.9  # of the way to where a coefficient, or a product with the update, would be zero


def nash_point(cosines: Tensor, alive: Tensor, rcond: float) -> tuple[Tensor, Tensor]:
    """b > 0 with C b = 1 / b: of the least 1/2 b^T C b - sum log b, by Newton's method with a line search.

    The function is convex and self-concordant: whatever the start, few steps lead there. It has no least
    value if a combination of gradients with coefficients that are not negative vanishes; b grows then.

    Args:
        cosines: (..., m, m) float64, C of the unit gradients.
        alive: (..., m) bool, False for a zero gradient; its b is 1.
        rcond: b^T C b / b^T b at most this is rounding: a combination vanishes.

    Returns:
        b (..., m) float64, and (..., 1) bool, whether there is such a point; b is of no use if not.
    """
    on_cpu = cosines.device.type == "cpu"
    unit, surely = _definite(cosines)
    count = alive.to(cosines.dtype).sum(-1, keepdim=True)
    total = (cosines * (alive.unsqueeze(-1) & alive.unsqueeze(-2))).sum((-2, -1)).unsqueeze(-1)
    b = torch.where(alive, (count / torch.maximum(total, 1e-6 * count)).sqrt(), 1)
    longest = count / max(rcond, _EPS)
    exists = torch.ones_like(total, dtype=torch.bool)
    done = torch.zeros_like(exists)
    last = torch.full_like(total, torch.inf)
    for _ in range(_NASH_STEPS):
        products = b.unsqueeze(-1) * cosines * b.unsqueeze(-2)
        shares = products.sum(-1)
        factor, broken = torch.linalg.cholesky_ex(b.unsqueeze(-1) * surely * b.unsqueeze(-2) + unit)
        s = cholesky_solved(factor, (1 - shares).unsqueeze(-1)).squeeze(-1)  # relative to b
        decrement = ((1 - shares) * s).sum(-1, keepdim=True)
        exists &= done | ((broken == 0).unsqueeze(-1) & decrement.isfinite())
        near = decrement < 1 / 16  # from here on the error is squared in every step
        done = done | ~exists | (near & (decrement > last / 4))  # or it is rounding
        step = torch.where(near, 1, _line_search(products, shares, s))
        b = torch.where(done, b, b * (1 + step * s))
        done = done | (near & (decrement < 1e-18))
        exists &= torch.where(alive, b, 0).square().sum(-1, keepdim=True) < longest
        last = torch.where(near, decrement, torch.inf)
        if on_cpu and bool(done.all()):
            break
    return b, exists


def _definite(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """I, and C with what rounding may have taken from its eigenvalues: for the directions of steps."""
    m = cosines.shape[-1]
    unit = torch.eye(m, dtype=cosines.dtype, device=cosines.device)
    return unit, cosines + 4 * m * _EPS * unit


def _line_search(products: Tensor, shares: Tensor, s: Tensor) -> Tensor:
    """(..., 1): the step t for which 1/2 |t s + 1|^2 in K = B C B less sum log(1 + t s) is about least."""
    slope = (shares * s).sum(-1, keepdim=True)
    bend = (s * (products @ s.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)
    low = torch.zeros_like(slope)
    high = 1 / (-s.amin(-1, keepdim=True)).clamp(min=1e-30)  # where a coefficient would be zero
    t = (_TO_THE_EDGE * high).clamp(max=1)
    for _ in range(8):
        relative = s / (1 + t * s)
        rise = slope + bend * t - relative.sum(-1, keepdim=True)
        low, high = torch.where(rise < 0, t, low), torch.where(rise < 0, high, t)
        newton = t - rise / (bend + relative.square().sum(-1, keepdim=True))
        inside = (newton > low) & (newton < high)
        t = torch.where(inside, newton, torch.minimum((low + high) / 2, 4 * low + t * (low == 0)))
    return t


def fair_point(cosines: Tensor, b: Tensor, log_weights: Tensor, power: float) -> Tensor:
    """b > 0 with C b = w b^-p, from the point C b = 1 / b.

    Steps in b and in t = C b at once, which stay positive, on log t + p log b = log w: t keeps its digits
    where C b cancels.

    Args:
        cosines: (..., m, m) float64, C of the unit gradients.
        b: (..., m) float64, of :func:`nash_point`.
        log_weights: (..., m) float64, log w.
        power: p > 0.

    Returns:
        (..., m) float64.
    """
    on_cpu = cosines.device.type == "cpu"
    unit, surely = _definite(cosines)
    t = 1 / b
    done = torch.zeros_like(b[..., :1], dtype=torch.bool)
    last = torch.full_like(b[..., :1], torch.inf)
    for _ in range(_FAIR_STEPS if on_cpu else _FAIR_STEPS_ON_DEVICE):
        rest = log_weights - t.log() - power * b.log()
        error = rest.abs().amax(-1, keepdim=True)
        done = done | (error < 1e-15) | ((error < 1e-8) & (error > last / 2))
        last = error
        if on_cpu and bool(done.all()):
            break
        ratio, size = (b / t).sqrt(), (b * t).sqrt()
        gap = t - (cosines @ b.unsqueeze(-1)).squeeze(-1)
        scaled = ratio.unsqueeze(-1) * surely * ratio.unsqueeze(-2)
        factor, broken = torch.linalg.cholesky_ex(scaled + power * unit)
        s = cholesky_solved(factor, (size * rest + ratio * gap).unsqueeze(-1)).squeeze(-1) / size
        u = rest - power * s  # s and u: the steps relative to b and t
        lowest = torch.minimum(s, u).amin(-1, keepdim=True)
        done = done | (broken > 0).unsqueeze(-1) | ~lowest.isfinite()
        step = _TO_THE_EDGE / (-lowest).clamp(min=_TO_THE_EDGE)
        b = torch.where(done, b, b * (1 + step * s))
        t = torch.where(done, t, t * (1 + step * u))
    return b
