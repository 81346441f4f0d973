"""The whole update in one launch: rows stay in registers over a barrier of the grid.

Bytes: (m + 1) N b, where two passes move (2 m + 1) N b. Every program keeps one chunk of up to 4
gradients, so all programs must run at once: a cooperative launch, of no more than the device holds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .coefficients_triton import at, coefficients_of
from .gram_triton import load_row, put_square, square
from .partials_triton import sum_partials
from .rows_triton import locate, origin_of, result_of, store_columns


@triton.jit
def grid_barrier(arrived):
    """Wait for all programs: the sign of ``arrived`` flips when the last one comes, so nothing is reset."""
    tl.debug_barrier()
    others = tl.num_programs(0) - 1
    step = tl.where(tl.program_id(0) == 0, -2147483648 - others, 1)
    before = tl.atomic_add(arrived, step, sem="acq_rel", scope="gpu")
    now = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
    while (before ^ now) >= 0:
        now = tl.atomic_add(arrived, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=[
        "n", "segments", "batch_step", "row_step", "column_step",
        "method", "length", "track_id", "mean", "has_weights",
    ]
)  # fmt: skip
def whole(
    base, table, out, partials, arrived, weights,
    n: tl.int64, segments, batch_step: tl.int64, row_step: tl.int64, column_step: tl.int64,
    method, length, track_id, mean, has_weights, rcond, m: tl.constexpr,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, PB: tl.constexpr,
    MODE: tl.constexpr,
):  # fmt: skip
    """One problem: a program for every chunk; float64 products."""
    program, problem = tl.program_id(0), tl.program_id(1)
    origin = origin_of(base, problem, batch_step, MODE)
    entry, start, size = locate(table, segments, program, n, m, WIDTH, MODE)
    a = load_row(origin, entry, row_step, column_step, start, size, 0, m, T, V, MODE, True)
    b = load_row(origin, entry, row_step, column_step, start, size, 1, m, T, V, MODE, True)
    c = load_row(origin, entry, row_step, column_step, start, size, 2, m, T, V, MODE, True)
    d = load_row(origin, entry, row_step, column_step, start, size, 3, m, T, V, MODE, True)
    zero = tl.zeros((T,), tl.float64)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = square(
        a, b, c, d, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, m
    )
    put_square(partials + program * m * m, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, 0, m)
    grid_barrier(arrived)
    matrix = sum_partials(partials, problem, tl.num_programs(0), m, MP, PB)
    x = coefficients_of(
        matrix, partials, weights, table, method, length, track_id, mean, has_weights, rcond, m, MP, False
    )
    total = at(x, 0, MP) * a
    if m > 1:
        total += at(x, 1, MP) * b
    if m > 2:
        total += at(x, 2, MP) * c
    if m > 3:
        total += at(x, 3, MP) * d
    target = result_of(base, out, entry, problem, n, MODE)
    store_columns(target, total, start, size, T, V, MODE)
