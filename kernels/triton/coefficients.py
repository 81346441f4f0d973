"""Gram matrix -> coefficients in Triton, for one problem in one program: fastconfig/methods on a GPU.

A matrix is an (MP, MP) tile of float64 with zeros beyond m, a vector an (MP,) one. Everything is on
C = D^-1 G D^-1 and on coefficients of the unit gradients; the division by d comes last.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .partials import chosen, sum_partials

METHODS = ("config", "pcgrad", "ppcgrad", "imtlg")
_CONFIG, _PCGRAD, _PPCGRAD, _IMTLG = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
# in the order of LENGTHS of fastconfig/methods/base.py
_PROJECTION, _MINIMUM, _MAXIMUM, _HARMONIC = (
    tl.constexpr(0),
    tl.constexpr(1),
    tl.constexpr(2),
    tl.constexpr(3),
)
_ARITHMETIC, _SPECIFIC, _NONE = tl.constexpr(4), tl.constexpr(6), tl.constexpr(7)
_INFINITY = tl.constexpr(float("inf"))
_EPSILON = tl.constexpr(2.220446049250313e-16)


@triton.jit
def at(vector, k, MP: tl.constexpr):
    """vector[k]"""
    return tl.sum(tl.where(tl.arange(0, MP) == k, vector, 0.0), axis=0)


@triton.jit
def row(matrix, k, MP: tl.constexpr):
    """matrix[k, :]"""
    return tl.sum(tl.where(tl.arange(0, MP)[:, None] == k, matrix, 0.0), axis=0)


@triton.jit
def column(matrix, k, MP: tl.constexpr):
    """matrix[:, k]"""
    return tl.sum(tl.where(tl.arange(0, MP)[None, :] == k, matrix, 0.0), axis=1)


@triton.jit
def put(vector, k, value, MP: tl.constexpr):
    """vector with value at k"""
    return tl.where(tl.arange(0, MP) == k, value, vector)


@triton.jit
def put_column(matrix, k, values, MP: tl.constexpr):
    """matrix with values as column k"""
    return tl.where(tl.arange(0, MP)[None, :] == k, values[:, None], matrix)


@triton.jit
def times(matrix, vector):
    """matrix @ vector"""
    return tl.sum(matrix * vector[None, :], axis=1)


@triton.jit
def transposed_times(matrix, vector):
    """matrix^T @ vector"""
    return tl.sum(matrix * vector[:, None], axis=0)


@triton.jit
def pivoted_cholesky(cosines, tolerance, m, MP: tl.constexpr):
    """L in the rows' own order (columns beyond the rank zero), pivots, rank.

    Stops taking rows where the largest Schur diagonal, sin^2 of the angle to the span of the rows already
    taken, is at most ``tolerance``.
    """
    i = tl.arange(0, MP)
    lower = tl.zeros((MP, MP), tl.float64)
    schur = tl.where(i < m, 1.0, -_INFINITY).to(tl.float64)
    pivots = tl.zeros((MP,), tl.int32)
    rank = tl.sum(tl.zeros((MP,), tl.int32), axis=0)
    for k in range(m):
        best = tl.max(schur, axis=0)
        pivot = tl.min(tl.where(schur == best, i, MP), axis=0)
        taken = best > tolerance
        root = tl.sqrt(tl.maximum(best, tolerance))
        values = column(cosines, pivot, MP) - times(lower, row(lower, pivot, MP))
        values = tl.where(schur == -_INFINITY, 0.0, values / root)  # rows taken before
        values = tl.where(i == pivot, root, values)
        values = tl.where(i < m * taken.to(tl.int32), values, 0.0)
        lower = put_column(lower, k, values, MP)
        pivots = put(pivots, k, pivot, MP)
        schur = tl.where(i == pivot, -_INFINITY, schur - values * values)
        rank += taken.to(tl.int32)
    return lower, pivots, rank


@triton.jit
def solve_pivoted(lower, pivots, w, m, MP: tl.constexpr):
    """x with L L^T x = w for a factor of full rank, L in the rows' own order."""
    z = tl.zeros((MP,), tl.float64)
    for k in range(m):
        pivot = tl.sum(tl.where(tl.arange(0, MP) == k, pivots, 0), axis=0)
        values = row(lower, pivot, MP)
        z = put(z, k, (at(w, pivot, MP) - tl.sum(values * z, axis=0)) / at(values, k, MP), MP)
    x = tl.zeros((MP,), tl.float64)
    for step in range(m):
        k = m - 1 - step
        pivot = tl.sum(tl.where(tl.arange(0, MP) == k, pivots, 0), axis=0)
        values = column(lower, k, MP)
        x = put(x, pivot, (at(z, k, MP) - tl.sum(values * x, axis=0)) / at(values, pivot, MP), MP)
    return x


@triton.jit
def cholesky(matrix, m, MP: tl.constexpr):
    """The lower factor; what lies beyond m stays zero."""
    i = tl.arange(0, MP)
    factor = tl.zeros((MP, MP), tl.float64)
    for k in range(m):
        values = column(matrix, k, MP)
        root = tl.sqrt(tl.maximum(at(values, k, MP), 0.0))
        values = tl.where(root > 0, tl.where(i >= k, values / root, 0.0), 0.0)
        factor = put_column(factor, k, values, MP)
        matrix -= values[:, None] * values[None, :]
    return factor


@triton.jit
def solve(factor, b, m, MP: tl.constexpr):
    """(F F^T)^-1 b for a lower factor."""
    z = tl.zeros((MP,), tl.float64)
    for k in range(m):
        values = row(factor, k, MP)
        z = put(z, k, (at(b, k, MP) - tl.sum(values * z, axis=0)) / at(values, k, MP), MP)
    x = tl.zeros((MP,), tl.float64)
    for step in range(m):
        k = m - 1 - step
        values = column(factor, k, MP)
        x = put(x, k, (at(z, k, MP) - tl.sum(values * x, axis=0)) / at(values, k, MP), MP)
    return x


@triton.jit
def pinv_apply(cosines, w, rcond, m, MP: tl.constexpr):
    """pinv(C) w, the minimum-norm solution; zero where the range of C does not support the weights.

    At full rank C x = w is solved directly; below, pinv(C) = L (L^T L)^-2 L^T.
    """
    lower, pivots, rank = pivoted_cholesky(cosines, 2 * rcond, m, MP)
    if rank == m:
        x = solve_pivoted(lower, pivots, w, m, MP)
    else:
        i = tl.arange(0, MP)
        inner = tl.where((i[:, None] == i[None, :]) & (i >= rank)[:, None], 1.0, 0.0).to(tl.float64)
        for q in range(m):
            values = row(lower, q, MP)
            inner += values[:, None] * values[None, :]
        factor = cholesky(inner, m, MP)
        projected = transposed_times(lower, w)
        y = solve(factor, projected, m, MP)
        supported = tl.sum(projected * y, axis=0)
        x = times(lower, solve(factor, y, m, MP))
        x = tl.where(supported > rcond * rcond * tl.sum(w * w, axis=0), x, 0.0)
    return x


@triton.jit
def tracked(norms, length, track_id, MP: tl.constexpr):
    """The length that the Track* models scale every gradient to, over the non-zero gradients."""
    alive = norms > 0
    count = tl.sum(alive.to(tl.float64), axis=0)
    if length == _SPECIFIC:
        value = at(norms, track_id, MP)
    elif length == _MINIMUM:
        value = tl.min(tl.where(alive, norms, _INFINITY), axis=0)
    elif length == _MAXIMUM:
        value = tl.max(norms, axis=0)
    elif length == _HARMONIC:
        value = count / tl.sum(tl.where(alive, 1 / tl.where(alive, norms, 1.0), 0.0), axis=0)
    elif length == _ARITHMETIC:
        value = tl.sum(norms, axis=0) / count
    else:
        value = tl.exp(tl.sum(tl.where(alive, tl.log(tl.where(alive, norms, 1.0)), 0.0), axis=0) / count)
    return tl.where(count > 0, value, 0.0)


@triton.jit
def config(cosines, norms, weights, has_weights, length, track_id, rcond, m, MP: tl.constexpr):
    """ConFIG (arXiv:2408.11104, equations 2 and 3): x = pinv(C) w, scaled by the length model."""
    i = tl.arange(0, MP)
    w = tl.load(weights + i, mask=i < m * has_weights, other=1.0)
    x = pinv_apply(cosines, tl.where(norms > 0, w, 0.0), rcond, m, MP)
    projections = times(cosines, x)  # unit gradients on the direction
    squared = tl.sum(x * projections, axis=0)
    if length == _PROJECTION:
        total = tl.sum(norms * projections, axis=0)
    else:
        total = tl.sum(projections, axis=0) * tracked(norms, length, track_id, MP)
    scale = tl.where(squared > 0, total / squared, 0.0)
    if length != _NONE:
        x *= scale
    return x


@triton.jit
def pcgrad(cosines, norms, inverse, gram, order, m, MP: tl.constexpr, ORDERED: tl.constexpr):
    """PCGrad (arXiv:2001.06782, algorithm 1), every gradient in a row of b; ``gram`` only if ORDERED."""
    i = tl.arange(0, MP)
    own = i[:, None] == i[None, :]
    b = tl.where(own, norms[:, None], 0.0)
    for step in range(m):
        if ORDERED:
            j = tl.load(order + i * m + step, mask=i < m, other=0).to(tl.int32)
            mask = (i < m)[:, None] & (i < m)[None, :]
            against = tl.load(gram + j[:, None] * m + i[None, :], mask=mask, other=0.0)
            mine = tl.load(gram + j * (m + 1), mask=i < m, other=0.0)
            scale = tl.where(mine > 0, 1 / tl.sqrt(tl.where(mine > 0, mine, 1.0)), 0.0)
            against = against * scale[:, None] * inverse[None, :]
            against = tl.where(j[:, None] == i[None, :], 1.0, against)
            here = j[:, None] == i[None, :]
            itself = j == i
        else:
            against = row(cosines, step, MP)[None, :]
            here = i[None, :] == step
            itself = i == step
        along = tl.sum(b * against, axis=1)
        along = tl.where(itself | (along > 0), 0.0, along)
        b = tl.where(here, b - along[:, None], b)
    return tl.sum(b, axis=0)


@triton.jit
def ppcgrad(cosines, norms):
    """PPCGrad: every projection against the original gradients."""
    conflicts = tl.where(cosines < 0, cosines, 0.0)
    return norms - tl.sum(norms[:, None] * conflicts, axis=0)


@triton.jit
def imtlg(cosines, inverse, rcond, m, MP: tl.constexpr):
    """IMTL-G: equal projections on all unit gradients, coefficients that sum to one."""
    x = pinv_apply(cosines, tl.where(inverse > 0, 1.0, 0.0).to(tl.float64), rcond, m, MP)
    total = tl.sum(x * inverse, axis=0)
    size = tl.sum(tl.abs(x * inverse), axis=0)
    resolved = tl.abs(total) > m * _EPSILON * size
    return tl.where(resolved, x / tl.where(resolved, total, 1.0), 0.0)


@triton.jit
def coefficients_of(
    matrix, gram, weights, order, method, length, track_id, mean, has_weights, rcond, m,
    MP: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """(MP,) coefficients from the Gram matrix; all NaN if its diagonal has NaN or Inf."""
    i = tl.arange(0, MP)
    own = i[:, None] == i[None, :]
    diagonal = tl.sum(tl.where(own, matrix, 0.0), axis=0)
    finite = (diagonal == diagonal) & (diagonal < _INFINITY)
    broken = tl.max(((i < m) & (finite == 0)).to(tl.int32), axis=0) > 0
    diagonal = tl.where(finite, diagonal, 0.0)
    norms = tl.sqrt(diagonal)
    inverse = tl.where(norms > 0, 1 / tl.where(norms > 0, norms, 1.0), 0.0)
    cosines = tl.where(broken, 0.0, matrix) * inverse[:, None] * inverse[None, :]
    cosines = tl.where(own, 1.0, cosines)
    if method == _CONFIG:
        x = config(cosines, norms, weights, has_weights, length, track_id, rcond, m, MP)
    elif method == _PCGRAD:
        x = pcgrad(cosines, norms, inverse, gram, order, m, MP, ORDERED)
        if mean != 0:
            x /= m
    elif method == _PPCGRAD:
        x = ppcgrad(cosines, norms)
        if mean != 0:
            x /= m
    elif method == _IMTLG:
        x = imtlg(cosines, inverse, rcond, m, MP)
    else:  # unknown here: never another method's answer
        x = norms * float("nan")
    return tl.where(broken, float("nan"), x * inverse)


@triton.jit(
    do_not_specialize=[
        "n", "problems", "programs", "weights_step", "order_step",
        "method", "length", "track_id", "mean", "has_weights", "m",
    ]
)  # fmt: skip
def coefficients(
    partials, gram, c, weights, order, n: tl.int64, problems, programs, weights_step, order_step,
    method, length, track_id, mean, has_weights, rcond, m,
    MP: tl.constexpr, PB: tl.constexpr, FLOAT64: tl.constexpr, ORDERED: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """c (problems, m) from gram (problems, m, m), which SUM adds up first: a program for every problem."""
    i = tl.arange(0, MP)
    problem = tl.program_id(0).to(tl.int64)
    gram += problem * m * m
    places = gram + i[:, None] * m + i[None, :]
    mask = (i < m)[:, None] & (i < m)[None, :]
    if SUM:  # through memory: what is left of partials lies badly in the registers
        partials = chosen(partials, problem, problems, programs, m, n, MP, PB, FLOAT64)
        tl.store(places, sum_partials(partials, problem, programs, m, MP, PB), mask=mask)
        tl.debug_barrier()
    matrix = tl.load(places, mask=mask, other=0.0)
    x = coefficients_of(
        matrix, gram, weights + problem * weights_step, order + problem * order_step,
        method, length, track_id, mean, has_weights, rcond, m, MP, ORDERED,
    )  # fmt: skip
    tl.store(c + problem * m + i, x, mask=i < m)
