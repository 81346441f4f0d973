"""Times of several contestants in one run: all take turns, so that a noisy moment meets all of them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

SAMPLE_SECONDS = 3e-4  # short calls are repeated up to this: long against a clock tick, short against noise
MOST_SAMPLES = 200
# A shorter call is timed as in a loop of its own: others have been at the caches, and a last cache that takes
# what the one before it drops holds a vector only after it has come back several times.
WARM_BELOW = 0.05  # seconds
IN_A_ROW = 4  # samples at a time, after as many calls that are not timed
GRAPH = "CUDA graph"  # how a call is timed on a device
ON_WARM = 8  # calls on a device that follow one from a cold L2, and are timed together


@dataclass
class Contestant:
    """Something to be timed.

    Attributes:
        operation: what it does, as in ``cases``; "read" or "write" for a floor.
        name: who does it.
        call: does it once.
        backend: of this package's own operations.
        least: samples at least.
        around: entered around every run of calls.
        samples: seconds a call.
        calls: calls that a sample is the mean of.
        in_a_row: samples that are taken at a time.
        eager: whether a device takes it call by call, never as a CUDA graph.
        warm: seconds a call on a device whose L2 holds what the call before left there.
        compared: whether its result can be held against the oracle's.
        answer: gives what is held against the oracle's, where a call changes a state.
        note: how it was run.
    """

    operation: str
    name: str
    call: Callable[[], Any]
    backend: str | None = None
    least: int = 5
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    samples: list[float] = field(default_factory=list)
    calls: int = 1
    in_a_row: int = 1
    eager: bool = False
    warm: list[float] = field(default_factory=list)
    compared: bool = True
    answer: Callable[[], Any] | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def quantile(self, share: float) -> float:
        """Of the samples, nearest rank."""
        ordered = sorted(self.samples)
        return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


class Clock(Protocol):
    """How a call is timed on a kind of device."""

    def once(self, contestant: Contestant) -> tuple[float, Any]:
        """Seconds of one call, and its result."""

    def prepare(self, contestant: Contestant, seconds: float) -> None:
        """What has to be done before the first sample, for a call that takes about so long."""

    def sample(self, contestant: Contestant) -> list[float]:
        """Seconds a call, ``in_a_row`` times."""

    def release(self) -> None:
        """Free the memory kept for the samples."""


class HostClock:
    """Calls on the CPU, back to back."""

    def once(self, contestant: Contestant) -> tuple[float, Any]:
        with contestant.around():
            began = time.perf_counter()
            result = contestant.call()
            return time.perf_counter() - began, result

    def prepare(self, contestant: Contestant, seconds: float) -> None:
        contestant.in_a_row = IN_A_ROW if seconds < WARM_BELOW else 1

    def sample(self, contestant: Contestant) -> list[float]:
        call, calls, found = contestant.call, range(contestant.calls), []
        with contestant.around():
            if contestant.in_a_row > 1:
                for _ in range(contestant.in_a_row):
                    call()
            for _ in range(contestant.in_a_row):
                began = time.perf_counter()
                for _ in calls:
                    call()
                found.append((time.perf_counter() - began) / len(calls))
        return found

    def release(self) -> None:
        pass


class DeviceClock:
    """Calls on a CUDA device from a cold L2; CUDA graphs where they can be captured, and then warm, too."""

    def __init__(self, device: torch.device) -> None:
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self.written = torch.empty(2 * size, dtype=torch.uint8, device=device)
        self.read = torch.ones(2 * size // 4, device=device)
        self.runs: dict[int, Callable[[], Any]] = {}

    def once(self, contestant: Contestant) -> tuple[float, Any]:
        torch.cuda.synchronize()
        with contestant.around():
            began = time.perf_counter()
            result = contestant.call()
            torch.cuda.synchronize()
            return time.perf_counter() - began, result

    def prepare(self, contestant: Contestant, seconds: float) -> None:
        contestant.calls = 1
        self.runs[id(contestant)] = contestant.call
        contestant.note = "eager"
        # a failed capture leaves torch 2.11's allocator unusable, so others' calls are not tried
        if contestant.eager:
            return
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        try:
            with contestant.around(), torch.cuda.stream(side):
                contestant.call()
                side.synchronize()
                with torch.cuda.graph(graph, stream=side):
                    contestant.call()
        except RuntimeError as error:  # it synchronises with the host, say
            torch.cuda.synchronize()
            contestant.note = f"eager: {str(error).splitlines()[0]}" if str(error) else "eager"
        else:
            contestant.note = GRAPH
            self.runs[id(contestant)] = graph.replay

    def sample(self, contestant: Contestant) -> list[float]:
        start, cold, warm = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        run = self.runs[id(contestant)]
        with contestant.around():
            self.cool()
            start.record()
            run()
            cold.record()
            if contestant.note == GRAPH:
                for _ in range(ON_WARM):
                    run()
                warm.record()
            torch.cuda.synchronize()
        if contestant.note == GRAPH:
            contestant.warm.append(cold.elapsed_time(warm) / 1000 / ON_WARM)
        return [start.elapsed_time(cold) / 1000]

    def cool(self) -> None:
        """Fill L2 with lines that are nobody's and, since the last were read, need not be written back."""
        self.written.zero_()
        self.read.sum()

    def release(self) -> None:
        """Graphs hold the memory that they were captured with."""
        self.runs.clear()
        gc.collect()
        torch.cuda.empty_cache()


def measure(
    contestants: Sequence[Contestant], clock: Clock, share: float, between: Callable[[], None]
) -> None:
    """Fill the samples of all contestants, in rounds.

    Args:
        contestants: all have been called before.
        clock: of their device.
        share: seconds for each, unless its least samples take longer.
        between: called after every round, outside what is timed.
    """
    try:
        _measure(contestants, clock, share, between)
    finally:
        clock.release()


def _measure(
    contestants: Sequence[Contestant], clock: Clock, share: float, between: Callable[[], None]
) -> None:
    wanted = {}  # turns of each
    for contestant in contestants:
        seconds = clock.once(contestant)[0]
        if seconds < WARM_BELOW:
            seconds = min(seconds, clock.once(contestant)[0], clock.once(contestant)[0])
        contestant.calls = max(1, round(SAMPLE_SECONDS / seconds))
        clock.prepare(contestant, seconds)
        affordable = round(share / (contestant.calls * seconds))
        samples = min(max(affordable, contestant.least), MOST_SAMPLES)
        wanted[id(contestant)] = math.ceil(samples / contestant.in_a_row)
    rounds = max(wanted.values(), default=0)
    with no_collection():
        for done in range(rounds):
            turn = done % len(contestants)
            for contestant in [*contestants[turn:], *contestants[:turn]]:
                number = wanted[id(contestant)]
                # slow ones take part in fewer rounds, spread over all of them
                if (done + 1) * number // rounds > done * number // rounds:
                    contestant.samples += clock.sample(contestant)
            between()


@contextmanager
def no_collection() -> Iterator[None]:
    """Without garbage collection, which would land in somebody's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
