"""A pure read and a pure write of memory, on torch's own threads: the floor of any pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from .ir_numba import I32, I64, call, loop, offset, pointer
from .update_numba import STREAM, compiled
from .vectors_numba import address, call_body, call_team, fetch_add, peek_int

WIDE = 64  # bytes of a vector
UNROLL = 8  # vectors a step
CHUNK = (
    1 << 18
)  # bytes that a thread takes at a time; small ones balance the threads, large ones cost no atomics
WORDS = ir.VectorType(I64, WIDE // 8)

# words of a job; then address and bytes of every chunk
NEXT, CHUNKS, STREAMED, SINK, FIRST = range(5)


@intrinsic
def read(typing_context, start, count):
    """Exclusive or of all whole vectors in ``count`` bytes from ``start``, folded to one word."""

    def generate(context, builder, signature, arguments):
        start_, count_ = arguments

        def words(at: Any, k: int) -> Any:
            where = offset(builder, builder.add(start_, at), WIDE * k)
            return builder.load(pointer(builder, where, WORDS), align=1)

        def several(at: Any, held: list[Any]) -> list[Any]:
            return [builder.xor(value, words(at, k)) for k, value in enumerate(held)]

        zero = ir.Constant(WORDS, None)
        wide, whole = _whole(builder, count_, WIDE * UNROLL), _whole(builder, count_, WIDE)
        held = loop(builder, I64(0), wide, WIDE * UNROLL, [zero] * UNROLL, several)
        (total,) = loop(builder, wide, whole, WIDE, held[:1], lambda at, h: [builder.xor(h[0], words(at, 0))])
        for value in held[1:]:
            total = builder.xor(total, value)
        return call(builder, f"llvm.vector.reduce.xor.v{WIDE // 8}i64", I64, [total])

    return types.int64(types.int64, types.int64), generate


@intrinsic
def write(typing_context, start, count, stream):
    """Zeros to all whole vectors in ``count`` bytes from ``start``; ``stream`` writes past the caches."""

    def generate(context, builder, signature, arguments):
        start_, count_, stream_ = arguments
        whole = _whole(builder, count_, WIDE)

        def fill(past_caches: bool) -> None:
            def one(at: Any, held: list[Any]) -> list[Any]:
                target = pointer(builder, builder.add(start_, at), WORDS)
                written = builder.store(ir.Constant(WORDS, None), target, align=WIDE)
                if past_caches:
                    written.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
                return held

            loop(builder, I64(0), whole, WIDE, [], one)

        with builder.if_else(builder.icmp_signed("!=", stream_, I64(0))) as (yes, no):
            with yes:
                fill(True)
            with no:
                fill(False)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _whole(builder: Any, count: Any, size: int) -> Any:
    return builder.mul(builder.sdiv(count, I64(size)), I64(size))


def _read_body(job: int) -> None:
    total = 0
    while True:
        chunk = fetch_add(job + 8 * NEXT, 1)
        if chunk >= peek_int(job + 8 * CHUNKS):
            break
        entry = job + 8 * (FIRST + 2 * chunk)
        total ^= read(peek_int(entry), peek_int(entry + 8))
    fetch_add(job + 8 * SINK, total)


def _write_body(job: int) -> None:
    while True:
        chunk = fetch_add(job + 8 * NEXT, 1)
        if chunk >= peek_int(job + 8 * CHUNKS):
            break
        entry = job + 8 * (FIRST + 2 * chunk)
        write(peek_int(entry), peek_int(entry + 8), peek_int(job + 8 * STREAMED))


read_body = compiled(cfunc, types.void(types.int64), _read_body, "read")
write_body = compiled(cfunc, types.void(types.int64), _write_body, "write")


@njit(nogil=True)
def run(job: Any, body: int, threads: int, parallel: int) -> None:
    """``body`` on all chunks of a job, alone or on the team at GOMP_parallel's address ``parallel``."""
    job[NEXT] = 0
    if threads > 1:
        call_team(parallel, body, address(job), threads)
    else:
        call_body(body, address(job))


def job_of(pieces: list[tuple[int, int]]) -> Any:
    """A job over (address, bytes) pieces of memory, which must outlive it; written pieces start at 64."""
    chunks = [
        (start + at, min(CHUNK, count - at)) for start, count in pieces for at in range(0, count, CHUNK)
    ]
    job = np.zeros(FIRST + 2 * len(chunks), np.int64)
    job[CHUNKS] = len(chunks)
    job[STREAMED] = sum(count for _, count in pieces) >= STREAM
    job[FIRST:] = np.array(chunks, np.int64).reshape(-1)
    return job
