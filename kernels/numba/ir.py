"""Builders of LLVM IR for the vectors of vectors.py: load, store, loop, switch, on raw addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, config

F32, F64, BF16, F16 = 0, 1, 2, 3  # kinds of element, as KINDS of fastconfig/numbers.py
ITEMSIZE = (4, 8, 2, 2)

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
_FEATURES = llvm.get_host_cpu_features()
LANES = 8 if _FEATURES.get("avx512f") else 4  # doubles a vector
DIRECT = 6 if LANES == 8 else 3  # up to this m all sums of products stay in registers
GROUP = 4  # rows of a tile beyond
LINE = 8  # rows that are multiplied with one at a time
PREFETCHED = 3  # rows that a tile fetches for the next block
UNROLL = 4  # vectors of a row that a combination takes at a time

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
DOUBLE = ir.DoubleType()
VECTOR = ir.VectorType(DOUBLE, LANES)
_STORED = (ir.FloatType(), DOUBLE, ir.IntType(16), ir.HalfType())


def unsupported(kind: int) -> str | None:
    """Why elements of this kind cannot be converted on this processor, or None."""
    if kind == F16 and "__extendhfsf2" in _widening_half():
        return "float16 needs a processor with F16C, and NUMBA_CPU_NAME that says so"
    return None


def _widening_half() -> str:
    """Assembly of a float16 on its way to float32, for the processor that Numba compiles for.

    Without an instruction for it, a function of the C compiler's library is called, which is not there.
    """
    module = ir.Module()
    half = ir.FunctionType(ir.FloatType(), [ir.HalfType()])
    function = ir.Function(module, half, "widened")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(builder.fpext(function.args[0], ir.FloatType()))
    cpu, features = config.CPU_NAME, config.CPU_FEATURES  # of NUMBA_CPU_NAME, ..., or None
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name() if cpu is None else cpu,
        features=_FEATURES.flatten() if features is None else features,
    )
    return str(machine.emit_assembly(llvm.parse_assembly(str(module))))


def call(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return call(builder, f"llvm.fma.v{LANES}f64", VECTOR, [x, y, z])


def load(builder: Any, address: Any, kind: int) -> Any:
    """LANES elements as doubles; exact for every kind."""
    stored = ir.VectorType(_STORED[kind], LANES)
    value = builder.load(pointer(builder, address, stored), align=ITEMSIZE[kind])
    if kind == F64:
        return value
    if kind == BF16:
        words = ir.VectorType(I32, LANES)
        high = builder.shl(builder.zext(value, words), ir.Constant(words, [16] * LANES))
        value = builder.bitcast(high, ir.VectorType(ir.FloatType(), LANES))
    elif kind == F16:
        value = builder.fpext(value, ir.VectorType(ir.FloatType(), LANES))
    return builder.fpext(value, VECTOR)


def store(builder: Any, value: Any, address: Any, kind: int, stream: bool = False) -> None:
    """LANES doubles, rounded to the kind (half precision through float32)."""
    floats, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(I32, LANES)
    if kind != F64:
        value = builder.fptrunc(value, floats)
    if kind == BF16:  # to nearest, ties to even; NaN stays NaN

        def constant(k: int) -> Any:
            return ir.Constant(words, [k] * LANES)

        nan = builder.fcmp_unordered("uno", value, value)
        bits = builder.bitcast(value, words)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.lshr(builder.add(builder.add(bits, constant(0x7FFF)), odd), constant(16))
        value = builder.select(nan, constant(0x7FC0), rounded)
        value = builder.trunc(value, ir.VectorType(_STORED[BF16], LANES))
    elif kind == F16:
        value = builder.fptrunc(value, ir.VectorType(_STORED[F16], LANES))
    align = ITEMSIZE[kind] * (LANES if stream else 1)
    written = builder.store(value, pointer(builder, address, value.type), align=align)
    if stream:
        written.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))


def loop(
    builder: Any,
    start: Any,
    stop: Any,
    step: int,
    carried: Sequence[Any],
    body: Callable[[Any, list[Any]], Sequence[Any]],
) -> list[Any]:
    """``for i in range(start, stop, step): carried = body(i, carried)``, carried in registers."""
    before, function = builder.block, builder.function
    head = function.append_basic_block("head")
    inside = function.append_basic_block("body")
    after = function.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    i.add_incoming(start, before)
    phis = [builder.phi(value.type) for value in carried]
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", i, stop), inside, after)
    builder.position_at_end(inside)
    results = body(i, phis)
    i.add_incoming(builder.add(i, I64(step)), builder.block)
    for phi, value in zip(phis, results, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return phis


def convert(builder: Any, value: Any, kind: Any) -> Any:
    """A value, or a constant, as an ``ir.Value`` of this type."""
    if not isinstance(value, ir.Value):
        return ir.Constant(kind, float(value) if kind == DOUBLE else int(value))
    if value.type == kind:
        return value
    if value.type == I1:
        value = builder.zext(value, I64)
    return builder.sitofp(value, DOUBLE) if kind == DOUBLE else value


def materialise(builder: Any, value: Any) -> Any:
    """A value, or a Python constant as a value of the type that follows from its own."""
    if isinstance(value, ir.Value):
        return value
    kinds = {bool: I1, int: I64, float: DOUBLE}
    return convert(builder, value, kinds[type(value)])


def offset(builder: Any, address: Any, distance: int) -> Any:
    return builder.add(address, I64(distance))


def element(builder: Any, address: Any, index: Any, itemsize: int) -> Any:
    return builder.add(address, builder.mul(index, I64(itemsize)))


def vectors_at(builder: Any, address: Any, count: int) -> list[Any]:
    """Vectors of doubles that lie one after the other, aligned."""
    places = [pointer(builder, offset(builder, address, 8 * LANES * k), VECTOR) for k in range(count)]
    return [builder.load(place, align=8 * LANES) for place in places]


def store_at(builder: Any, vectors: Sequence[Any], address: Any) -> None:
    """Write vectors of doubles one after the other, aligned."""
    for k, value in enumerate(vectors):
        place = pointer(builder, offset(builder, address, 8 * LANES * k), VECTOR)
        builder.store(value, place, align=8 * LANES)


def literal(value: Any) -> int:
    return int(value.literal_value)


def switch(builder: Any, value: Any, cases: Sequence[int], emit: Callable[[int], None]) -> None:
    """``emit(k)`` for the k that ``value`` is; nothing for any other."""
    after = builder.function.append_basic_block("chosen")
    choice = builder.switch(value, after)
    for k in cases:
        block = builder.function.append_basic_block(f"case{k}")
        choice.add_case(I64(k), block)
        builder.position_at_end(block)
        emit(k)
        builder.branch(after)
    builder.position_at_end(after)
