"""The floor: how long this machine takes to read the gradients and to write the answer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from ..backends.team import team_address
from .cases import Inputs, Setting, traffic
from .momentum import MOMENTUM
from .timing import Clock, Contestant, measure

BANDWIDTH_BYTES = (1 << 16, 1 << 20, 1 << 24, 1 << 28)
_KINDS = ("read", "write", "fresh write", "state read", "state write")
SHARE = 0.1  # seconds for each way of a bandwidth


@dataclass(frozen=True)
class Floor:
    """Medians of the fastest way to read all gradients once, and to write one vector of their length.

    ``fresh_write_us`` is for a vector in memory that is new to the process, as every answer's is from the
    size on at which the allocator takes it from the system; it is told, and is no part of the floor.
    A step of momentum goes through more memory than the gradients: ``state_read_us`` is for m + 2 vectors and
    one gradient, each time another; ``state_write_us`` for all vectors that it writes.
    """

    read_us: float
    read_way: str
    write_us: float
    write_way: str
    fresh_write_us: float
    state_read_us: float | None = None
    state_write_us: float | None = None

    def of(self, operation: str, setting: Setting) -> float | None:
        """Microseconds below which an operation cannot get: its bytes at the speed of these."""
        moved = traffic(operation, setting)
        if moved is None:
            return None
        read, written = moved
        if operation == MOMENTUM and self.state_read_us is not None and self.state_write_us is not None:
            vector = state_bytes(setting)
            once = (setting.m + 2) * vector + setting.row_bytes
            return self.state_read_us * read / once + self.state_write_us * written / (WRITTEN * vector)
        rows_read, rows_written = read / setting.row_bytes, written / setting.row_bytes
        return self.read_us * rows_read / setting.m + self.write_us * rows_written

    def numbers(self) -> dict[str, Any]:
        return asdict(self)


WRITTEN = 4  # vectors that a step of momentum writes


def state_bytes(setting: Setting) -> int:
    """Of a vector of the state of momentum, which is float32 at least."""
    return max(setting.row_bytes, 4 * setting.n)


def floor_contestants(
    setting: Setting, inputs: Inputs, device: torch.device, least: int, momentum: bool
) -> list[Contestant]:
    """Every way to read the gradients once, and every way to write the answer; likewise of a state."""
    out = torch.empty(setting.n, dtype=setting.torch_dtype, device=device)
    if device.type == "cpu":
        read = [row for segment in inputs.segments for row in segment]
    else:  # one launch instead of one a row
        words = max(setting.m * setting.row_bytes // 4, 1)
        read = [torch.ones(words, dtype=torch.float32, device=device)]
    ways = [("read", way, call) for way, call in read_ways(read).items()]
    ways += [("write", way, call) for way, call in write_ways(out).items()]
    ways.append(("fresh write", "torch.zero_", lambda: torch.empty_like(out).zero_()))
    if momentum:
        words = state_bytes(setting) // 4
        state = [torch.ones(words, device=device) for _ in range(setting.m + 2)]
        written = [torch.ones(words, device=device) for _ in range(WRITTEN)]
        ways += [("state read", way, call) for way, call in _in_turn(state, inputs).items()]
        ways += [("state write", way, call) for way, call in write_ways(*written).items()]
    return [Contestant(kind, way, call, least=least) for kind, way, call in ways]


def _in_turn(state: list[Tensor], inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Every way to read a state and one gradient, as a step does: the gradients take turns."""
    m = len(inputs.segments[0])
    turns = [read_ways([*state, *(segment[i] for segment in inputs.segments)]) for i in range(m)]

    def taking_turns(way: str) -> Callable[[], Any]:
        calls = cycle([ways[way] for ways in turns])
        return lambda: next(calls)()

    return {way: taking_turns(way) for way in turns[0]}


def fastest(contestants: list[Contestant]) -> Floor:
    """From measured contestants, with others among them."""
    best: dict[str, Contestant] = {}
    for contestant in contestants:
        kind = contestant.operation
        if kind in _KINDS and (kind not in best or contestant.median < best[kind].median):
            best[kind] = contestant
    read, write, fresh = (best[kind] for kind in _KINDS[:3])
    state = [1e6 * best[kind].median if kind in best else None for kind in _KINDS[3:]]
    return Floor(1e6 * read.median, read.name, 1e6 * write.median, write.name, 1e6 * fresh.median, *state)


def read_ways(tensors: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """Calls that read contiguous tensors once: compiled loops, ``torch.sum``, ``torch.dot``."""
    ways: dict[str, Callable[[], Any]] = {}
    if tensors[0].device.type == "cpu":
        ways.update(_compiled("read", tensors))
    if tensors[0].dtype in (torch.float32, torch.float64):
        ways["torch.sum"] = lambda: [torch.sum(t) for t in tensors]
        if max(t.numel() for t in tensors) < 1 << 31:  # all that BLAS counts
            ways["torch.dot"] = lambda: [torch.dot(t, t) for t in tensors]
    return ways


def write_ways(*out: Tensor) -> dict[str, Callable[[], Any]]:
    """Calls that write contiguous tensors once: compiled loops, ``zero_``, ``fill_``."""
    ways = _compiled("write", list(out)) if out[0].device.type == "cpu" else {}
    return {
        **ways,
        "torch.zero_": lambda: [tensor.zero_() for tensor in out],
        "torch.fill_": lambda: [tensor.fill_(1) for tensor in out],
    }


def _compiled(kind: str, tensors: list[Tensor]) -> dict[str, Callable[[], Any]]:
    try:
        from ..kernels.numba import stream as stream_numba
    except ImportError:
        return {}
    run, body = stream_numba.run, stream_numba.body(kind)
    job = stream_numba.job_of([(t.data_ptr(), t.numel() * t.element_size()) for t in tensors])
    team, threads = team_address(), torch.get_num_threads()
    ways = {f"{kind} loop, 1 thread": lambda: (run(job, body, 1, 0), tensors)}
    if team and threads > 1:
        ways[f"{kind} loop, {threads} threads"] = lambda: (run(job, body, threads, team), tensors)
    return ways


def bandwidths(clock: Clock, device: torch.device, between: Callable[[], None]) -> list[dict[str, Any]]:
    """GB/s of a pure read and of a copy (bytes read plus bytes written) for several sizes."""
    found = []
    for size in BANDWIDTH_BYTES:
        source = torch.ones(size // 4, device=device)  # zeros might be one page of memory over and over
        target = torch.empty_like(source)
        reads = [Contestant("read", way, call) for way, call in read_ways([source]).items()]
        copy = Contestant("copy", "copy_", partial(target.copy_, source))
        measure([*reads, copy], clock, SHARE, between)
        read = min(reads, key=lambda c: c.median)
        found.append(
            {
                "bytes": size,
                "read_gb_s": size / read.median / 1e9,
                "read_way": read.name,
                "copy_gb_s": 2 * size / copy.median / 1e9,
            }
        )
    return found
