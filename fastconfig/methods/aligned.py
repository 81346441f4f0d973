"""Aligned-MTL: all principal components of the gradients made equally long (CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import reference
from ..numbers import cutoff
from .base import Rule
from .preference import PreferenceOperator
from .solvers import cholesky_solved

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_EPS = torch.finfo(torch.float64).eps
SCALES = ("min", "median", "rmse")  # in the order of csrc/rules/aligned.hpp
_SWEEPS = 12


class AlignedMTL(Rule):
    """c = B p with B = sqrt(s) V S^-1/2 V^T, from G = V S V^T.

    Senushkin et al. 2023, "Independent Component Alignment for Multi-Task Learning", equation 13 and
    algorithm 1: the gradients A = V S^1/2 U^T are replaced by the nearest ones whose principal components are
    all of one length, sqrt(s) V U^T, and these are weighed by p. s is the least eigenvalue in the paper
    ("min"); as in the authors' code it may be the median (the lower of two) or the mean ("rmse") of those
    that are not zero.

    The number of eigenvalues that are not zero is the rank of the unit gradients, by rcond, and all of these
    count, however small: they are found by one-sided Jacobi rotations of the Cholesky factor of C times the
    norms, which keeps their digits where norms differ. The authors' code and TorchJD cut off eigenvalues of G
    below m eps of the largest, in the dtype of the gradients: in float32 they lose gradients whose norms are
    below 1e-3 of the longest. Zero gradients drop out.

    Args:
        weights: (m,) or (B, m) float64, not negative: the preference vector p; None is 1/m each.
        scale_mode: "min", "median" or "rmse".
    """

    native = "aligned"

    def __init__(
        self, weights: Tensor | None = None, scale_mode: str = "min", *, rcond: float | None = None
    ) -> None:
        super().__init__(rcond=rcond)
        if scale_mode not in SCALES:
            raise ValueError(f"scale_mode: got {scale_mode!r}, want one of {', '.join(map(repr, SCALES))}")
        self.weights, self.scale_mode = weights, scale_mode
        self.parameters = (float(SCALES.index(scale_mode)),)

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m = norms.shape[-1]
        most = norms.amax(-1, keepdim=True)
        alive = norms > 0
        r = torch.where(alive, norms / most, 0)
        lower, order, rank = longest_first(cosines * alive.unsqueeze(-1), r.square(), rcond)
        used = torch.arange(m, device=norms.device) < rank.unsqueeze(-1)

        components, turned = rotated(r.unsqueeze(-1) * lower)
        lengths = torch.linalg.vector_norm(components, dim=-2)  # roots of the eigenvalues
        vectors = torch.where(used.unsqueeze(-2), components / lengths.unsqueeze(-2), 0)
        p = torch.full_like(norms, 1 / m) if self.weights is None else self.weights.expand(norms.shape)
        shares = torch.where(used, (p.unsqueeze(-2) @ vectors).squeeze(-2), 0)
        y = most * self._scale(lengths, used) * (turned @ shares.unsqueeze(-1)).squeeze(-1)

        # the vector with the coordinates y in the base of the Cholesky factor: L^T x = y
        padding = torch.diag_embed((~used).to(norms.dtype))
        ordered = torch.take_along_dim(lower, order.unsqueeze(-1), dim=-2) + padding
        solved = torch.linalg.solve_triangular(ordered.mT, y.unsqueeze(-1), upper=True)
        direct = torch.zeros_like(y).scatter_(-1, order, solved.squeeze(-1))
        inner = torch.linalg.cholesky_ex(lower.mT @ lower + padding)[0]
        minimal = (lower @ cholesky_solved(inner, y.unsqueeze(-1))).squeeze(-1)
        return torch.where(
            (rank == m).unsqueeze(-1), direct, torch.where(used.any(-1, keepdim=True), minimal, 0)
        )

    def _scale(self, lengths: Tensor, used: Tensor) -> Tensor:
        """(..., 1): sqrt(s)."""
        count = used.sum(-1, keepdim=True)
        if self.scale_mode == "rmse":
            return (torch.where(used, lengths, 0).square().sum(-1, keepdim=True) / count).sqrt()
        ascending = torch.where(used, lengths, torch.inf).sort(-1).values
        if self.scale_mode == "min":
            return ascending[..., :1]
        return ascending.gather(-1, ((count - 1) // 2).clamp(min=0))

    @staticmethod
    def oracle(
        rows: Tensor, weights: Tensor | None = None, scale_mode: str = "min", *, rcond: float | None = None
    ) -> Tensor:
        """By the eigenvectors of G in many digits, which sums over the rows are taken in, too.

        Args:
            rows: (m, N) gradients.
            weights, scale_mode: as above.
            rcond: cut-off on the squared distance of a unit gradient from the span of longer ones.

        Returns:
            (N,) float64.
        """
        from mpmath import mp, mpf  # a requirement of PyTorch's

        if not torch.isfinite(rows).all():
            return reference._all_nan(rows)
        full, norms = reference._float64_rows(rows)
        p = torch.full_like(norms, 1 / len(norms)) if weights is None else weights.double()
        base = _independent(full, norms, cutoff(rows.dtype) if rcond is None else rcond)
        if not len(base):
            return torch.zeros_like(full[0])
        decades = float((norms.max() / norms[norms > 0].min()).log10())
        with mp.workdps(40 + int(4 * decades)):
            # the rows in an orthonormal base of the independent ones: what rounding added to the others goes
            a = mp.matrix((full @ base.T).tolist())
            values, vectors = mp.eigsy(a.T * a)
            best = [values[k] for k in range(len(values))]
            scale = {"min": best[0], "median": best[(len(best) - 1) // 2], "rmse": sum(best) / len(best)}
            shares = a.T * mp.matrix([mpf(v) for v in p.tolist()])
            inverse = mp.matrix(len(best), len(best))
            for k, value in enumerate(best):
                column = vectors[:, k]
                inverse += column * column.T * mp.sqrt(scale[scale_mode] / value)
            y = torch.tensor([float(v) for v in inverse * shares], dtype=torch.float64, device="cpu")
        return base.T @ y


def _independent(rows: Tensor, norms: Tensor, rcond: float) -> Tensor:
    """An orthonormal base (r, N) of the rows that do not depend on longer ones."""
    units = torch.where(norms > 0, 1 / norms, 0)[:, None] * rows
    base, chosen = units[:0], list[int]()
    for _ in range(len(rows)):
        rest = units
        for _ in range(2):
            rest = rest - (rest @ base.T) @ base
        parts = torch.linalg.lstsq(units[chosen].T, units.T).solution if chosen else units[:0] @ units.T
        cut = (rcond / 64 * (1 + parts.abs().sum(0)).square()).clamp(min=2 * rcond)
        distance = rest.square().sum(1)
        sizes = torch.where(distance > cut, distance * (norms / norms.max()).square(), 0)
        sizes[chosen] = 0
        if not sizes.any():
            break
        chosen.append(int(sizes.argmax()))
        base = torch.cat([base, rest[chosen[-1:]] / rest[chosen[-1]].norm()])
    return base


def longest_first(cosines: Tensor, sizes: Tensor, rcond: float) -> tuple[Tensor, Tensor, Tensor]:
    """C = L L^T, the longest rest first: L (..., m, m) in the gradients' own order, pivots, rank (...).

    A gradient whose rest is no more than rounding leaves of its parts is taken to depend on those before.

    Args:
        cosines: (..., m, m) float64; zero rows for zero gradients.
        sizes: (..., m) float64, the squared norms, up to a common factor.
        rcond: cut-off on squared rests of unit gradients.
    """
    m = cosines.shape[-1]
    lower, parts = torch.zeros_like(cosines), torch.zeros_like(cosines)
    rest = cosines.diagonal(dim1=-2, dim2=-1).clone()
    rank = torch.zeros(rest.shape[:-1], dtype=torch.int64, device=rest.device)
    pivots = []
    for k in range(m):
        cut = (rcond / 64 * (1 + parts.abs().sum(-1)).square()).clamp(min=2 * rcond)
        pivot = torch.where(rest > cut, rest * sizes, rest.clamp(max=0) - 1).argmax(-1, keepdim=True)
        best = rest.gather(-1, pivot)
        taken = best > cut.gather(-1, pivot)
        pivots.append(pivot)
        rank += taken.squeeze(-1)
        at = pivot.unsqueeze(-1)
        column = torch.take_along_dim(cosines, at, dim=-1).squeeze(-1)
        column = column - (lower @ torch.take_along_dim(lower, at, dim=-2).mT).squeeze(-1)
        column = torch.where((rest == -torch.inf) | ~taken, 0, column / best.sqrt())  # pivots taken before
        lower[..., k] = column.scatter(-1, pivot, torch.where(taken, best.sqrt(), 0))
        part = torch.where(taken, column / best.sqrt(), 0).scatter(-1, pivot, 0)
        parts = parts - part.unsqueeze(-1) * torch.take_along_dim(parts, at, dim=-2)
        parts = parts.scatter_add(-1, at.expand(*part.shape, 1), part.unsqueeze(-1))
        rest = (rest - column.square()).scatter(-1, pivot, -torch.inf)
    return lower, torch.cat(pivots, dim=-1), rank


def rotated(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """W J with orthogonal columns and the orthogonal J, by one-sided Jacobi rotations.

    Each is small where one column is much longer than the other: the short one keeps its digits (Demmel and
    Veselic 1992, "Jacobi's method is more accurate than QR"). Columns sit in a circle, and those that face
    each other turn at once; then all but the first move on by one seat.

    Args:
        matrix: (..., m, m) float64, columns of zeros among them.
    """
    m = matrix.shape[-1]
    if m == 1:
        return matrix, torch.ones_like(matrix)
    unit = torch.eye(m, dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
    seats = torch.nn.functional.pad(torch.cat([matrix, unit], -2), (0, m % 2))
    half = seats.shape[-1] // 2
    for _ in range(_SWEEPS):
        largest = torch.zeros_like(matrix[..., 0, :1])
        for _ in range(2 * half - 1):
            left, right = seats[..., :half], seats[..., half:].flip(-1)
            one, other = left[..., :m, :], right[..., :m, :]
            product = (one * other).sum(-2)
            first, second = one.square().sum(-2), other.square().sum(-2)
            cosine = product.abs() / (first.sqrt() * second.sqrt())  # NaN beside zeros, which do not turn
            turning = cosine > m * _EPS / 4
            half_gap = (second - first) / (2 * product)
            tangent = torch.where(half_gap < 0, -1.0, 1.0) / (half_gap.abs() + (1 + half_gap.square()).sqrt())
            tangent = torch.where(turning, tangent, 0).unsqueeze(-2)
            scale = 1 / (1 + tangent.square()).sqrt()
            sine = scale * tangent
            right, left = sine * left + scale * right, scale * left - sine * right
            seats = torch.cat([left[..., :1], right[..., :1], left[..., 1:], right[..., 1:].flip(-1)], -1)
            largest = torch.maximum(largest, torch.where(turning, cosine, 0).amax(-1, keepdim=True))
        if matrix.device.type == "cpu" and bool((largest < 1e-8).all()):
            break  # the next ones would be below its square
    return seats[..., :m, :m], seats[..., m:, :m]


class AlignedMTLOperator(PreferenceOperator):
    """Aligned-MTL (Senushkin et al. 2023, arXiv:2305.19000): all principal components made equally long.

    What is exact and where the limits are: :class:`fastconfig.methods.AlignedMTL`.

    Args:
        pref_vector: (m,) finite numbers, not negative, a tensor or a list; 1/m each by default.
        scale_mode: the common length, from the eigenvalues of G: "min", "median" or "rmse".
        rcond, process_group: as in :func:`ConFIG_update`.

    Raises:
        TypeError, ValueError: for another ``pref_vector``, ``scale_mode`` or ``rcond``.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.AlignedMTLOperator().calculate_gradient(grads)
        tensor([0.2840, 0.4734])
    """

    _kind = AlignedMTL
    _rule = AlignedMTL()

    def __init__(
        self,
        pref_vector: Any = None,
        scale_mode: str = "min",
        *,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(pref_vector, rcond=rcond, process_group=process_group, scale_mode=scale_mode)
