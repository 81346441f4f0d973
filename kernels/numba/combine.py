"""out = sum_i c_i g_i on a CPU in one read and one write: float64 sums, rounded once.

Bytes: (m + 1) N b. The table is that of gram.py.
"""

from __future__ import annotations

import numpy as np

from .calls import allocate, release
from .gram import is_contiguous, pack_rows, present_rows, row_address
from .ir import ITEMSIZE, LANES
from .typed import Const, typed
from .vectors import (
    copy_element,
    fence,
    peek_double,
    peek_int,
    poke_double,
    poke_int,
    weighted_sum,
)

BLOCK = 512  # columns of strided rows that are packed at a time


@typed
def present_weights(entry: int, m: int, c: int, present: int, weights: int) -> int:
    """How many gradients a segment has; writes which, and their coefficients."""
    alive = present_rows(entry, m, present)
    broken = False
    for i in range(m):
        broken |= np.isnan(peek_double(c + 8 * i))
    for i in range(alive):  # NaN also where the gradient that broke has no such parameter
        weight = np.nan if broken else peek_double(c + 8 * peek_int(present + 8 * i))
        poke_double(weights + 8 * i, weight)
    return alive


@typed
def combine_columns(entry: int, first: int, last: int, m: int, c: int, stream: int, kind: Const) -> None:
    """Write a segment's columns [first, last); ``stream`` past the caches, where the address allows it."""
    size = ITEMSIZE[kind]
    contiguous = is_contiguous(entry, m)
    width = LANES if contiguous else BLOCK
    weights = allocate(3 * m + (m + 1) * width)
    present = weights + 8 * m
    rows = present + 8 * m
    packed = rows + 8 * m
    result = packed + 8 * width * m
    alive = present_weights(entry, m, c, present, weights)
    out = peek_int(entry + 8)
    stream = 1 if stream and (out + first * size) % 64 == 0 else 0
    start = first
    while start < last:
        count = last - start
        target = out + start * size
        if contiguous and count >= LANES:
            count = count // LANES * LANES
            for i in range(alive):
                poke_int(rows + 8 * i, row_address(entry, present, i))
            weighted_sum(rows, alive, start, count, weights, target, stream, kind)
            if stream:
                fence()
        else:
            count = min(count, width)
            padded = (count + LANES - 1) // LANES * LANES
            pack_rows(entry, m, present, alive, start, count, rows, packed, width, size)
            weighted_sum(rows, alive, 0, padded, weights, result, 0, kind)
            for k in range(count):
                copy_element(result + k * size, target + k * size, size)
        start += count
    release(weights)
