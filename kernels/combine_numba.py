"""out = sum_i c_i g_i on a CPU in one read and one write: float64 sums, rounded once.

Bytes: (m + 1) N b. The table is that of gram_numba.py.
"""

from __future__ import annotations

import numpy as np
from numba import literally, njit

from .gram_numba import pack_rows, present_rows
from .ir_numba import ITEMSIZE, LANES
from .vectors_numba import address, copy_element, fence, peek_double, peek_int, weighted_sum

BLOCK = 512  # columns of strided rows that are packed at a time


@njit(nogil=True)
def combine_columns(entry: int, first: int, last: int, m: int, c: int, stream: int, kind: int) -> None:
    """Write a segment's columns [first, last); ``stream`` past the caches, where the address allows it."""
    literally(kind)
    size = ITEMSIZE[kind]
    present = np.empty(m, np.int64)
    rows = np.empty(m, np.int64)
    weights = np.empty(m)
    alive, contiguous = present_rows(entry, m, present)
    broken = False
    for i in range(m):
        broken |= np.isnan(peek_double(c + 8 * i))
    for i in range(alive):  # NaN also where the gradient that broke has no such parameter
        weights[i] = np.nan if broken else peek_double(c + 8 * present[i])
    out = peek_int(entry + 8)
    stream = 1 if stream and (out + first * size) % 64 == 0 else 0
    packed = np.empty(0)
    start = first
    while start < last:
        count = last - start
        if contiguous and count >= LANES:
            count = count // LANES * LANES
            for i in range(alive):
                rows[i] = peek_int(entry + 8 * (2 + present[i]))
            target = out + start * size
            weighted_sum(address(rows), alive, start, count, address(weights), target, stream, kind)
            if stream:
                fence()
        else:
            count = min(count, BLOCK)
            padded = (count + LANES - 1) // LANES * LANES
            if len(packed) == 0:
                packed = np.empty((alive + 1) * BLOCK)
            result = address(packed) + 8 * BLOCK * alive
            pack_rows(entry, m, present, alive, start, count, rows, address(packed), BLOCK, size)
            weighted_sum(address(rows), alive, 0, padded, address(weights), result, 0, kind)
            for k in range(count):
                copy_element(result + k * size, out + (start + k) * size, size)
        start += count
