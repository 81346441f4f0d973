"""G = A A^T on a CPU in one read: float64 products and sums, in an order that N alone decides.

Bytes: m N b read. Flops: m (m + 1) / 2 N multiply-adds. Up to DIRECT gradients all sums stay in registers
and elements come straight from memory; beyond, blocks of columns are widened to float64 once and
multiplied tile by tile (GROUP x GROUP) from the caches.

Table of a problem, int64 words, per segment: length, address of the result, m row addresses (0 is a
missing gradient), m steps in elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import literally, njit

from .ir_numba import DIRECT, GROUP, ITEMSIZE, LANES, PREFETCHED
from .vectors_numba import (
    address,
    copy_element,
    keep,
    peek_double,
    peek_int,
    poke_double,
    tile,
    triangle,
    widen,
)


@njit(nogil=True)
def entry_words(m: int) -> int:
    """int64 words of one segment in a table."""
    return 2 + 2 * m


@njit(nogil=True)
def present_rows(entry: int, m: int, present: Any) -> tuple[int, bool]:
    """How many gradients a segment has, and whether all are contiguous; writes which."""
    alive, contiguous = 0, True
    for i in range(m):
        if peek_int(entry + 8 * (2 + i)) != 0:
            present[alive] = i
            alive += 1
            contiguous &= peek_int(entry + 8 * (2 + m + i)) == 1
    return alive, contiguous


@njit(nogil=True)
def pack(source: int, step: int, count: int, target: int, size: int) -> None:
    """Copy elements to contiguous memory, padded with zeros to a multiple of LANES."""
    for k in range(count):
        copy_element(source + k * step * size, target + k * size, size)
    zero = np.zeros(1)
    for k in range(count, (count + LANES - 1) // LANES * LANES):
        copy_element(address(zero), target + k * size, size)


@njit(nogil=True)
def tiles(wide: int, stride: int, count: int, m: int, sums: int, ahead: int, step: int) -> None:
    """sums += products of m widened rows, tile after tile; each fetches its share of the next block."""
    groups = (m + GROUP - 1) // GROUP
    share = 8 * min(PREFETCHED, (2 * m + groups * (groups + 1) - 1) // (groups * (groups + 1)))
    last = ahead + 8 * (m - 1)
    for i in range(0, m, GROUP):
        rows = min(GROUP, m - i)
        left = wide + i * stride
        tile(left, left, stride, count, sums, rows, 0, min(ahead, last), step)
        ahead += share
        sums += rows * (rows + 1) // 2 * LANES * 8
        for j in range(i + GROUP, m, GROUP):
            columns = min(GROUP, m - j)
            right = wide + j * stride
            tile(left, right, stride, count, sums, rows, columns, min(ahead, last), step)
            ahead += share
            sums += rows * columns * LANES * 8


@njit(nogil=True)
def horizontal(vector: int) -> float:
    """Sum of one vector's doubles; clears them."""
    total = 0.0
    for lane in range(LANES):
        total += peek_double(vector + 8 * lane)
        poke_double(vector + 8 * lane, 0.0)
    return total


@njit(nogil=True)
def flush(vectors: Any, present: Any, alive: int, partial: int, m: int) -> None:
    """Add the sums, in the order in which the tiles wrote them, to the packed upper triangle ``partial``."""
    sums = address(vectors)
    group = alive if alive <= DIRECT else GROUP
    for i in range(0, alive, group):
        for j in range(i, alive, group):
            for a in range(i, min(i + group, alive)):
                for b in range(a if i == j else j, min(j + group, alive)):
                    p, q = present[a], present[b]
                    target = partial + 8 * (p * m - p * (p - 1) // 2 + q - p)
                    poke_double(target, peek_double(target) + horizontal(sums))
                    sums += 8 * LANES


@njit(nogil=True)
def gram_columns(entry: int, first: int, last: int, m: int, partial: int, kind: int) -> None:
    """partial += products of a segment's columns [first, last)."""
    literally(kind)
    size = ITEMSIZE[kind]
    width = 256 if m <= 32 else 128  # columns of a widened block: at most 64 KiB up to m = 64
    present = np.empty(m, np.int64)
    rows = np.empty(m, np.int64)
    ahead = np.empty(m + PREFETCHED - 1, np.int64)
    alive, contiguous = present_rows(entry, m, present)
    sums = np.zeros(alive * (alive + 1) // 2 * LANES)
    memory = np.empty(alive * width + 8 if alive > DIRECT else 0)
    wide = (address(memory) + 63) // 64 * 64  # vectors that straddle cache lines cost twice
    packed = np.empty(0)
    start = first
    while start < last:
        count = last - start
        if contiguous and count >= LANES:
            count = count // LANES * LANES
            padded = count
            for i in range(alive):
                rows[i] = peek_int(entry + 8 * (2 + present[i])) + start * size
        else:
            count = min(count, width)
            padded = (count + LANES - 1) // LANES * LANES
            if len(packed) == 0:
                packed = np.empty(alive * width)
            for i in range(alive):
                step = peek_int(entry + 8 * (2 + m + present[i]))
                rows[i] = address(packed) + 8 * width * i
                source = peek_int(entry + 8 * (2 + present[i])) + start * step * size
                pack(source, step, count, rows[i], size)
        if alive <= DIRECT:
            triangle(address(rows), alive, padded, address(sums), kind)
        else:
            for block in range(0, padded, width):
                n = min(width, padded - block)
                for i in range(alive):
                    widen(rows[i] + block * size, wide + 8 * width * i, n, kind)
                for i in range(alive + PREFETCHED - 1):
                    ahead[i] = rows[min(i, alive - 1)] + min(block + width, padded - 1) * size
                tiles(wide, 8 * width, n, alive, address(sums), address(ahead), LANES * size)
        start += count
    flush(sums, present, alive, partial, m)
    keep(memory)
