"""Partial Gram matrices in Triton: every program sums its chunks of columns, in a fixed order.

Bytes: m N b read. Flops: m (m + 1) / 2 N multiply-adds in float64 (FLOAT64), or in float32 over the V
columns of a thread, added up in float64. Up to 8 gradients, all sums stay in registers, one a thread;
beyond, tiles of MP rows are multiplied by ``tl.dot``, K columns at a time.

Partials are (problems, programs, m, m) float64 with the upper triangle written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .partials import is_unsafe, of_problem, size_of_set
from .rows import SCATTERED, STRIDED, TABLE, load_columns, locate, origin_of, row_of, stretch

_STRIDED = tl.constexpr(STRIDED)
_TABLE = tl.constexpr(TABLE)
_SCATTERED = tl.constexpr(SCATTERED)


@triton.jit
def _add(x, y, s, WANTED: tl.constexpr):
    """s (T) + sum over a thread's columns of x * y (T, V)."""
    if WANTED:
        s = s + tl.sum(x * y, axis=1).to(tl.float64)
    return s


@triton.jit
def _square(a, b, c, d, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, M: tl.constexpr):
    """Products of up to four rows with each other: aa ab ac ad bb bc bd cc cd dd."""
    s0 = _add(a, a, s0, M > 0)
    s1 = _add(a, b, s1, M > 1)
    s2 = _add(a, c, s2, M > 2)
    s3 = _add(a, d, s3, M > 3)
    s4 = _add(b, b, s4, M > 1)
    s5 = _add(b, c, s5, M > 2)
    s6 = _add(b, d, s6, M > 3)
    s7 = _add(c, c, s7, M > 2)
    s8 = _add(c, d, s8, M > 3)
    s9 = _add(d, d, s9, M > 3)
    return s0, s1, s2, s3, s4, s5, s6, s7, s8, s9


@triton.jit
def _cross(x, a, b, c, d, s0, s1, s2, s3, M: tl.constexpr):
    """Products of one row with up to four others."""
    s0 = _add(x, a, s0, M > 0)
    s1 = _add(x, b, s1, M > 1)
    s2 = _add(x, c, s2, M > 2)
    s3 = _add(x, d, s3, M > 3)
    return s0, s1, s2, s3


@triton.jit
def _rows(
    origin, entry, row_step, column_step, n, first: tl.constexpr, m: tl.constexpr, MODE: tl.constexpr
):  # fmt: skip
    """Where four rows from ``first`` on lie: pointer, step and length of each."""
    a, sa, na = row_of(origin, entry, row_step, column_step, n, first, m, MODE)
    b, sb, nb = row_of(origin, entry, row_step, column_step, n, first + 1, m, MODE)
    c, sc, nc = row_of(origin, entry, row_step, column_step, n, first + 2, m, MODE)
    d, sd, nd = row_of(origin, entry, row_step, column_step, n, first + 3, m, MODE)
    return a, b, c, d, sa, sb, sc, sd, na, nb, nc, nd


@triton.jit
def _load(
    pointer, step, start, n, WANTED: tl.constexpr,
    T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr, FLOAT64: tl.constexpr,
):  # fmt: skip
    """(T, V) of a row in the dtype of the products; something that is not used if it is not WANTED."""
    kind: tl.constexpr = tl.float64 if FLOAT64 else tl.float32
    if WANTED:
        x = load_columns(pointer, step, start, n, T, V, MODE).to(kind)
    else:
        x = tl.zeros((T, V), kind)
    return x


@triton.jit
def _put(out, s, i: tl.constexpr, j: tl.constexpr, m: tl.constexpr):
    if j < m:
        tl.store(out + i * m + j, tl.sum(s, axis=0))


@triton.jit
def _put_square(out, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, first: tl.constexpr, m: tl.constexpr):
    _put(out, s0, first, first, m)
    _put(out, s1, first, first + 1, m)
    _put(out, s2, first, first + 2, m)
    _put(out, s3, first, first + 3, m)
    _put(out, s4, first + 1, first + 1, m)
    _put(out, s5, first + 1, first + 2, m)
    _put(out, s6, first + 1, first + 3, m)
    _put(out, s7, first + 2, first + 2, m)
    _put(out, s8, first + 2, first + 3, m)
    _put(out, s9, first + 3, first + 3, m)


@triton.jit
def _put_cross(out, s0, s1, s2, s3, i: tl.constexpr, m: tl.constexpr):
    _put(out, s0, i, 4, m)
    _put(out, s1, i, 5, m)
    _put(out, s2, i, 6, m)
    _put(out, s3, i, 7, m)


@triton.jit(
    do_not_specialize=["n", "chunks", "segments", "batch_step", "row_step", "column_step", "problems"]
)
def gram_small(
    base, table, partials, n: tl.int64, chunks, segments, batch_step: tl.int64, row_step: tl.int64,
    column_step: tl.int64, problems, m: tl.constexpr,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, PB: tl.constexpr,
    MODE: tl.constexpr, FLOAT64: tl.constexpr, REPAIR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Partials of up to 8 gradients; REPAIR writes the second set, where the first is unsafe."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    problem = tl.program_id(1)
    if REPAIR:
        if is_unsafe(partials, problem, programs, m, n, MP, PB) == 0:
            return
        partials += size_of_set(problems, programs, m)
    origin = origin_of(base, problem, batch_step, MODE)
    zero = tl.zeros((T,), tl.float64)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    t0, t1, t2, t3, t4, t5, t6, t7, t8, t9 = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    u0, u1, u2, u3, u4, u5, u6, u7 = zero, zero, zero, zero, zero, zero, zero, zero
    v0, v1, v2, v3, v4, v5, v6, v7 = zero, zero, zero, zero, zero, zero, zero, zero
    chunk, last = stretch(chunks, programs, program)
    while chunk < last:
        entry, begin, length = locate(table, segments, chunk, n, m, WIDTH, MODE)
        pa, pb, pc, pd, sa, sb, sc, sd, na, nb, nc, nd = _rows(
            origin, entry, row_step, column_step, length, 0, m, MODE
        )
        pe, pf, pg, ph, se, sf, sg, sh, ne, nf, ng, nh = _rows(
            origin, entry, row_step, column_step, length, 4, m, MODE
        )
        end = tl.minimum(length, begin + (last - chunk) * tl.full((), WIDTH, tl.int64))
        for start in tl.range(begin, end, T * V, num_stages=STAGES):
            a = _load(pa, sa, start, na, m > 0, T, V, MODE, FLOAT64)
            b = _load(pb, sb, start, nb, m > 1, T, V, MODE, FLOAT64)
            c = _load(pc, sc, start, nc, m > 2, T, V, MODE, FLOAT64)
            d = _load(pd, sd, start, nd, m > 3, T, V, MODE, FLOAT64)
            e = _load(pe, se, start, ne, m > 4, T, V, MODE, FLOAT64)
            f = _load(pf, sf, start, nf, m > 5, T, V, MODE, FLOAT64)
            g = _load(pg, sg, start, ng, m > 6, T, V, MODE, FLOAT64)
            h = _load(ph, sh, start, nh, m > 7, T, V, MODE, FLOAT64)
            s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = _square(
                a, b, c, d, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, m
            )
            t0, t1, t2, t3, t4, t5, t6, t7, t8, t9 = _square(
                e, f, g, h, t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, m - 4
            )
            u0, u1, u2, u3 = _cross(a, e, f, g, h, u0, u1, u2, u3, m - 4)
            u4, u5, u6, u7 = _cross(b, e, f, g, h, u4, u5, u6, u7, m - 4)
            v0, v1, v2, v3 = _cross(c, e, f, g, h, v0, v1, v2, v3, m - 4)
            v4, v5, v6, v7 = _cross(d, e, f, g, h, v4, v5, v6, v7, m - 4)
        chunk += tl.cdiv(end - begin, WIDTH).to(tl.int32)
    out = of_problem(partials, problem, programs, m) + program * m * m
    _put_square(out, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, 0, m)
    _put_square(out, t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, 4, m)
    _put_cross(out, u0, u1, u2, u3, 0, m)
    _put_cross(out, u4, u5, u6, u7, 1, m)
    _put_cross(out, v0, v1, v2, v3, 2, m)
    _put_cross(out, v4, v5, v6, v7, 3, m)


@triton.jit(
    do_not_specialize=["n", "chunks", "segments", "batch_step", "row_step", "column_step", "problems", "m"]
)
def gram_tiles(
    base, table, partials, n: tl.int64, chunks, segments, batch_step: tl.int64, row_step: tl.int64,
    column_step: tl.int64, problems, m,
    WIDTH: tl.constexpr, K: tl.constexpr, V: tl.constexpr, MP: tl.constexpr, PB: tl.constexpr,
    MODE: tl.constexpr, FLOAT64: tl.constexpr, REPAIR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Partials of up to MP gradients by matrix products of (MP, K) tiles."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    problem = tl.program_id(1)
    if REPAIR:
        if is_unsafe(partials, problem, programs, m, n, MP, PB) == 0:
            return
        partials += size_of_set(problems, programs, m)
    origin = origin_of(base, problem, batch_step, MODE)
    i = tl.arange(0, MP)
    total = tl.zeros((MP, MP), tl.float64)
    chunk, last = stretch(chunks, programs, program)
    while chunk < last:
        entry, begin, length = locate(table, segments, chunk, n, m, WIDTH, MODE)
        end = tl.minimum(length, begin + (last - chunk) * tl.full((), WIDTH, tl.int64))
        for start in tl.range(begin, end, K, num_stages=STAGES):
            x = _tile(origin, entry, row_step, column_step, start, length, m, MP, K, V, MODE)
            if FLOAT64:
                if x.dtype.primitive_bitwidth == 16:  # Triton 3.6 fails on widened factors; this sum hides it
                    x = tl.sum(x[:, :, None].to(tl.float64), axis=2)
                x = x.to(tl.float64)
                total = tl.dot(x, tl.trans(x), total, out_dtype=tl.float64)
            else:
                x = x.to(tl.float32)
                total += tl.dot(x, tl.trans(x), input_precision="ieee").to(tl.float64)
        chunk += tl.cdiv(end - begin, WIDTH).to(tl.int32)
    out = of_problem(partials, problem, programs, m) + program * m * m
    upper = (i[:, None] <= i[None, :]) & (i < m)[None, :]
    tl.store(out + i[:, None] * m + i[None, :], total, mask=upper)


@triton.jit
def _tile(
    origin, entry, row_step, column_step, start, n, m,
    MP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """(MP, K) elements; zeros beyond the last row, the last column, and where there is no such row."""
    i = tl.arange(0, MP)
    columns = start + tl.arange(0, K)
    present = i < m
    steps = tl.full((MP,), 1, tl.int64) * column_step
    if MODE < _TABLE:
        pointers = origin + i * row_step
    else:
        addresses = tl.load(entry + 2 + i, mask=present, other=0)
        pointers = addresses.to(origin.dtype)
        present = present & (addresses != 0)
    if MODE == _SCATTERED:
        steps = tl.load(entry + 2 + m + i, mask=present, other=1)
    if (MODE == _STRIDED) | (MODE == _SCATTERED):
        mask = present[:, None] & (columns < n)[None, :]
        x = tl.load(pointers[:, None] + columns[None, :] * steps[:, None], mask=mask, other=0.0)
    else:
        pointers = tl.multiple_of(pointers, 16)[:, None] + columns[None, :]
        whole = columns // V * V + V <= n  # one answer a vector, so that it is loaded at once
        x = tl.load(pointers, mask=present[:, None] & whole[None, :], other=0.0)
        if (start + K > n) & (n % V != 0):
            rest = present[:, None] & ((columns < n) & (columns >= n // V * V))[None, :]
            x = tl.where(whole[None, :], x, tl.load(pointers, mask=rest, other=0.0))
    return x
