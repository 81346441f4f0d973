"""The whole update on a CPU in one call: gram, coefficients, combine; serial, or on torch's own threads.

Columns of all segments of a problem, laid end to end, are cut into chunks by their number alone; every
chunk has a partial Gram matrix of its own, and they are added in order: the same bits whatever the
number of threads. The second pass runs backwards: what the first read last is still in the caches.
"""

from __future__ import annotations

from functools import cache

from .cache import compiled
from .calls import (
    allocate,
    call_body,
    call_coefficients,
    call_number,
    call_team,
    fetch_add,
    release,
)
from .combine import combine_columns
from .gram import entry_words, gram_columns, triangle_size
from .typed import Const, typed
from .vectors import peek_double, peek_int, poke_double, poke_int

SHORTEST, ALIGN = 1 << 15, 256  # elements of a chunk: about that many at least; its columns: a multiple of
NARROWEST = 1 << 12  # columns of a chunk, about: what its sums cost is then little beside its products
MOST, EVEN = 64, 4  # chunks of a problem: at most, and a multiple of, so that threads get the same share
PARTIALS_SIZE = 1 << 19  # bytes of the chunks' Gram matrices, about
BEYOND = 1 << 23  # bytes of input from which on they are fetched ahead; the caches give them as fast below
STREAM = 1 << 21  # bytes of a result from which on it is written past the caches

SHARES = 64  # of the chunks, at most, one for every thread

# words of a job: what the threads of one pass share; from TAKEN on, how many chunks of each share are taken
CHUNKS, STREAMED, NUMBER, SHARED, TAKEN = range(5)
TABLE, SEGMENTS, M, COLUMNS, CHUNK, PARTIALS, C, FAR, WORDS = range(TAKEN + SHARES, TAKEN + SHARES + 9)


@typed
def gram_piece(job: int, chunk: int, entry: int, first: int, last: int, kind: Const) -> None:
    """Columns [first, last) of a segment in the first pass."""
    m = peek_int(job + 8 * M)
    partial = peek_int(job + 8 * PARTIALS) + 8 * triangle_size(m) * chunk
    gram_columns(entry, first, last, m, partial, peek_int(job + 8 * FAR), kind)


@typed
def combine_piece(job: int, chunk: int, entry: int, first: int, last: int, kind: Const) -> None:
    """Columns [first, last) of a segment in the second pass."""
    m, c, stream = peek_int(job + 8 * M), peek_int(job + 8 * C), peek_int(job + 8 * STREAMED)
    combine_columns(entry, first, last, m, c, stream, kind)


@typed
def own_share(job: int) -> int:
    """Which share is the calling thread's."""
    number = peek_int(job + 8 * NUMBER)
    return call_number(number) % peek_int(job + 8 * SHARED) if number != 0 else 0


@typed
def take_chunk(job: int, own: int, backwards: Const) -> int:
    """A chunk that nobody has yet, of the share ``own`` or, where that is empty, of the next; or -1.

    A thread has the same share in both passes, and in the next call: what it has read is in its caches.
    """
    chunks, shares = peek_int(job + 8 * CHUNKS), peek_int(job + 8 * SHARED)
    for k in range(shares):
        share = (own + k) % shares
        first, last = share * chunks // shares, (share + 1) * chunks // shares
        taken = job + 8 * (TAKEN + share)
        if peek_int(taken) < last - first:
            i = fetch_add(taken, 1)
            if i < last - first:
                return last - 1 - i if backwards else first + i
    return -1


@typed
def run_chunks(job: int, piece: Const, backwards: Const, kind: Const) -> None:
    """Take chunks until none is left, and run ``piece`` on what of each segment lies in them."""
    m = peek_int(job + 8 * M)
    own = own_share(job)
    while True:
        chunk = take_chunk(job, own, backwards)
        if chunk < 0:
            break
        first = chunk * peek_int(job + 8 * CHUNK)
        last = min(first + peek_int(job + 8 * CHUNK), peek_int(job + 8 * COLUMNS))
        entry = peek_int(job + 8 * TABLE)
        offset = 0
        while offset < last:
            length = peek_int(entry)
            low, high = max(first - offset, 0), min(last - offset, length)
            if low < high:
                piece(job, chunk, entry, low, high, kind)
            offset += length
            entry += 8 * entry_words(m)


@typed
def run_pass(job: int, body: int, threads: int, team: int) -> None:
    """All chunks of a pass, on a team if it is worth one; ``team`` is the address that team.py gives."""
    alone = threads == 1 or peek_int(job + 8 * CHUNKS) == 1
    shares = 1 if alone else min(threads, SHARES)
    poke_int(job + 8 * SHARED, shares)
    for share in range(shares):
        poke_int(job + 8 * (TAKEN + share), 0)
    if alone:
        poke_int(job + 8 * NUMBER, 0)
        call_body(body, job)
    else:
        poke_int(job + 8 * NUMBER, peek_int(team + 8))
        call_team(peek_int(team), body, job, threads)


@typed
def count_columns(table: int, segments: int, m: int) -> int:
    """Elements of one gradient."""
    columns = 0
    for segment in range(segments):
        columns += peek_int(table + 8 * entry_words(m) * segment)
    return columns


@typed
def chunk_columns(columns: int, m: int) -> int:
    """Columns of a chunk."""
    most = min(MOST, PARTIALS_SIZE // (8 * triangle_size(m))) // EVEN * EVEN
    chunks = min(columns * m // SHORTEST, columns // NARROWEST)
    chunks = (chunks + EVEN - 1) // EVEN * EVEN
    chunks = max(1, min(chunks, max(EVEN, most)))
    columns_each = (columns + chunks - 1) // chunks
    return max(1, (columns_each + ALIGN - 1) // ALIGN) * ALIGN


@typed
def prepare(job: int, table: int, segments: int, m: int, size: int) -> int:
    """Describe a problem's columns and chunks; how many of these."""
    columns = count_columns(table, segments, m)
    chunk = chunk_columns(columns, m)
    chunks = (columns + chunk - 1) // chunk
    poke_int(job + 8 * TABLE, table)
    poke_int(job + 8 * SEGMENTS, segments)
    poke_int(job + 8 * M, m)
    poke_int(job + 8 * COLUMNS, columns)
    poke_int(job + 8 * CHUNK, chunk)
    poke_int(job + 8 * CHUNKS, chunks)
    poke_int(job + 8 * FAR, 1 if columns * m * size >= BEYOND else 0)
    poke_int(job + 8 * STREAMED, 1 if columns * size >= STREAM else 0)
    return chunks


@typed
def partials_size(table: int, segments: int, m: int) -> int:
    """Doubles that hold the partial triangles of a problem."""
    columns = count_columns(table, segments, m)
    return (columns // chunk_columns(columns, m) + 1) * triangle_size(m)


@typed
def form_partials(job: int, partials: int, chunks: int, m: int, body: int, threads: int, team: int) -> None:
    """The first pass, with partial triangles that start from zero."""
    for k in range(chunks * triangle_size(m)):
        poke_double(partials + 8 * k, 0.0)
    poke_int(job + 8 * PARTIALS, partials)
    run_pass(job, body, threads, team)


@typed
def add_partials(partials: int, chunks: int, m: int, gram: int) -> None:
    """Both halves of ``gram`` from the partial triangles, in the order of the chunks."""
    size = triangle_size(m)
    k = 0
    for i in range(m):
        for j in range(i, m):
            total = 0.0
            for chunk in range(chunks):
                total += peek_double(partials + 8 * (chunk * size + k))
            poke_double(gram + 8 * (i * m + j), total)
            poke_double(gram + 8 * (j * m + i), total)
            k += 1


GRAM, COMBINE = 1, 2  # steps that a call asks for


@typed
def gram_pass(job: int, kind: Const) -> None:
    """What every thread runs in the first pass."""
    run_chunks(job, gram_piece, False, kind)


@typed
def combine_pass(job: int, kind: Const) -> None:
    """What every thread runs in the second pass."""
    run_chunks(job, combine_piece, True, kind)


@cache
def bodies(kind: int) -> tuple[int, int]:
    """Addresses of what every thread runs in the first and in the second pass, for elements of ``kind``."""
    return compiled(gram_pass, kind), compiled(combine_pass, kind)


@typed
def run(
    steps: int,
    table: int,
    problems: int,
    segments: int,
    m: int,
    gram: int,
    c: int,
    coefficients: int,
    rule: int,
    rcond: float,
    size: int,
    threads: int,
    team: int,
    gram_body: int,
    combine_body: int,
) -> None:
    """The steps asked for, on addresses.

    GRAM forms ``gram`` (problems, m, m); COMBINE writes the results that the table names, with ``c``
    (problems, m); both together take ``c`` from ``coefficients``, fastconfig_coefficients of csrc.
    ``size`` is that of an element in bytes; for ``team`` see run_pass.
    """
    if problems == 0:
        return
    job = allocate(WORDS + partials_size(table, segments, m))  # all problems have as many columns
    partials = job + 8 * WORDS
    table_step, gram_step = 8 * entry_words(m) * segments, 8 * m * m
    if steps & GRAM:
        for problem in range(problems):
            chunks = prepare(job, table + table_step * problem, segments, m, size)
            form_partials(job, partials, chunks, m, gram_body, threads, team)
            add_partials(partials, chunks, m, gram + gram_step * problem)
    if steps == GRAM + COMBINE:
        call_coefficients(coefficients, gram, c, problems, m, rule, rcond)
    if steps & COMBINE:
        for problem in range(problems):
            prepare(job, table + table_step * problem, segments, m, size)
            poke_int(job + 8 * C, c + 8 * m * problem)
            run_pass(job, combine_body, threads, team)
    release(job)


@cache
def run_address() -> int:
    """Address of the compiled form of ``run``, for fastconfig._C."""
    return compiled(run)
