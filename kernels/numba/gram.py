"""G = A A^T on a CPU in one read: float64 products and sums, in an order that N alone decides.

Bytes: m N b read. Flops: m (m + 1) / 2 N multiply-adds. Up to DIRECT gradients all sums stay in registers
and elements come straight from memory; beyond, blocks of columns are widened to float64 once and
multiplied tile by tile (GROUP x GROUP) from the caches.

Table of a problem, int64 words, per segment: length, address of the result, m row addresses (0 is a
missing gradient), m steps in elements.
"""

from __future__ import annotations

from .calls import allocate, release
from .ir import DIRECT, GROUP, ITEMSIZE, LANES, LINE, PREFETCHED
from .typed import Const, typed
from .vectors import (
    copy_element,
    diagonal,
    horizontal,
    line,
    peek_double,
    peek_int,
    poke_double,
    poke_int,
    tile,
    triangle,
)

WIDTH = 128  # columns of a block that stays in L1 with its next one
LINE_WIDTH = 1024  # columns of a row that stay in L1 while all others pass


@typed
def entry_words(m: int) -> int:
    """int64 words of one segment in a table."""
    return 2 + 2 * m


@typed
def triangle_size(m: int) -> int:
    """Entries of a packed upper triangle."""
    return m * (m + 1) // 2


@typed
def triangle_at(m: int, i: int, j: int) -> int:
    """Where entry (i, j), i <= j, is in a packed upper triangle."""
    return i * m - i * (i - 1) // 2 - i + j


@typed
def is_contiguous(entry: int, m: int) -> bool:
    """Whether all gradients that a segment has are."""
    for i in range(m):
        if peek_int(entry + 8 * (2 + i)) != 0 and peek_int(entry + 8 * (2 + m + i)) != 1:
            return False
    return True


@typed
def present_rows(entry: int, m: int, present: int) -> int:
    """How many gradients a segment has; writes which."""
    alive = 0
    for i in range(m):
        if peek_int(entry + 8 * (2 + i)) != 0:
            poke_int(present + 8 * alive, i)
            alive += 1
    return alive


@typed
def row_address(entry: int, present: int, i: int) -> int:
    """Where the i-th row that is present starts."""
    return peek_int(entry + 8 * (2 + peek_int(present + 8 * i)))


@typed
def pack(source: int, step: int, count: int, target: int, size: Const) -> None:
    """Copy elements to contiguous memory, padded with zeros to a multiple of LANES."""
    padded = (count + LANES - 1) // LANES * LANES
    for word in range(padded * size // 8):
        poke_int(target + 8 * word, 0)
    for k in range(count):
        copy_element(source + k * step * size, target + k * size, size)


@typed
def pack_rows(
    entry: int,
    m: int,
    present: int,
    alive: int,
    start: int,
    count: int,
    rows: int,
    packed: int,
    width: int,
    size: Const,
) -> None:
    """Pack ``count`` columns of the rows that are present, ``width`` doubles apart; ``rows`` says where."""
    for i in range(alive):
        step = peek_int(entry + 8 * (2 + m + peek_int(present + 8 * i)))
        source = row_address(entry, present, i) + start * step * size
        pack(source, step, count, packed + 8 * width * i, size)
        poke_int(rows + 8 * i, packed + 8 * width * i)


@typed
def block_products(
    rows: int,
    alive: int,
    first: int,
    count: int,
    wide: int,
    stride: int,
    sums: int,
    ahead: int,
    far: int,
    kind: Const,
) -> None:
    """sums += products of a block of columns, which goes to ``wide`` as doubles on the way.

    Groups of rows with themselves, then with each other. If it is ``far``, every tile fetches its share of
    the next block, the ``alive`` addresses at ``ahead``.
    """
    step = LANES * ITEMSIZE[kind] if far else 0
    groups = (alive + GROUP - 1) // GROUP
    tiles = groups * (groups + 1) // 2
    share = 8 * min(PREFETCHED, (alive + tiles - 1) // tiles)
    last = ahead + 8 * (alive - 1)
    for i in range(0, alive, GROUP):
        m = min(GROUP, alive - i)
        source, target = rows + 8 * i, wide + stride * i
        diagonal(source, m, first, count, target, stride, sums, min(ahead, last), step, kind)
        ahead += share
        sums += triangle_size(m) * LANES * 8
    for i in range(0, alive, GROUP):
        for j in range(i + GROUP, alive, GROUP):
            n = min(GROUP, alive - j)
            tile(wide + stride * i, wide + stride * j, n, stride, count, sums, min(ahead, last), step)
            ahead += share
            sums += GROUP * n * LANES * 8


@typed
def flush(sums: int, present: int, alive: int, partial: int, m: int) -> None:
    """Add the sums, in the order of block_products, to the packed upper triangle ``partial``."""
    group = alive if alive <= DIRECT else GROUP
    for apart in range(2):  # groups with themselves, then with each other
        for i in range(0, alive, group):
            for j in range(i + group * apart, alive if apart else i + 1, group):
                for a in range(i, min(i + group, alive)):
                    p = peek_int(present + 8 * a)
                    for b in range(j if apart else a, min(j + group, alive)):
                        target = partial + 8 * triangle_at(m, p, peek_int(present + 8 * b))
                        poke_double(target, peek_double(target) + horizontal(sums))
                        sums += 8 * LANES


@typed
def gram_columns(entry: int, first: int, last: int, m: int, partial: int, far: int, kind: Const) -> None:
    """partial += products of a segment's columns [first, last); ``far`` if they lie beyond the caches."""
    size = ITEMSIZE[kind]
    contiguous = is_contiguous(entry, m)
    pack_width = LANES if contiguous else WIDTH
    pairs = triangle_size(m)
    memory = allocate(LANES * pairs + m * ((WIDTH if m > DIRECT else 0) + pack_width + 3) + PREFETCHED + 8)
    sums = (memory + 63) // 64 * 64  # vectors that straddle cache lines cost twice
    wide = sums + 8 * LANES * pairs
    packed = wide + (8 * m * WIDTH if m > DIRECT else 0)
    present = packed + 8 * m * pack_width
    rows = present + 8 * m
    ahead = rows + 8 * m
    alive = present_rows(entry, m, present)
    for k in range(LANES * pairs):
        poke_double(sums + 8 * k, 0.0)
    start = first
    while start < last:
        count = last - start
        if contiguous and count >= LANES:
            count = count // LANES * LANES
            padded = count
            for i in range(alive):
                poke_int(rows + 8 * i, row_address(entry, present, i) + start * size)
        else:
            count = min(count, pack_width)
            padded = (count + LANES - 1) // LANES * LANES
            pack_rows(entry, m, present, alive, start, count, rows, packed, pack_width, size)
        if alive <= DIRECT:
            triangle(rows, alive, padded, sums, kind)
        else:
            for block in range(0, padded, WIDTH):
                n = min(WIDTH, padded - block)
                if far:
                    for i in range(alive + PREFETCHED - 1):
                        row = peek_int(rows + 8 * min(i, alive - 1))
                        poke_int(ahead + 8 * i, row + min(block + WIDTH, padded - 1) * size)
                block_products(rows, alive, block, n, wide, 8 * WIDTH, sums, ahead, far, kind)
        start += count
    flush(sums, present, alive, partial, m)
    release(memory)


@typed
def line_columns(entry: int, first: int, last: int, m: int, i: int, partial: int, kind: Const) -> None:
    """partial += products of row i, which is present, with all, of a segment's contiguous rows."""
    size = ITEMSIZE[kind]
    memory = allocate(LANES * m + m * (LANES + 2) + 8)
    sums = (memory + 63) // 64 * 64
    packed = sums + 8 * LANES * m
    present = packed + 8 * LANES * m
    rows = present + 8 * m
    alive = present_rows(entry, m, present)
    chosen = 0
    while peek_int(present + 8 * chosen) != i:
        chosen += 1
    for k in range(LANES * m):
        poke_double(sums + 8 * k, 0.0)
    whole = (last - first) // LANES * LANES
    for k in range(alive):
        poke_int(rows + 8 * k, row_address(entry, present, k) + first * size)
    for start in range(0, whole, LINE_WIDTH):
        line_block(rows, alive, chosen, start, min(LINE_WIDTH, whole - start), sums, kind)
    if first + whole < last:
        start, count = first + whole, last - first - whole
        pack_rows(entry, m, present, alive, start, count, rows, packed, LANES, size)
        line_block(rows, alive, chosen, 0, LANES, sums, kind)
    for k in range(alive):
        j = peek_int(present + 8 * k)
        target = partial + 8 * triangle_at(m, min(i, j), max(i, j))
        poke_double(target, peek_double(target) + horizontal(sums + 8 * LANES * k))
    release(memory)


@typed
def line_block(rows: int, alive: int, chosen: int, first: int, count: int, sums: int, kind: Const) -> None:
    """sums += products of the row ``chosen`` of those that are present with all, over a block of columns."""
    row = peek_int(rows + 8 * chosen)
    for k in range(0, alive, LINE):
        line(row, rows + 8 * k, min(LINE, alive - k), first, count, sums + 8 * LANES * k, kind)
