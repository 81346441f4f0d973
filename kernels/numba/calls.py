"""What a kernel calls by its address, and the counter that threads share, as intrinsics for Numba."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .ir import DOUBLE, I32, I64, pointer


@intrinsic
def fetch_add(typing_context, address, value):
    """Atomic: the int64 at ``address`` before ``value`` is added to it."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", pointer(builder, arguments[0], I64), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def allocate(typing_context, count):
    """Address of ``count`` doubles of new memory, which ``release`` ends."""

    def generate(context, builder, signature, arguments):
        size = builder.mul(arguments[0], I64(8))
        return builder.ptrtoint(context.nrt.allocate_unchecked(builder, size), I64)

    return types.int64(types.int64), generate


@intrinsic
def release(typing_context, address):
    """End memory of ``allocate``."""

    def generate(context, builder, signature, arguments):
        context.nrt.free(builder, pointer(builder, arguments[0], ir.IntType(8)))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def call_body(typing_context, body, job):
    """body(job) by its address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def call_team(typing_context, parallel, body, job, threads):
    """GOMP_parallel(body, job, threads, 0) by its address: torch's own team runs body(job)."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [I64, I64, I32, I32])
        parallel_, body_, job_, threads_ = arguments
        function = builder.inttoptr(parallel_, kind.as_pointer())
        builder.call(function, [body_, job_, builder.trunc(threads_, I32), I32(0)])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def call_number(typing_context, number):
    """omp_get_thread_num() by its address."""

    def generate(context, builder, signature, arguments):
        function = builder.inttoptr(arguments[0], ir.FunctionType(I32, []).as_pointer())
        return builder.sext(builder.call(function, []), I64)

    return types.int64(types.int64), generate


@intrinsic
def call_coefficients(typing_context, function, gram, c, batch, m, rule, rcond):
    """fastconfig_coefficients (csrc/bindings.cpp) by its address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [I64] * 5 + [DOUBLE])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.float64), generate
