"""A step of M-ConFIG on a CPU in one call: momenta and Gram matrix, coefficients, second moment and update.

Bytes, in vectors of N elements of the state: the first pass reads m momenta and k gradients and writes k
momenta; the second reads m momenta and both other vectors, and writes these two and the update. The chunks
are those of update.py; within one, a block of the chosen momenta is still in the L2 cache when its
products are taken. With many momenta of which few are chosen, only the products of these are taken, k m
instead of m (m + 1) / 2: all others are those of the step before.

Beside the table of gram.py, with the momenta as rows, per segment, int64 words: the addresses of fake
and second, k gradient addresses (0 is a missing gradient), k steps in elements.
"""

from __future__ import annotations

from functools import cache

from .cache import compiled
from .calls import allocate, call_coefficients, release
from .combine import present_weights
from .gram import entry_words, gram_columns, line_columns, pack, row_address, triangle_size
from .ir import DIRECT, ITEMSIZE, LANES
from .moments import BETA_1, DECAYED, MISSING, RCOND, moving_average, second_moment
from .typed import Const, typed
from .update import (
    FAR,
    PARTIALS,
    STREAMED,
    TABLE,
    WORDS,
    C,
    M,
    add_partials,
    form_partials,
    partials_size,
    prepare,
    run_chunks,
    run_pass,
)
from .vectors import (
    copy_element,
    fence,
    peek_double,
    peek_int,
    poke_double,
    poke_int,
)

ACCUMULATE, GRAM, RESCALE = 1, 2, 4  # steps that a call asks for
BLOCK = 1 << 14  # columns whose products are taken while the chosen momenta are in the cache
PACKED = 512  # columns of a strided gradient that are packed at a time

# words of a job behind those of update.py
COMING, CHOSEN, COUNT, GIVEN, NUMBERS, LINES, ALL_WORDS = range(WORDS, WORDS + 7)


@typed
def coming_words(k: int) -> int:
    """int64 words of a segment in the table of gradients."""
    return 2 + 2 * k


@typed
def coming_entry(job: int, entry: int) -> int:
    """What comes for the segment of an entry."""
    bytes_each = 8 * entry_words(peek_int(job + 8 * M))
    segment = (entry - peek_int(job + 8 * TABLE)) // bytes_each
    return peek_int(job + 8 * COMING) + 8 * coming_words(peek_int(job + 8 * COUNT)) * segment


@typed
def accumulate_row(
    row: int, gradient: int, step: int, given: int, first: int, last: int, beta: float, kind: Const
) -> None:
    """Columns [first, last) of a momentum."""
    size, given_size = ITEMSIZE[kind], ITEMSIZE[given]
    known = given if gradient != 0 else MISSING
    start = first
    if known == MISSING or step == 1:
        count = (last - first) // LANES * LANES
        moving_average(row + first * size, gradient + first * given_size, known, count, beta, kind)
        start += count
    if start == last:
        return
    packed = allocate(2 * PACKED)
    values = packed + 8 * PACKED
    while start < last:
        count = min(last - start, PACKED)
        padded = (count + LANES - 1) // LANES * LANES
        if known != MISSING:
            pack(gradient + start * step * given_size, step, count, packed, given_size)
        pack(row + start * size, 1, count, values, size)
        moving_average(values, packed, known, padded, beta, kind)
        for k in range(count):
            copy_element(values + k * size, row + (start + k) * size, size)
        start += count
    release(packed)


@typed
def is_chosen(chosen: int, k: int, i: int) -> bool:
    """Whether a momentum is among the first k of those that are."""
    found = False
    for a in range(k):
        found = found or peek_int(chosen + 8 * a) == i
    return found


@typed
def chosen_products(
    entry: int, first: int, last: int, m: int, chosen: int, k: int, partial: int, kind: Const
) -> None:
    """partial += products of the chosen momenta with all; twice those of two that are both chosen."""
    for a in range(k):
        i = peek_int(chosen + 8 * a)
        if peek_int(entry + 8 * (2 + i)) != 0:
            line_columns(entry, first, last, m, i, partial, kind)


@typed
def merge_products(gram: int, products: int, m: int, chosen: int, k: int) -> None:
    """Both have all products then: ``gram`` came with those of the chosen momenta only."""
    for i in range(m):
        for j in range(m):
            at = 8 * (i * m + j)
            first, second = is_chosen(chosen, k, i), is_chosen(chosen, k, j)
            if first or second:
                value = peek_double(gram + at)
                poke_double(products + at, value / 2 if first and second and i != j else value)
            poke_double(gram + at, peek_double(products + at))


@typed
def accumulate_piece(job: int, chunk: int, entry: int, first: int, last: int, kind: Const) -> None:
    """Columns [first, last) of a segment in the first pass; products too, where there is room for them."""
    m, k = peek_int(job + 8 * M), peek_int(job + 8 * COUNT)
    chosen, given = peek_int(job + 8 * CHOSEN), peek_int(job + 8 * GIVEN)
    coming = coming_entry(job, entry) + 16
    beta = peek_double(peek_int(job + 8 * NUMBERS) + 8 * BETA_1)
    partials = peek_int(job + 8 * PARTIALS)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for i in range(k):
            row = peek_int(entry + 8 * (2 + peek_int(chosen + 8 * i)))
            gradient, step = peek_int(coming + 8 * i), peek_int(coming + 8 * (k + i))
            if row != 0:
                accumulate_row(row, gradient, step, given, start, stop, beta, kind)
        if partials != 0:
            partial = partials + 8 * triangle_size(m) * chunk
            if peek_int(job + 8 * LINES) == 0:
                gram_columns(entry, start, stop, m, partial, peek_int(job + 8 * FAR), kind)
            else:
                chosen_products(entry, start, stop, m, chosen, k, partial, kind)


@typed
def rescale_piece(job: int, chunk: int, entry: int, first: int, last: int, kind: Const) -> None:
    """Columns [first, last) of a segment in the second pass."""
    size, written = ITEMSIZE[kind], peek_int(job + 8 * GIVEN)
    m, numbers = peek_int(job + 8 * M), peek_int(job + 8 * NUMBERS)
    written_size = ITEMSIZE[written]
    coming = coming_entry(job, entry)
    fake, second = peek_int(coming), peek_int(coming + 8)
    weights = allocate(3 * m + (m + 3) * LANES)
    present = weights + 8 * m
    rows = present + 8 * m
    packed = rows + 8 * m
    alive = present_weights(entry, m, peek_int(job + 8 * C), present, weights)
    for i in range(alive):
        poke_int(rows + 8 * i, row_address(entry, present, i))
    target = peek_int(entry + 8) + first * written_size
    stream = 1 if peek_int(job + 8 * STREAMED) and target % 64 == 0 else 0
    whole = (last - first) // LANES * LANES
    second_moment(rows, alive, first, whole, weights, fake, second, numbers, target, written, stream, kind)
    if stream:
        fence()
    count, start = last - first - whole, first + whole
    if count > 0:  # the last columns, in memory that they fill
        for i in range(alive):
            pack(row_address(entry, present, i) + start * size, 1, count, packed + 8 * LANES * i, size)
            poke_int(rows + 8 * i, packed + 8 * LANES * i)
        fakes = packed + 8 * LANES * m
        seconds, results = fakes + 8 * LANES, fakes + 16 * LANES
        pack(fake + start * size, 1, count, fakes, size)
        pack(second + start * size, 1, count, seconds, size)
        second_moment(rows, alive, 0, LANES, weights, fakes, seconds, numbers, results, written, 0, kind)
        for k in range(count):
            copy_element(fakes + k * size, fake + (start + k) * size, size)
            copy_element(seconds + k * size, second + (start + k) * size, size)
            copy_element(results + k * written_size, target + (whole + k) * written_size, written_size)
    release(weights)


@typed
def correct_and_solve(gram: int, c: int, coefficients: int, m: int, numbers: int, rule: int) -> None:
    """Coefficients of the momenta from their Gram matrix: that of the corrected ones is G_ij / (d_i d_j)."""
    decayed = numbers + 8 * DECAYED
    for i in range(m):
        for j in range(m):
            both = peek_double(decayed + 8 * i) * peek_double(decayed + 8 * j)
            poke_double(gram + 8 * (i * m + j), peek_double(gram + 8 * (i * m + j)) / both)
    call_coefficients(coefficients, gram, c, 1, m, rule, peek_double(numbers + 8 * RCOND))
    for i in range(m):
        poke_double(c + 8 * i, peek_double(c + 8 * i) / peek_double(decayed + 8 * i))


@typed
def accumulate_pass(job: int, kind: Const) -> None:
    """What every thread runs in the first pass."""
    run_chunks(job, accumulate_piece, False, kind)


@typed
def rescale_pass(job: int, kind: Const) -> None:
    """What every thread runs in the second pass."""
    run_chunks(job, rescale_piece, True, kind)


@cache
def bodies(kind: int) -> tuple[int, int]:
    """Addresses of what every thread runs in the first and in the second pass, for a state of ``kind``."""
    return compiled(accumulate_pass, kind), compiled(rescale_pass, kind)


# int64 words of a call
(
    STEPS,
    ROWS,
    ROW_SEGMENTS,
    ROW_COUNT,
    GRADIENTS,
    INDEXES,
    INDEX_COUNT,
    GRADIENT_KIND,
    FACTORS,
    PRODUCTS,
    KNOWN,
    COEFFICIENTS,
    RULE,
    ITEM_BYTES,
    THREADS,
    TEAM,
    ACCUMULATE_BODY,
    RESCALE_BODY,
) = range(18)


@typed
def momentum(call: int) -> None:
    """The steps asked for, on addresses.

    STEPS: ACCUMULATE updates the momenta, with GRAM their products too; RESCALE writes the results that the
    table ROWS names, from coefficients that follow from the products, or from the first row as it is.
    GRADIENT_KIND is that of gradients and results, ITEM_BYTES of an element of the state, FACTORS see
    moments.py. PRODUCTS (m, m) takes the Gram matrix of the momenta; KNOWN says whether it has that of
    before the step. COEFFICIENTS is fastconfig_coefficients of csrc, for TEAM see run_pass.
    """
    steps, m = peek_int(call + 8 * STEPS), peek_int(call + 8 * ROW_COUNT)
    table, segments = peek_int(call + 8 * ROWS), peek_int(call + 8 * ROW_SEGMENTS)
    chosen, k = peek_int(call + 8 * INDEXES), peek_int(call + 8 * INDEX_COUNT)
    numbers, products = peek_int(call + 8 * FACTORS), peek_int(call + 8 * PRODUCTS)
    threads, team = peek_int(call + 8 * THREADS), peek_int(call + 8 * TEAM)
    accumulate_body, rescale_body = peek_int(call + 8 * ACCUMULATE_BODY), peek_int(call + 8 * RESCALE_BODY)
    room = partials_size(table, segments, m)
    job = allocate(ALL_WORDS + room + m * (m + 1))
    partials = job + 8 * ALL_WORDS
    gram = partials + 8 * room
    c = gram + 8 * m * m
    chunks = prepare(job, table, segments, m, peek_int(call + 8 * ITEM_BYTES))
    poke_int(job + 8 * COMING, peek_int(call + 8 * GRADIENTS))
    poke_int(job + 8 * CHOSEN, chosen)
    poke_int(job + 8 * COUNT, k)
    poke_int(job + 8 * GIVEN, peek_int(call + 8 * GRADIENT_KIND))
    poke_int(job + 8 * NUMBERS, numbers)
    poke_int(job + 8 * C, c)
    if steps & GRAM:
        few = m > DIRECT and 4 * k <= m + 1  # otherwise tiles of all are as fast
        lines = few and peek_int(call + 8 * KNOWN) != 0
        poke_int(job + 8 * LINES, 1 if lines else 0)
        form_partials(job, partials, chunks, m, accumulate_body, threads, team)
        add_partials(partials, chunks, m, gram)
        if lines:
            merge_products(gram, products, m, chosen, k)
        else:
            for word in range(m * m):
                poke_double(products + 8 * word, peek_double(gram + 8 * word))
        coefficients, rule = peek_int(call + 8 * COEFFICIENTS), peek_int(call + 8 * RULE)
        correct_and_solve(gram, c, coefficients, m, numbers, rule)
    else:
        poke_int(job + 8 * PARTIALS, 0)
        poke_double(c, 1.0)
    if steps == ACCUMULATE:
        run_pass(job, accumulate_body, threads, team)
    if steps & RESCALE:
        run_pass(job, rescale_body, threads, team)
    release(job)


@cache
def momentum_address() -> int:
    """Address of the compiled form of ``momentum``."""
    return compiled(momentum)
