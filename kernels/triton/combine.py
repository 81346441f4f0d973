"""out = sum_i c_i g_i in Triton: float64 sums, rounded once; chunks from last to first.

Bytes: (m + 1) N b. What a program of the first pass read last is still in the L2 cache when this one begins:
SHARERS programs go backwards through its stretch of chunks together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import length_at, load_columns, locate, origin_of, result_of, row_of, store_columns, stretch


@triton.jit
def _term(
    origin, entry, c, row_step, column_step, start, n, i, m,
    T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """c_i, and (T, V) of row i; zeros for i >= m."""
    pointer, step, n = row_of(origin, entry, row_step, column_step, n, i, m, MODE)
    x = load_columns(pointer, step, start, length_at(n, start), T, V, MODE)
    return tl.load(c + i, mask=i < m, other=0.0), x


@triton.jit(
    do_not_specialize=[
        "n", "chunks", "segments", "batch_step", "row_step", "column_step", "m", "sharers",
    ]
)  # fmt: skip
def combine(
    base, table, out, c, n: tl.int64, chunks, segments, batch_step: tl.int64, row_step: tl.int64,
    column_step: tl.int64, m, sharers,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The second pass, with coefficients c (problems, m); four rows are on their way at a time."""
    problem = tl.program_id(1)
    c += problem.to(tl.int64) * m
    origin = origin_of(base, problem, batch_step, MODE)
    first, last = stretch(chunks, tl.num_programs(0) // sharers, tl.program_id(0) // sharers)
    for chunk in range(first + tl.program_id(0) % sharers, last, sharers):
        chunk = first + last - 1 - chunk
        entry, begin, length = locate(table, segments, chunk, n, m, WIDTH, MODE)
        target = result_of(base, out, entry, problem, n, MODE)
        for offset in range(0, WIDTH, T * V):
            start = begin + offset
            total = tl.zeros((T, V), tl.float64)
            for i in range(0, m, 4):
                ca, a = _term(origin, entry, c, row_step, column_step, start, length, i, m, T, V, MODE)
                cb, b = _term(origin, entry, c, row_step, column_step, start, length, i + 1, m, T, V, MODE)
                cc, d = _term(origin, entry, c, row_step, column_step, start, length, i + 2, m, T, V, MODE)
                cd, e = _term(origin, entry, c, row_step, column_step, start, length, i + 3, m, T, V, MODE)
                total += ca * a.to(tl.float64)
                total += cb * b.to(tl.float64)
                total += cc * d.to(tl.float64)
                total += cd * e.to(tl.float64)
            store_columns(target, total, start, length, T, V, MODE)
