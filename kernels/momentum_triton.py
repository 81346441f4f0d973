"""A step of M-ConFIG in Triton (arXiv:2408.11104, algorithm 1): two passes over the state, in place.

Bytes, one of k gradients a step: the first pass reads m momenta and k gradients and writes k momenta; the
second reads m momenta, ``fake`` and ``second``, and writes these two and the update.

The table's rows are m momenta, ``fake``, ``second``, and what else the first pass reads; the results are the
update's. ``base`` has the dtype of the state, ``like`` that of the gradients and of the update.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .clock_triton import corrections, decayed, number
from .coefficients_triton import coefficients_of
from .gram_triton import products_of_chunks
from .partials_triton import chosen, is_unsafe, size_of_set, sum_partials
from .rows_triton import load_columns, locate, result_of, row_of, store_columns

_EPSILON = tl.constexpr(1e-8)  # EPSILON of fastconfig/momenta.py


@triton.jit(do_not_specialize=["n", "chunks", "segments", "which", "beta"])
def accumulate_gram(
    base, like, table, partials, n: tl.int64, chunks, segments, which, beta: tl.int64, m: tl.constexpr,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, PB: tl.constexpr,
    MODE: tl.constexpr, FLOAT64: tl.constexpr, REPAIR: tl.constexpr,
):  # fmt: skip
    """Momenta whose bits in ``which`` are set, and partials of all as rounded; up to 8.

    REPAIR writes the second set, where the first is unsafe; it is told of none.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    if REPAIR:
        if is_unsafe(partials, tl.program_id(1), programs, m, n, MP, PB) == 0:
            return
        partials += size_of_set(1, programs, m)
    products_of_chunks(
        base, like, table, partials + program * m * m, n, chunks, segments, 0, 1, which, number(beta), m,
        WIDTH, T, V, MODE, FLOAT64, True,
    )  # fmt: skip


@triton.jit
def _update(u, square, correction):
    """u / (sqrt(second / (1 - beta_2^t)) + 1e-8), ``correction`` 1 / sqrt(1 - beta_2^t).

    In the dtype of the state: a float32 root and quotient, correctly rounded, add no more than float32
    results have, and float64 ones would take as long as the memory. Differences are taken before.
    """
    if square.dtype == tl.float64:
        return u / (tl.sqrt(square) * correction + _EPSILON)
    else:
        root = tl.sqrt_rn(square) * correction.to(tl.float32) + _EPSILON
        return tl.div_rn(u.to(tl.float32), root)


@triton.jit
def _rescale_chunks(
    base, like, table, c, steps, beta_1, beta_2, n, chunks, segments, m, rows,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Combine this program's chunks with the coefficients at ``c`` (m), from last to first; fake, second.

    ``steps`` points to the number of updates.
    """
    t = tl.load(steps)
    first = decayed(t, beta_1)
    correction = 1 / tl.sqrt(decayed(t, beta_2))
    scale = 1 / (1 - beta_1)
    for position in range(tl.program_id(0), chunks, tl.num_programs(0)):
        chunk = chunks - 1 - position
        entry, begin, length = locate(table, segments, chunk, n, rows, WIDTH, MODE)
        target = result_of(like, like, entry, 0, n, MODE)
        fake_at, fake_step, here = row_of(base, entry, 0, 1, m, rows, MODE)
        second_at, second_step, there = row_of(base, entry, 0, 1, m + 1, rows, MODE)
        for offset in range(0, WIDTH, T * V):
            start = begin + offset
            fake = load_columns(fake_at, here, fake_step, start, length, T, V, MODE)
            second = load_columns(second_at, there, second_step, start, length, T, V, MODE)
            u = tl.zeros((T, V), tl.float64)
            for i in range(m):
                pointer, step, present = row_of(base, entry, 0, 1, i, rows, MODE)
                x = load_columns(pointer, present, step, start, length, T, V, MODE)
                u += tl.load(c + i) * x.to(tl.float64)
            now = first * u
            gradient = (now - beta_1 * fake.to(tl.float64)) * scale
            square = beta_2 * second.to(tl.float64) + (1 - beta_2) * gradient * gradient
            square = square.to(second.dtype)
            store_columns(fake_at, now, start, length, T, V, MODE)
            store_columns(second_at, square, start, length, T, V, MODE)
            store_columns(target, _update(u, square, correction), start, length, T, V, MODE)


@triton.jit(do_not_specialize=["beta_1", "beta_2", "n", "chunks", "segments", "m", "rows"])
def rescale(
    base, like, table, c, steps, beta_1: tl.int64, beta_2: tl.int64, n: tl.int64, chunks, segments, m, rows,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The second pass with coefficients c (m)."""
    _rescale_chunks(
        base, like, table, c, steps, number(beta_1), number(beta_2), n, chunks, segments, m, rows,
        WIDTH, T, V, MODE,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "beta_1", "beta_2", "n", "chunks", "segments", "m", "rows", "programs",
        "method", "length", "track_id", "mean", "has_weights",
    ]
)  # fmt: skip
def finish_step(
    base, like, table, partials, scratch, weights, steps, beta_1: tl.int64, beta_2: tl.int64, n: tl.int64,
    chunks, segments, m, rows, programs, method, length, track_id, mean, has_weights, rcond,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, PB: tl.constexpr,
    MODE: tl.constexpr, FLOAT64: tl.constexpr,
):  # fmt: skip
    """The second pass, in which every program adds the partials, corrects them, and solves.

    ``steps`` has the m counts, then the number of updates; ``scratch`` m doubles a program, through which
    its threads share the coefficients.
    """
    program = tl.program_id(0)
    beta_1 = number(beta_1)
    partials = chosen(partials, tl.program_id(1), 1, programs, m, n, MP, PB, FLOAT64)
    r = corrections(steps, beta_1, m, MP)
    matrix = sum_partials(partials, tl.program_id(1), programs, m, MP, PB) * r[:, None] * r[None, :]
    x = coefficients_of(
        matrix, partials, weights, table, method, length, track_id, mean, has_weights, rcond, m, MP, False
    )
    i = tl.arange(0, MP)
    c = scratch + program * m
    tl.store(c + i, x * r, mask=i < m)
    tl.debug_barrier()
    _rescale_chunks(
        base, like, table, c, steps + m, beta_1, number(beta_2), n, chunks, segments, m, rows,
        WIDTH, T, V, MODE,
    )  # fmt: skip
