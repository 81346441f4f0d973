"""Sums of partial Gram matrices in Triton, in a fixed order: the same bits whoever adds them up."""

from __future__ import annotations

import triton
import triton.language as tl

# G_ii / N below which float32 products may have lost digits to underflow
_LEAST = tl.constexpr(1e-30)


@triton.jit
def _indices(m, MP: tl.constexpr):
    """(MP, MP) offsets into an upper triangle for both halves of a matrix, and which exist."""
    i = tl.arange(0, MP)[:, None]
    j = tl.arange(0, MP)[None, :]
    return tl.minimum(i, j) * m + tl.maximum(i, j), (i < m) & (j < m)


@triton.jit
def of_problem(partials, problem, programs, m):
    """Where a problem's partials start."""
    return partials + problem.to(tl.int64) * programs * m * m


@triton.jit
def size_of_set(problems, programs, m):
    """Elements of all partials: the second set, of products taken again, lies behind the first."""
    return tl.full((), 1, tl.int64) * problems * programs * m * m


@triton.jit
def is_unsafe(partials, problem, programs, m, n, MP: tl.constexpr, PB: tl.constexpr):
    """Whether a diagonal entry is so small, or so large, that float32 products may have lost it."""
    p = tl.arange(0, PB)[:, None]
    i = tl.arange(0, MP)[None, :]
    first = of_problem(partials, problem, programs, m)
    total = tl.zeros((PB, MP), tl.float64)
    for start in range(0, programs, PB):
        mask = (start + p < programs) & (i < m)
        total += tl.load(first + (start + p) * m * m + i * m + i, mask=mask, other=0.0)
    diagonal = tl.sum(total, axis=0)
    safe = (diagonal >= _LEAST * n) & (diagonal < float("inf"))
    bad = (tl.arange(0, MP) < m) & (safe == 0)
    return tl.max(bad.to(tl.int32), axis=0) > 0


@triton.jit
def chosen(
    partials, problem, problems, programs, m, n, MP: tl.constexpr, PB: tl.constexpr, FLOAT64: tl.constexpr
):
    """The partials that count: the second set, of float64 products, where the first is unsafe."""
    if not FLOAT64:
        unsafe = is_unsafe(partials, problem, programs, m, n, MP, PB)
        partials += unsafe.to(tl.int64) * size_of_set(problems, programs, m)
    return partials


@triton.jit
def sum_partials(partials, problem, programs, m, MP: tl.constexpr, PB: tl.constexpr):
    """(MP, MP) Gram matrix of a problem, zeros beyond m; PB partials at a time, past the L1 cache."""
    offsets, exists = _indices(m, MP)
    p = tl.arange(0, PB)[:, None, None]
    first = of_problem(partials, problem, programs, m)
    total = tl.zeros((PB, MP, MP), tl.float64)
    for start in range(0, programs, PB):
        mask = (start + p < programs) & exists[None, :, :]
        places = first + (start + p) * m * m + offsets[None, :, :]
        total += tl.load(places, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["problems", "programs", "m", "n"])
def sum_rows(
    partials, gram, problems, programs, m, n: tl.int64,
    MP: tl.constexpr, PB: tl.constexpr, FLOAT64: tl.constexpr,
):  # fmt: skip
    """gram (problems, m, m): a program adds one row of one problem."""
    i = tl.program_id(0)
    problem = tl.program_id(1)
    partials = chosen(partials, problem, problems, programs, m, n, MP, PB, FLOAT64)
    p = tl.arange(0, PB)[:, None]
    j = tl.arange(0, MP)[None, :]
    first = of_problem(partials, problem, programs, m) + tl.minimum(i, j) * m + tl.maximum(i, j)
    total = tl.zeros((PB, MP), tl.float64)
    for start in range(0, programs, PB):
        mask = (start + p < programs) & (j < m)
        total += tl.load(first + (start + p) * m * m, mask=mask, other=0.0)
    columns = tl.arange(0, MP)
    out = gram + problem.to(tl.int64) * m * m + i * m
    tl.store(out + columns, tl.sum(total, axis=0), mask=columns < m)
