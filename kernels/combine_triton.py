"""out = sum_i c_i g_i in Triton: float64 sums, rounded once; chunks from last to first.

Bytes: (m + 1) N b. What the first pass read last is still in the L2 cache when this one begins.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .coefficients_triton import coefficients_of
from .partials_triton import chosen, sum_partials
from .rows_triton import load_columns, locate, origin_of, result_of, row_of, store_columns


@triton.jit
def combine_chunks(
    base, table, out, c, n, chunks, segments, batch_step, row_step, column_step, m,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Write this program's chunks, with the coefficients at ``c`` (m)."""
    problem = tl.program_id(1)
    origin = origin_of(base, problem, batch_step, MODE)
    for position in range(tl.program_id(0), chunks, tl.num_programs(0)):
        chunk = chunks - 1 - position
        entry, first, length = locate(table, segments, chunk, n, m, WIDTH, MODE)
        target = result_of(base, out, entry, problem, n, MODE)
        for offset in range(0, WIDTH, T * V):
            start = first + offset
            total = tl.zeros((T, V), tl.float64)
            for i in range(m):
                pointer, step, present = row_of(origin, entry, row_step, column_step, i, m, MODE)
                x = load_columns(pointer, present, step, start, length, T, V, MODE)
                total += tl.load(c + i) * x.to(tl.float64)
            store_columns(target, total, start, length, T, V, MODE)


@triton.jit(do_not_specialize=["n", "chunks", "segments", "batch_step", "row_step", "column_step", "m"])
def combine(
    base, table, out, c, n: tl.int64, chunks, segments, batch_step: tl.int64, row_step: tl.int64,
    column_step: tl.int64, m,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The second pass, with coefficients c (problems, m)."""
    c += tl.program_id(1).to(tl.int64) * m
    combine_chunks(
        base, table, out, c, n, chunks, segments, batch_step, row_step, column_step, m, WIDTH, T, V, MODE
    )


@triton.jit(
    do_not_specialize=[
        "n", "chunks", "segments", "batch_step", "row_step", "column_step", "m", "programs", "weights_step",
        "method", "length", "track_id", "mean", "has_weights",
    ]
)  # fmt: skip
def finish(
    base, table, out, partials, scratch, weights,
    n: tl.int64, chunks, segments, batch_step: tl.int64, row_step: tl.int64,
    column_step: tl.int64, m, programs, weights_step,
    method, length, track_id, mean, has_weights, rcond,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, PB: tl.constexpr,
    MODE: tl.constexpr, FLOAT64: tl.constexpr,
):  # fmt: skip
    """Second launch of the fused update: every program adds the partials, solves, and combines its chunks.

    ``scratch`` has m doubles a program, through which its threads share the coefficients.
    """
    program, problem = tl.program_id(0), tl.program_id(1)
    partials = chosen(partials, problem, tl.num_programs(1), programs, m, n, MP, PB, FLOAT64)
    matrix = sum_partials(partials, problem, programs, m, MP, PB)
    x = coefficients_of(
        matrix, partials, weights + problem.to(tl.int64) * weights_step, table,
        method, length, track_id, mean, has_weights, rcond, m, MP, False,
    )  # fmt: skip
    i = tl.arange(0, MP)
    c = scratch + (problem.to(tl.int64) * tl.num_programs(0) + program) * m
    tl.store(c + i, x, mask=i < m)
    tl.debug_barrier()
    combine_chunks(
        base, table, out, c, n, chunks, segments, batch_step, row_step, column_step, m, WIDTH, T, V, MODE
    )
