"""Where a program of a Triton kernel finds its columns: rows by stride or by address, vectors of 16 bytes.

Columns are cut into chunks of WIDTH, of which a program takes neighbouring ones, and these into tiles of
T * V, a thread's V side by side. MODE says where rows come from:

DENSE      one tensor: base + problem * batch_step + i * row_step, unit stride, on multiples of 16 bytes;
STRIDED    one tensor, any stride and alignment, element by element;
TABLE      a table in device memory, unit stride, on multiples of 16 bytes;
SCATTERED  a table, any stride and alignment, element by element.

The table, int64 words: the number of chunks up to the end of every segment; then per segment its length,
the address of the result, m row addresses (0 is a missing gradient), m steps in elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

DENSE, STRIDED, TABLE, SCATTERED = 0, 1, 2, 3
_DENSE = tl.constexpr(DENSE)
_STRIDED = tl.constexpr(STRIDED)
_TABLE = tl.constexpr(TABLE)
_SCATTERED = tl.constexpr(SCATTERED)


@triton.jit
def stretch(chunks, programs, program):
    """A program's share of neighbouring chunks: the first, and the one behind the last."""
    each, rest = chunks // programs, chunks % programs
    first = program * each + tl.minimum(program, rest)
    return first, first + each + (program < rest).to(tl.int32)


@triton.jit
def find_segment(table, segments, chunk):
    """The segment that a chunk lies in, by bisection."""
    low = 0
    high = segments - 1
    while low < high:
        middle = (low + high) // 2
        if chunk < tl.load(table + middle):
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit
def locate(table, segments, chunk, n, m, WIDTH: tl.constexpr, MODE: tl.constexpr):
    """Entry, first column and length of the segment that a chunk lies in."""
    if MODE < _TABLE:
        entry = table
        start = chunk * tl.full((), WIDTH, tl.int64)
        length = n
    else:
        segment = find_segment(table, segments, chunk)
        entry = table + segments + segment * (2 + 2 * m)
        before = tl.load(table + segment - 1, mask=segment > 0, other=0)
        start = (chunk - before) * WIDTH
        length = tl.load(entry)
    return entry, start, length


@triton.jit
def aligned(address, origin):
    """An address that is a multiple of 16 as a pointer like ``origin``.

    The hint is lost on an argument; Triton 3.2 takes it where a pointer is made of an integer only, newer
    versions see through that: a sum needs it twice.
    """
    return tl.multiple_of(address.to(origin.dtype), 16)


@triton.jit
def origin_of(base, problem, batch_step, MODE: tl.constexpr):
    """Where a problem's rows start; with a table, only the type matters."""
    if MODE < _TABLE:
        base += problem.to(tl.int64) * batch_step
    if MODE == _DENSE:
        base = tl.multiple_of(base, 16)
    return base


@triton.jit
def row_of(origin, entry, row_step, column_step, n, i, m, MODE: tl.constexpr):
    """A row's address as a pointer, its step in elements, and its length: n, 0 if there is no such row."""
    step = column_step
    present = i < m
    if MODE == _DENSE:
        pointer = aligned(tl.multiple_of(origin + i * row_step, 16).to(tl.int64), origin)
    elif MODE == _STRIDED:
        pointer = origin + i * row_step
    else:
        address = tl.load(entry + 2 + i, mask=present, other=0)
        present = address != 0
        if MODE == _TABLE:
            pointer = aligned(address, origin)
        else:
            pointer = address.to(origin.dtype)
            step = tl.load(entry + 2 + m + i, mask=present, other=1)
    return pointer, step, tl.where(present, n, 0)


@triton.jit
def result_of(base, out, entry, problem, n, MODE: tl.constexpr):
    """Where a segment's result goes."""
    if MODE == _DENSE:
        pointer = aligned(tl.multiple_of(out + problem.to(tl.int64) * n, 16).to(tl.int64), base)
    elif MODE == _STRIDED:
        pointer = out + problem.to(tl.int64) * n
    elif MODE == _TABLE:
        pointer = aligned(tl.load(entry + 1), base)
    else:
        pointer = tl.load(entry + 1).to(base.dtype)
    return pointer


@triton.jit
def columns_of(T: tl.constexpr, V: tl.constexpr):
    """(T, V) columns of a tile, from 0 on."""
    return tl.arange(0, T)[:, None] * V + tl.arange(0, V)[None, :]


@triton.jit
def columns_left(start, n, T: tl.constexpr, V: tl.constexpr):
    """How many columns of a tile lie in the row, in 32 bits; none or less beyond its end."""
    return tl.minimum(n - start, T * V).to(tl.int32)


@triton.jit
def length_at(n, start):
    """The length of a row; one that is not there ends where a tile starts, within 32 bits of it."""
    return tl.where(n > 0, n, start)


@triton.jit
def whole_vectors(left, T: tl.constexpr, V: tl.constexpr):
    """(T, V): vectors that lie in the row as a whole; one mask a vector, so that it is loaded at once."""
    whole = tl.arange(0, T) * V + V <= left
    return tl.broadcast_to(whole[:, None], (T, V))


@triton.jit
def rest_of(columns, left, V: tl.constexpr):
    """(T, V): columns behind the last whole vector."""
    return (columns < left) & (columns >= left // V * V)


@triton.jit
def load_columns(pointer, step, start, n, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr):
    """(T, V) elements of a row of length n; zeros beyond its end."""
    columns = columns_of(T, V)
    left = columns_left(start, n, T, V)
    if (MODE == _STRIDED) | (MODE == _SCATTERED):
        x = tl.load(pointer + (start + columns) * step, mask=columns < left, other=0.0)
    else:
        pointers = pointer + (start + columns)
        whole = whole_vectors(left, T, V)
        x = tl.load(pointers, mask=whole, other=0.0)
        if (left < T * V) & (left % V != 0):
            x = tl.where(whole, x, tl.load(pointers, mask=rest_of(columns, left, V), other=0.0))
    return x


@triton.jit
def store_columns(pointer, x, start, n, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr):
    """Write what lies in the row, rounded to its dtype; half precision through float32."""
    columns = columns_of(T, V)
    left = columns_left(start, n, T, V)
    if pointer.dtype.element_ty != tl.float64:
        x = x.to(tl.float32)
    x = x.to(pointer.dtype.element_ty)
    pointers = pointer + (start + columns)
    if (MODE == _STRIDED) | (MODE == _SCATTERED):
        tl.store(pointers, x, mask=columns < left)
    else:
        tl.store(pointers, x, mask=whole_vectors(left, T, V))
        if (left < T * V) & (left % V != 0):
            tl.store(pointers, x, mask=rest_of(columns, left, V))


@triton.jit(do_not_specialize=["start", "count", "a", "b", "c", "d", "e", "f", "g", "h"])
def write_words(
    table, start, count,
    a: tl.int64, b: tl.int64, c: tl.int64, d: tl.int64, e: tl.int64, f: tl.int64, g: tl.int64, h: tl.int64,
):  # fmt: skip
    """Eight words of a table, from the launch's own arguments: what a CUDA graph can replay."""
    i = tl.arange(0, 8)
    words = tl.where(i == 0, a, tl.where(i == 1, b, tl.where(i == 2, c, tl.where(i == 3, d, e))))
    words = tl.where(i == 5, f, tl.where(i == 6, g, tl.where(i == 7, h, words)))
    tl.store(table + start + i, words, mask=start + i < count)
