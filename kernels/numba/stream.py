"""A pure read and a pure write of memory, on torch's own threads: the floor of any pass."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .cache import compiled
from .calls import fetch_add
from .ir import I32, I64, call, loop, offset, pointer
from .typed import typed
from .update import CHUNKS, STREAM, STREAMED, WORDS, own_share, run_pass, take_chunk
from .vectors import peek_int

WIDE = 64  # bytes of a vector
UNROLL = 8  # vectors a step
CHUNK = (
    1 << 18
)  # bytes that a thread takes at a time; small ones balance the threads, large ones cost no atomics
WIDEST = ir.VectorType(I64, WIDE // 8)

# words of a job behind those of update.py; then address and bytes of every chunk
SINK, FIRST = range(WORDS, WORDS + 2)


@intrinsic
def read(typing_context, start, count):
    """Exclusive or of all whole vectors in ``count`` bytes from ``start``, folded to one word."""

    def generate(context, builder, signature, arguments):
        start_, count_ = arguments

        def words(at: Any, k: int) -> Any:
            where = offset(builder, builder.add(start_, at), WIDE * k)
            return builder.load(pointer(builder, where, WIDEST), align=1)

        def several(at: Any, held: list[Any]) -> list[Any]:
            return [builder.xor(value, words(at, k)) for k, value in enumerate(held)]

        zero = ir.Constant(WIDEST, None)
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
                target = pointer(builder, builder.add(start_, at), WIDEST)
                written = builder.store(ir.Constant(WIDEST, None), target, align=WIDE)
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


@typed
def read_chunks(job: int) -> None:
    total, own = 0, own_share(job)
    while True:
        chunk = take_chunk(job, own, False)
        if chunk < 0:
            break
        entry = job + 8 * (FIRST + 2 * chunk)
        total ^= read(peek_int(entry), peek_int(entry + 8))
    fetch_add(job + 8 * SINK, total)


@typed
def write_chunks(job: int) -> None:
    own = own_share(job)
    while True:
        chunk = take_chunk(job, own, False)
        if chunk < 0:
            break
        entry = job + 8 * (FIRST + 2 * chunk)
        write(peek_int(entry), peek_int(entry + 8), peek_int(job + 8 * STREAMED))


@cache
def body(way: str) -> int:
    """Address of what every thread runs, to "read" or to "write"."""
    return compiled(read_chunks if way == "read" else write_chunks)


def run(job: Any, body: int, threads: int, team: int) -> None:
    """``body`` on all chunks of a job; for ``team`` see run_pass."""
    _run()(job.ctypes.data, body, threads, team)


@cache
def _run() -> Any:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(compiled(run_pass))


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
