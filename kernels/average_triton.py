"""Moving averages m_i <- beta m_i + (1 - beta) g_i in Triton, in place: float64, rounded once.

Bytes: k momenta and k gradients read, k momenta written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .clock_triton import number
from .rows_triton import load_columns, locate, row_of, store_columns


@triton.jit
def _average(x, g, beta):
    """(T, V) in the momentum's dtype."""
    return (beta * x.to(tl.float64) + (1 - beta) * g.to(tl.float64)).to(x.dtype)


@triton.jit(do_not_specialize=["n", "chunks", "segments", "k", "beta"])
def accumulate(
    base, like, table, n: tl.int64, chunks, segments, k, beta: tl.int64,
    WIDTH: tl.constexpr, T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The momenta alone, a row of programs for each.

    The table's rows are k momenta, then their gradients; ``base`` and ``like`` have the dtypes of both.
    """
    j = tl.program_id(1)
    rows = 2 * k
    beta = number(beta)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        entry, first, length = locate(table, segments, chunk, n, rows, WIDTH, MODE)
        momentum, unit, present = row_of(base, entry, 0, 1, j, rows, MODE)
        gradient, step, came = row_of(like, entry, 0, 1, k + j, rows, MODE)
        for offset in range(0, WIDTH, T * V):
            start = first + offset
            x = load_columns(momentum, present, unit, start, length, T, V, MODE)
            g = load_columns(gradient, came, step, start, length, T, V, MODE)
            x = _average(x, g, beta)
            store_columns(momentum, x, start, tl.where(present, length, 0), T, V, MODE)


@triton.jit
def average_four(
    base, like, entry, start, n, which, beta, first: tl.constexpr, m: tl.constexpr,
    T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """(T, V) of up to four momenta from ``first`` on, those updated whose bits in ``which`` are set.

    The table's rows are m momenta, two others, and a gradient for every momentum. All are loaded before
    the first is written: the compiler may not move a load up past a store.
    """
    a, da, pa, na = _load_pair(base, like, entry, start, n, first, m, T, V, MODE)
    b, db, pb, nb = _load_pair(base, like, entry, start, n, first + 1, m, T, V, MODE)
    c, dc, pc, nc = _load_pair(base, like, entry, start, n, first + 2, m, T, V, MODE)
    d, dd, pd, nd = _load_pair(base, like, entry, start, n, first + 3, m, T, V, MODE)
    a = _renew(a, da, pa, start, na, which, beta, first, m, T, V, MODE)
    b = _renew(b, db, pb, start, nb, which, beta, first + 1, m, T, V, MODE)
    c = _renew(c, dc, pc, start, nc, which, beta, first + 2, m, T, V, MODE)
    d = _renew(d, dd, pd, start, nd, which, beta, first + 3, m, T, V, MODE)
    return a, b, c, d


@triton.jit
def _load_pair(
    base, like, entry, start, n, i: tl.constexpr, m: tl.constexpr,
    T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """A momentum, its gradient, where the momentum lies, and its length, 0 if there is none."""
    if i < m:
        rows: tl.constexpr = 2 * m + 2
        pointer, unit, present = row_of(base, entry, 0, 1, i, rows, MODE)
        gradient, step, came = row_of(like, entry, 0, 1, m + 2 + i, rows, MODE)
        x = load_columns(pointer, present, unit, start, n, T, V, MODE)
        g = load_columns(gradient, came, step, start, n, T, V, MODE)
        length = tl.where(present, n, 0)
    else:
        pointer = base
        x = tl.zeros((T, V), base.dtype.element_ty)
        g = x
        length = n
    return x, g, pointer, length


@triton.jit
def _renew(
    x, g, pointer, start, n, which, beta, i: tl.constexpr, m: tl.constexpr,
    T: tl.constexpr, V: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The momentum with its gradient, if its bit is set; written too."""
    if i < m:  # noqa: SIM102  # decided by the compiler, the other by the kernel
        if (which >> i) & 1:
            x = _average(x, g, beta)
            store_columns(pointer, x, start, n, T, V, MODE)
    return x
