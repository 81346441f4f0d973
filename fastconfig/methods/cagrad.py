"""CAGrad: near the mean gradient, the greatest least product with any gradient (arXiv:2110.14048)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..checks import check_rcond, not_negative
from ..numbers import cutoff
from .base import Rule
from .operator import GramOperator
from .solvers import certain, one_hot, ridge_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CAGrad(Rule):
    """The vector v of the greatest min_i g_i . v within |v - g_0| <= c |g_0|, with the mean gradient g_0.

    Liu et al. 2021, "Conflict-Averse Gradient Descent for Multi-task Learning", equation 3 and algorithm 1:
    v = g_0 + sqrt(phi) g_w / |g_w| with sqrt(phi) = c |g_0| and w of the least
    F(w) = g_w . g_0 + sqrt(phi) |g_w|, w >= 0 of sum one, g_w = sum_i w_i g_i. c = 0 is the mean; c < 1
    converges to a minimum of the mean loss but may conflict, c >= 1 does not: no cosine of the update with a
    gradient is below -16 eps times sum_i c_i |g_i| / |update| (of more than 8 gradients -(m + 8) eps), which
    is what rounding of G may cost.

    F is minimised exactly, by an active set with the closed form of the best v on each. TorchJD calls a
    conic solver on the host, on the root of G over its trace, where norms that differ by more than 1e8 are
    lost. Where the least F is zero and g_w, too, the gradients are Pareto stationary and the update is zero,
    as in TorchJD; so it is where rounding leaves nothing certain: where |v|^2, |g_0|^2 or |v - g_0|^2 is at
    most rcond / 8 times the square of the summed lengths of its parts. There is no ``norm_eps``; rcond is
    1e-13 whatever the gradients' dtype, as G is exact in all. A zero gradient counts in the mean and bounds
    nothing.

    Args:
        c: >= 0; the authors' 0.5 by default.
        rescale: 0, as in the paper; 1 divides the update by 1 + c^2, 2 by 1 + c, as the authors' code can do
            and LibMTL does (1).
    """

    native = "cagrad"
    rank_dtype = torch.float64

    def __init__(self, c: float = 0.5, rescale: int = 0, *, rcond: float | None = None) -> None:
        super().__init__(rcond=rcond)
        self.c = not_negative("c", c)
        if rescale not in (0, 1, 2):
            raise ValueError(f"rescale: got {rescale!r}, want 0, 1 or 2")
        self.rescale = rescale
        self.parameters = (self.c, self.factor)

    @property
    def factor(self) -> float:
        """What the update is multiplied by in the end."""
        return (1.0, 1 / (1 + self.c**2), 1 / (1 + self.c))[self.rescale]

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m = norms.shape[-1]
        if self.c == 0:
            return norms / m
        most = norms.amax(-1, keepdim=True)
        mean = torch.where(most > 0, norms / (m * most), 0)
        return self.factor * most * conflict_averse(cosines, mean, self.c, rcond)

    @staticmethod
    def oracle(rows: Tensor, c: float = 0.5, rescale: int = 0, *, rcond: float | None = None) -> Tensor:
        """The greatest level at which {v: g_i . v >= level} is within c |g_0| of g_0, by bisection.

        Args:
            rows: (m, N) gradients.
            c, rescale: as above.
            rcond: cut-off on squared lengths; by default float64's.

        Returns:
            (N,) float64.
        """
        if not torch.isfinite(rows).all():
            return reference._all_nan(rows)
        full, norms = reference._float64_rows(rows)
        most = norms.max()
        if most == 0:
            return torch.zeros_like(full[0])
        mean, alive = (full / most).mean(0), norms > 0
        rcond = cutoff(torch.float64) if rcond is None else rcond
        if mean.square().sum() <= rcond / 8 * (norms / (most * len(rows))).sum() ** 2:
            return torch.zeros_like(mean)
        nearest = _Nearest(full[alive] / norms[alive, None], norms[alive] / most, mean, rcond)
        return most * CAGrad(c, rescale).factor * nearest.highest(c * mean.norm())


class _Nearest:
    """The vectors nearest to the mean of products ``level`` and more with all rows, by least squares."""

    def __init__(self, units: Tensor, sizes: Tensor, mean: Tensor, rcond: float) -> None:
        self.units, self.sizes, self.mean, self.rcond = units, sizes, mean, rcond

    def at(self, level: float) -> tuple[Tensor, Tensor] | None:
        """The way to there from the mean, and what each row has in it; None if there is none."""
        wanted = level / self.sizes - self.units @ self.mean
        lengths = (1 + wanted.square()).sqrt()  # Lawson and Hanson 1974, chapter 23.4
        rows = torch.cat([self.units, wanted[:, None]], 1) / lengths[:, None]
        target = torch.zeros_like(rows[0])
        target[-1] = 1
        x = reference.nonnegative_least_squares(rows, target)
        rest = target - x @ rows
        if rest.square().sum() <= 1e-13 * (1 + x.sum()) ** 2:
            return None
        return -rest[:-1] / rest[-1], x

    def highest(self, radius: Tensor) -> Tensor:
        """The vector with the highest level within the radius; zero if levels end there, at zero."""
        hull = torch.cat([self.units, torch.ones_like(self.sizes)[:, None]], 1) / 2**0.5
        target = torch.zeros_like(hull[0])
        target[-1] = 1
        x = reference.nonnegative_least_squares(hull, target)
        balanced = (x @ self.units).square().sum() <= self.rcond * x.sum() ** 2
        if balanced and (still := self.at(0.0)) is not None and still[0].norm() <= radius * (1 + 1e-12):
            return torch.zeros_like(self.mean)
        low = float((self.sizes * (self.units @ self.mean)).min())
        high = float((self.sizes * (self.units @ self.mean + radius)).min())
        best = self.mean
        for _ in range(120):
            level = (low + high) / 2
            found = self.at(level)
            if found is None or found[0].norm() > radius:
                high = level
            else:
                low, best = level, self.mean + found[0]
            if found is not None and (exact := self.exact(found[1] > 0, radius)) is not None:
                return exact
        return best

    def exact(self, support: Tensor, radius: Tensor) -> Tensor | None:
        """The best vector if these rows have the least product; None if they have not."""
        if not support.any():
            return None
        q, r = torch.linalg.qr(self.units[support].T)
        if r.shape[0] < r.shape[1] or (r.diagonal().abs() < 1e-7).any():
            return None
        level_one = torch.linalg.solve_triangular(r.T, 1 / self.sizes[support, None], upper=False)[:, 0]
        own = q.T @ self.mean
        middle = (level_one @ own) / level_one.square().sum()
        spare = radius**2 - (own - middle * level_one).square().sum()
        if spare <= 0:
            return None
        over = (spare / level_one.square().sum()).sqrt()
        way = over * level_one - (own - middle * level_one)
        v = self.mean + q @ way
        shares = torch.linalg.solve_triangular(r, way[:, None], upper=True)
        short = self.units @ v - (middle + over) / self.sizes
        valid = shares.min() >= 0 and short.min() >= -1e-13 * (self.mean.norm() + radius)
        return v if valid else None


def conflict_averse(cosines: Tensor, mean: Tensor, c: float, rcond: float) -> Tensor:
    """v = sum_i x_i u_i within c |g_0| of g_0 = sum_i mean_i u_i, of the greatest least product with any g_i.

    An active set: the gradients whose product with v is the least. With P and Q of L P = 1 / r, L Q = C mean,
    C = L L^T on the set with a ridge (:func:`ridge_of`), the best vector of equal products ``level`` has
    level = mu + sqrt(gap / P . P), gap = (c |g_0|)^2 - |Q - mu P|^2, mu = P . Q / P . P. A weight that would
    be negative stops the way there and leaves; the gradient furthest below the level enters. F falls in every
    step, so that none comes back to a set. On a device a fixed number of steps, without a look at the values.

    Args:
        cosines: (..., m, m) float64, C of the unit gradients.
        mean: (..., m) float64, norms over m, up to a common factor; zero for zero gradients.
        c: > 0.
        rcond: decides on the ridge (:func:`ridge_of`).
    """
    m = mean.shape[-1]
    on_cpu = mean.device.type == "cpu"
    ridge = ridge_of(rcond, m)
    unit = torch.eye(m, dtype=mean.dtype, device=mean.device)
    ridged = cosines + ridge * unit
    alive = mean > 0
    inverse = torch.where(alive, 1 / mean, 0)
    along = _times(cosines, mean)
    radius = c * (mean * along).sum(-1, keepdim=True).clamp(min=0).sqrt()
    first = torch.where(alive, mean * (along + radius), torch.inf).argmin(-1)
    weights = one_hot(first, m).to(mean.dtype)
    active = weights > 0
    x = torch.where(active & alive, radius, 0)
    for _ in range(4 * m + 10):
        inner = active.unsqueeze(-1) & active.unsqueeze(-2)
        factor, broken = torch.linalg.cholesky_ex(torch.where(inner, ridged, unit))
        sides = torch.stack([inverse, along], -1).masked_fill(~active.unsqueeze(-1), 0)
        p, q = torch.linalg.solve_triangular(factor, sides, upper=False).unbind(-1)
        squared = p.square().sum(-1, keepdim=True)
        mu = (p * q).sum(-1, keepdim=True) / squared
        q = q - mu * p
        gap = radius.square() - q.square().sum(-1, keepdim=True)
        over = (gap.clamp(min=0) / squared).sqrt()
        bounded = gap > 0  # else F falls without end within the plane of these gradients, along -q
        z = torch.linalg.solve_triangular(factor.mT, (over * p - q).unsqueeze(-1), upper=True).squeeze(-1)
        toward = z * inverse
        toward = torch.where(bounded, toward / (over * squared) - weights, toward)

        ends = active & torch.where(bounded, ~(z > 0), toward < 0)
        ratio = torch.where(ends, torch.where(weights > 0, -weights / toward, 0), torch.inf)
        sound = (broken == 0).unsqueeze(-1)  # else C is not positive semidefinite: that is the end
        step = torch.where(bounded, ratio.amin(-1, keepdim=True).clamp(max=1), ratio.amin(-1, keepdim=True))
        step = torch.where(step.isinf(), 0, step)
        leaving = ends & (ratio <= step) & sound
        moved = torch.where(leaving | ~active, 0, weights + step * toward).clamp(min=0)
        weights = torch.where(sound, moved, weights)
        settled = bounded & sound & ~leaving.any(-1, keepdim=True)
        x = torch.where(settled, z, x)

        size = mean.sum(-1, keepdim=True) + x.abs().sum(-1, keepdim=True)
        short = along + _times(cosines, x) - (mu + over) * inverse  # below zero: less than the level
        enters = settled & alive & (short < -ridge * size) & ~active
        enters &= one_hot(torch.where(enters, short, torch.inf).argmin(-1), m)
        active = (active & ~leaving) | enters
        if on_cpu and not bool((leaving | enters).any()):
            break
    sure = certain(cosines, mean, rcond) & certain(cosines, x, rcond) & certain(cosines, mean + x, rcond)
    return torch.where(sure, mean + x, 0)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class CAGradOperator(GramOperator):
    """CAGrad (Liu et al. 2021, arXiv:2110.14048): near the mean, the greatest least g_i . v.

    What is exact and where the limits are: :class:`fastconfig.methods.CAGrad`.

    Args:
        c: how far from the mean, in lengths of it; 0 is the mean itself, from 1 on no gradient conflicts.
        rescale: 0, as in the paper; 1 divides the update by 1 + c^2, 2 by 1 + c.
        rcond, process_group: as in :func:`ConFIG_update`; rcond is 1e-13 by default.

    Raises:
        TypeError, ValueError: for a ``c`` that is no number, or negative, and the like.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.CAGradOperator(c=0.4).calculate_gradient(grads)
        tensor([0.4256, 0.6384])
    """

    _rule = CAGrad()

    def __init__(
        self,
        c: float = 0.5,
        *,
        rescale: int = 0,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(CAGrad(c, rescale, rcond=check_rcond(rcond)), process_group)
