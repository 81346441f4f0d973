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
    diagonal,
    keep,
    peek_double,
    peek_int,
    poke_double,
    tile,
    triangle,
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
def pack_rows(
    entry: int,
    m: int,
    present: Any,
    alive: int,
    start: int,
    count: int,
    rows: Any,
    packed: int,
    width: int,
    size: int,
) -> None:
    """Pack ``count`` columns of the rows that are present, ``width`` doubles apart; ``rows`` says where."""
    for i in range(alive):
        step = peek_int(entry + 8 * (2 + m + present[i]))
        rows[i] = packed + 8 * width * i
        source = peek_int(entry + 8 * (2 + present[i])) + start * step * size
        pack(source, step, count, rows[i], size)


@njit(nogil=True)
def block_products(
    rows: int, alive: int, first: int, count: int, wide: int, stride: int, sums: int, ahead: int, kind: int
) -> None:
    """sums += products of a block of columns, which goes to ``wide`` as doubles on the way.

    Groups of rows with themselves, then with each other. Every tile fetches its share of the ``alive``
    addresses at ``ahead``, the next block.
    """
    literally(kind)
    step = LANES * ITEMSIZE[kind]
    groups = (alive + GROUP - 1) // GROUP
    tiles = groups * (groups + 1) // 2
    share = 8 * min(PREFETCHED, (alive + tiles - 1) // tiles)
    last = ahead + 8 * (alive - 1)
    for i in range(0, alive, GROUP):
        m = min(GROUP, alive - i)
        source, target = rows + 8 * i, wide + stride * i
        diagonal(source, m, first, count, target, stride, sums, min(ahead, last), step, kind)
        ahead += share
        sums += m * (m + 1) // 2 * LANES * 8
    for i in range(0, alive, GROUP):
        for j in range(i + GROUP, alive, GROUP):
            n = min(GROUP, alive - j)
            tile(wide + stride * i, wide + stride * j, n, stride, count, sums, min(ahead, last), step)
            ahead += share
            sums += GROUP * n * LANES * 8


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
    """Add the sums, in the order of block_products, to the packed upper triangle ``partial``."""
    sums = address(vectors)
    group = alive if alive <= DIRECT else GROUP
    for apart in range(2):  # groups with themselves, then with each other
        for i in range(0, alive, group):
            for j in range(i + group * apart, alive if apart else i + 1, group):
                for a in range(i, min(i + group, alive)):
                    for b in range(j if apart else a, min(j + group, alive)):
                        p, q = present[a], present[b]
                        target = partial + 8 * (p * m - p * (p - 1) // 2 + q - p)
                        poke_double(target, peek_double(target) + horizontal(sums))
                        sums += 8 * LANES


@njit(nogil=True)
def gram_columns(entry: int, first: int, last: int, m: int, partial: int, kind: int) -> None:
    """partial += products of a segment's columns [first, last)."""
    literally(kind)
    size = ITEMSIZE[kind]
    width = 256 if m <= 8 else 128  # columns of a block that stays in L1 with its next one
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
            pack_rows(entry, m, present, alive, start, count, rows, address(packed), width, size)
        if alive <= DIRECT:
            triangle(address(rows), alive, padded, address(sums), kind)
        else:
            for block in range(0, padded, width):
                n = min(width, padded - block)
                for i in range(alive + PREFETCHED - 1):
                    ahead[i] = rows[min(i, alive - 1)] + min(block + width, padded - 1) * size
                block_products(
                    address(rows), alive, block, n, wide, 8 * width, address(sums), address(ahead), kind
                )
        start += count
    flush(sums, present, alive, partial, m)
    keep(memory)
