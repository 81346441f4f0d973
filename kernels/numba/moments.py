"""Explicit vectors of a momentum step, as those of vectors.py: moving average, and second moment.

Averages and combinations are float64, rounded once where they are written. The second moment of a float32
state is float32 throughout: its root and quotient take several times less, and roundings do not add up.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .ir import (
    DOUBLE,
    F32,
    I64,
    ITEMSIZE,
    LANES,
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
    switch,
    unsupported,
)
from .vectors import combination

EPSILON = 1e-8  # that of fastconfig/momentum/step.py
MISSING = -1  # the kind of a gradient that there is not
KINDS = tuple(kind for kind in range(len(ITEMSIZE)) if unsupported(kind) is None)
FLOATS = ir.VectorType(ir.FloatType(), LANES)

# doubles that a step is told; then 1 - beta_1^t_i of every momentum
BETA_1, BETA_2, FIRST, SECOND, RCOND, DECAYED = range(6)


@intrinsic(prefer_literal=True)
def moving_average(typing_context, row, gradient, given, count, beta, kind):
    """row <- beta row + (1 - beta) gradient, of ``count`` elements, a multiple of LANES.

    ``given`` is the kind of the gradient; MISSING counts as zeros.
    """
    elements = literal(kind)
    size = ITEMSIZE[elements]

    def generate(context, builder, signature, arguments):
        row_, gradient_, given_, count_, beta_ = arguments[:5]
        kept = splat(builder, beta_)
        new = splat(builder, builder.fsub(ir.Constant(DOUBLE, 1.0), beta_))

        def emit(given: int) -> None:
            def columns(at: Any, held: list[Any]) -> list[Any]:
                where = element(builder, row_, at, size)
                value = builder.fmul(kept, load(builder, where, elements))
                if given != MISSING:
                    x = load(builder, element(builder, gradient_, at, ITEMSIZE[given]), given)
                    value = fma(builder, new, x, value)
                store(builder, value, where, elements)
                return held

            loop(builder, I64(0), count_, LANES, [], columns)

        switch(builder, given_, (MISSING, *KINDS), emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, types.float64, kind), generate


@intrinsic(prefer_literal=True)
def second_moment(
    typing_context, rows, m, first, count, c, fake, second, numbers, out, written, stream, kind
):
    """u = sum_i c_i x_i; fake and second move on; out <- u / (sqrt(second / (1 - beta_2^t)) + EPSILON).

    Columns [first, first + count) of rows, fake and second, count a multiple of LANES; ``out`` is where the
    first of them goes, in the kind ``written``. ``numbers``: the doubles BETA_1 .. SECOND.
    """
    elements = literal(kind)
    size = ITEMSIZE[elements]

    def generate(context, builder, signature, arguments):
        rows_, m_, first_, count_, c_, fake_, second_, numbers_, out_, written_, stream_ = arguments[:11]

        def number(k: int) -> Any:
            return builder.load(pointer(builder, offset(builder, numbers_, 8 * k), DOUBLE))

        work = FLOATS if elements == F32 else VECTOR
        root_of = f"llvm.sqrt.v{LANES}f{32 if elements == F32 else 64}"

        def narrow(value: Any) -> Any:
            return builder.fptrunc(value, work) if elements == F32 else value

        def wide(value: Any) -> Any:
            return builder.fpext(value, VECTOR) if elements == F32 else value

        one = ir.Constant(DOUBLE, 1.0)
        first = splat(builder, number(FIRST))
        inverse = narrow(splat(builder, builder.fdiv(one, builder.fsub(one, number(BETA_1)))))
        new = narrow(splat(builder, builder.fsub(one, number(BETA_2))))
        correction = narrow(splat(builder, builder.fdiv(one, number(SECOND))))
        epsilon = ir.Constant(work, [EPSILON] * LANES)

        def vectors(at: Any, count: int, written: int, past_caches: bool) -> None:
            column = builder.add(first_, at)
            sums = combination(builder, rows_, m_, c_, column, count, elements)
            target = element(builder, out_, at, ITEMSIZE[written])
            state = [element(builder, base, column, size) for base in (fake_, second_)]
            for k, u in enumerate(sums):
                fake_at, second_at = (offset(builder, base, k * LANES * size) for base in state)
                fake, before = narrow(builder.fmul(u, first)), narrow(load(builder, fake_at, elements))
                # (fake_t - beta_1 fake_(t-1)) / (1 - beta_1), with a difference that keeps its digits
                gradient = builder.fadd(before, builder.fmul(builder.fsub(fake, before), inverse))
                # beta_2 second + (1 - beta_2) gradient^2 likewise: 1 - beta_2 is not beta_2's rounding off
                square = narrow(load(builder, second_at, elements))
                change = builder.fsub(builder.fmul(gradient, gradient), square)
                square = builder.fadd(square, builder.fmul(new, change))
                root = call(builder, root_of, work, [builder.fmul(square, correction)])
                result = builder.fdiv(narrow(u), builder.fadd(root, epsilon))
                store(builder, wide(fake), fake_at, elements)
                store(builder, wide(square), second_at, elements)
                where = offset(builder, target, k * LANES * ITEMSIZE[written])
                store(builder, wide(result), where, written, past_caches)

        def body(count: int, written: int, past_caches: bool) -> Any:
            def columns(at: Any, held: list[Any]) -> list[Any]:
                vectors(at, count, written, past_caches)
                return held

            return columns

        step = LANES * UNROLL
        most = builder.mul(builder.sdiv(count_, I64(step)), I64(step))

        def emit(written: int) -> None:
            with builder.if_else(builder.icmp_signed("!=", stream_, I64(0))) as (yes, no):
                with yes:
                    loop(builder, I64(0), most, step, [], body(UNROLL, written, True))
                with no:
                    loop(builder, I64(0), most, step, [], body(UNROLL, written, False))
            loop(builder, most, count_, LANES, [], body(1, written, False))

        switch(builder, written_, KINDS, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11, kind), generate
