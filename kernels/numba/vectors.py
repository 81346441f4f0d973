"""Explicit vectors for Numba: intrinsics that emit LLVM IR, on raw addresses.

LLVM's own vectoriser keeps to 256 bits on AVX-512 machines unless told otherwise process-wide, and its
loop forms do not survive sixteen float64 sums over converted bfloat16; these few do. Rows are contiguous
here, and counts are multiples of ``LANES``: the callers pack what is not (see gram.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .ir import (
    DIRECT,
    DOUBLE,
    F64,
    GROUP,
    I32,
    I64,
    ITEMSIZE,
    LANES,
    LINE,
    PREFETCHED,
    UNROLL,
    VECTOR,
    call,
    element,
    fma,
    literal,
    load,
    loop,
    offset,
    pointer,
    splat,
    store,
    store_at,
    switch,
    vectors_at,
)


@intrinsic(prefer_literal=True)
def triangle(typing_context, rows, m, count, sums, kind):
    """sums (m (m + 1) / 2 vectors) += x_i * x_j, i <= j, over ``count`` columns, m <= DIRECT.

    ``rows`` is the address of m row addresses. Several sets of sums hide the latency of the additions.
    """
    elements = literal(kind)
    size = ITEMSIZE[elements]

    def generate(context, builder, signature, arguments):
        rows_, m_, count_, sums_ = arguments[:4]

        def emit(m: int) -> None:
            pairs = [(i, j) for i in range(m) for j in range(i, m)]
            n, sets = len(pairs), max(1, min(4, 12 // len(pairs)))
            bases = [builder.load(pointer(builder, offset(builder, rows_, 8 * i), I64)) for i in range(m)]

            def columns(at: Any, held: Sequence[Any]) -> list[Any]:
                x = [load(builder, element(builder, base, at, size), elements) for base in bases]
                return [fma(builder, x[a], x[b], s) for (a, b), s in zip(pairs, held, strict=True)]

            def unrolled(i: Any, held: list[Any]) -> list[Any]:
                parts = [(offset(builder, i, k * LANES), held[k * n : k * n + n]) for k in range(sets)]
                return [v for at, part in parts for v in columns(at, part)]

            wide = builder.sdiv(count_, I64(LANES * sets))
            wide = builder.mul(wide, I64(LANES * sets))
            zeros = [ir.Constant(VECTOR, None)] * n
            held = vectors_at(builder, sums_, n) + zeros * (sets - 1)
            held = loop(builder, I64(0), wide, LANES * sets, held, unrolled)
            total = held[:n]
            for k in range(1, sets):
                total = [builder.fadd(s, t) for s, t in zip(total, held[k * n : k * n + n], strict=True)]
            store_at(builder, loop(builder, wide, count_, LANES, total, columns), sums_)

        switch(builder, m_, range(1, DIRECT + 1), emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, kind), generate


@intrinsic(prefer_literal=True)
def line(typing_context, row, rows, m, first, count, sums, kind):
    """sums (m vectors) += y * x_j over columns [first, first + count) of y at ``row``, m <= LINE.

    ``rows`` is the address of m row addresses.
    """
    elements = literal(kind)
    size = ITEMSIZE[elements]

    def generate(context, builder, signature, arguments):
        row_, rows_, m_, first_, count_, sums_ = arguments[:6]
        begin = builder.mul(first_, I64(size))

        def emit(m: int) -> None:
            bases = [builder.load(pointer(builder, offset(builder, rows_, 8 * i), I64)) for i in range(m)]
            starts = [builder.add(base, begin) for base in (row_, *bases)]

            def columns(at: Any, held: list[Any]) -> list[Any]:
                y, *x = (load(builder, element(builder, start, at, size), elements) for start in starts)
                return [fma(builder, y, x_j, s) for x_j, s in zip(x, held, strict=True)]

            held = vectors_at(builder, sums_, m)
            store_at(builder, loop(builder, I64(0), count_, LANES, held, columns), sums_)

        switch(builder, m_, range(1, LINE + 1), emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, kind), generate


@intrinsic(prefer_literal=True)
def diagonal(typing_context, rows, m, first, count, target, stride, sums, ahead, step, kind):
    """sums (m (m + 1) / 2 vectors) += x_i * x_j, i <= j, m <= GROUP; the rows go to ``target`` as doubles.

    ``rows`` is the address of m row addresses, ``stride`` the distance of two rows at ``target`` in bytes;
    columns are [first, first + count). For ``ahead`` and ``step`` see :func:`tile`.
    """
    elements = literal(kind)
    size = ITEMSIZE[elements]

    def generate(context, builder, signature, arguments):
        rows_, m_, first_, count_, target_, stride_, sums_, ahead_, step_ = arguments[:9]
        begin = builder.mul(first_, I64(size))

        def emit(m: int) -> None:
            pairs = [(i, j) for i in range(m) for j in range(i, m)]
            bases = [builder.load(pointer(builder, offset(builder, rows_, 8 * i), I64)) for i in range(m)]
            bases = [builder.add(base, begin) for base in bases]
            targets = [builder.add(target_, builder.mul(stride_, I64(i))) for i in range(m)]

            def columns(at: Any, held: list[Any]) -> list[Any]:
                x = [load(builder, element(builder, base, at, size), elements) for base in bases]
                for value, where in zip(x, targets, strict=True):
                    store(builder, value, element(builder, where, at, 8), F64)
                return [fma(builder, x[i], x[j], s) for (i, j), s in zip(pairs, held, strict=True)]

            _sum_columns(builder, count_, sums_, len(pairs), columns, ahead_, step_)

        switch(builder, m_, range(1, GROUP + 1), emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, kind), generate


@intrinsic
def tile(typing_context, left, right, n, stride, count, sums, ahead, step):
    """sums (GROUP * n vectors) += x_i * y_j for GROUP rows of doubles at ``left``, n <= GROUP at ``right``.

    ``stride`` is the distance of two rows in bytes. Meanwhile the memory that the PREFETCHED addresses at
    ``ahead`` point to is fetched, ``step`` bytes a vector of columns; none if that is 0.
    """

    def generate(context, builder, signature, arguments):
        left_, right_, n_, stride_, count_, sums_, ahead_, step_ = arguments

        def emit(n: int) -> None:
            def rows(base: Any, number: int, at: Any) -> list[Any]:
                starts = [builder.add(base, builder.mul(stride_, I64(i))) for i in range(number)]
                return [load(builder, element(builder, start, at, 8), F64) for start in starts]

            def columns(at: Any, held: list[Any]) -> list[Any]:
                x, y = rows(left_, GROUP, at), rows(right_, n, at)
                products = [(i, j) for i in range(GROUP) for j in range(n)]
                return [fma(builder, x[i], y[j], s) for (i, j), s in zip(products, held, strict=True)]

            _sum_columns(builder, count_, sums_, GROUP * n, columns, ahead_, step_)

        switch(builder, n_, range(1, GROUP + 1), emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


def _sum_columns(
    builder: Any,
    count: Any,
    sums: Any,
    number: int,
    columns: Callable[[Any, list[Any]], list[Any]],
    ahead: Any,
    step: Any,
) -> None:
    """The ``number`` vectors at ``sums`` over ``count`` columns; one loop fetches ahead, one does not."""

    def run(starts: Sequence[Any]) -> None:
        def body(at: Any, held: list[Any]) -> list[Any]:
            distance = builder.mul(builder.sdiv(at, I64(LANES)), step)
            for start in starts:
                _prefetch(builder, builder.add(start, distance))
            return columns(at, held)

        held = vectors_at(builder, sums, number)
        store_at(builder, loop(builder, I64(0), count, LANES, held, body), sums)

    with builder.if_else(builder.icmp_signed("!=", step, I64(0))) as (fetching, quiet):
        with fetching:
            where = [pointer(builder, offset(builder, ahead, 8 * k), I64) for k in range(PREFETCHED)]
            run([builder.load(each) for each in where])
        with quiet:
            run([])


def _prefetch(builder: Any, address: Any) -> None:
    """To L2: rows at equal offsets in their pages share few sets of L1, and would push the doubles out."""
    target = pointer(builder, address, ir.IntType(8))
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [target, I32(0), I32(2), I32(1)])


def combination(builder: Any, rows: Any, m: Any, c: Any, first: Any, number: int, kind: int) -> list[Any]:
    """sum_i c_i x_i of ``number`` vectors from column ``first`` on, for :func:`weighted_sum`'s rows and c."""
    size = ITEMSIZE[kind]
    source = builder.mul(first, I64(size))

    def add_row(i: Any, held: list[Any]) -> list[Any]:
        base = builder.add(builder.load(pointer(builder, element(builder, rows, i, 8), I64)), source)
        weight = splat(builder, builder.load(pointer(builder, element(builder, c, i, 8), DOUBLE)))
        x = [load(builder, offset(builder, base, u * LANES * size), kind) for u in range(number)]
        return [fma(builder, weight, x_u, s) for x_u, s in zip(x, held, strict=True)]

    return loop(builder, I64(0), m, 1, [ir.Constant(VECTOR, None)] * number, add_row)


@intrinsic(prefer_literal=True)
def weighted_sum(typing_context, rows, m, first, count, c, out, stream, kind):
    """out[k] = sum_i c_i x_i[first + k], k < count (a multiple of LANES), rounded once.

    ``rows`` is the address of m row addresses, ``c`` of m doubles. ``stream`` writes past the caches
    (``out`` on a multiple of 64 then).
    """
    elements = literal(kind)
    size = ITEMSIZE[elements]

    def generate(context, builder, signature, arguments):
        rows_, m_, first_, count_, c_, out_, stream_ = arguments[:7]

        def vectors(at: Any, number: int, past_caches: bool) -> None:
            sums = combination(builder, rows_, m_, c_, builder.add(first_, at), number, elements)
            target = element(builder, out_, at, size)
            for u, s in enumerate(sums):
                store(builder, s, offset(builder, target, u * LANES * size), elements, past_caches)

        def several(past_caches: bool) -> Any:
            def body(at: Any, held: list[Any]) -> list[Any]:
                vectors(at, UNROLL, past_caches)
                return held

            return body

        def one(at: Any, held: list[Any]) -> list[Any]:
            vectors(at, 1, False)
            return held

        wide = builder.mul(builder.sdiv(count_, I64(LANES * UNROLL)), I64(LANES * UNROLL))
        with builder.if_else(builder.icmp_signed("!=", stream_, I64(0))) as (yes, no):
            with yes:
                loop(builder, I64(0), wide, LANES * UNROLL, [], several(True))
            with no:
                loop(builder, I64(0), wide, LANES * UNROLL, [], several(False))
        loop(builder, wide, count_, LANES, [], one)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7, kind), generate


@intrinsic
def horizontal(typing_context, address):
    """Sum of the vector of doubles at ``address``, pairwise."""

    def generate(context, builder, signature, arguments):
        value = builder.load(pointer(builder, arguments[0], VECTOR), align=8 * LANES)
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            low, high = (
                ir.Constant(ir.VectorType(I32, lanes), list(range(k, k + lanes))) for k in (0, lanes)
            )
            halves = [builder.shuffle_vector(value, undefined, half) for half in (low, high)]
            value = builder.fadd(*halves)
        return builder.extract_element(value, I32(0))

    return types.float64(types.int64), generate


@intrinsic
def fence(typing_context):
    """Streamed stores become visible to other threads."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _peek(stored: Any, result: Any) -> Any:
    @intrinsic
    def peek(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.load(pointer(builder, arguments[0], stored))

        return result(types.int64), generate

    return peek


def _poke(stored: Any, argument: Any) -> Any:
    @intrinsic
    def poke(typing_context, address, value):
        def generate(context, builder, signature, arguments):
            builder.store(arguments[1], pointer(builder, arguments[0], stored))
            return context.get_dummy_value()

        return types.void(types.int64, argument), generate

    return poke


peek_int = _peek(I64, types.int64)
peek_double = _peek(DOUBLE, types.float64)
poke_int = _poke(I64, types.int64)
poke_double = _poke(DOUBLE, types.float64)


@intrinsic
def copy_element(typing_context, source, target, size):
    """One element of 2, 4 or 8 bytes, as it is."""

    def generate(context, builder, signature, arguments):
        source_, target_, size_ = arguments

        def emit(size: int) -> None:
            stored = ir.IntType(8 * size)
            value = builder.load(pointer(builder, source_, stored), align=size)
            builder.store(value, pointer(builder, target_, stored), align=size)

        switch(builder, size_, (2, 4, 8), emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
