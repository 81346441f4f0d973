"""Times on a CUDA device, with a device that is not there; and what a run that is ended leaves."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastconfig.bench import timing


class FakeEvent:
    """Tells microseconds from how often the fake device has run something."""

    now, capturing = 0.0, False

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeGraph:
    def replay(self) -> None:
        FakeEvent.now += 1.0


@pytest.fixture
def device_clock(monkeypatch: pytest.MonkeyPatch) -> timing.DeviceClock:
    """One whose device is the CPU, and whose graphs take a millisecond."""

    @contextlib.contextmanager
    def capture(graph: FakeGraph, stream: Any) -> Iterator[None]:
        FakeEvent.capturing = True
        try:
            yield
        finally:
            FakeEvent.capturing = False

    def do_nothing(*given: Any) -> Any:
        return contextlib.nullcontext()

    cuda = SimpleNamespace(
        get_device_properties=lambda device: SimpleNamespace(L2_cache_size=64),
        CUDAGraph=FakeGraph, Stream=lambda: SimpleNamespace(synchronize=do_nothing), Event=FakeEvent,
        stream=do_nothing, synchronize=do_nothing, empty_cache=do_nothing, graph=capture,
    )  # fmt: skip
    monkeypatch.setattr(timing.torch, "cuda", cuda)
    return timing.DeviceClock(torch.device("cpu"))


def test_graphs_are_freed_and_peers_are_never_captured(device_clock: timing.DeviceClock) -> None:
    def call() -> None:
        FakeEvent.now += 5.0
        if FakeEvent.capturing:
            seen.append(names[0])

    def waits() -> None:
        FakeEvent.now += 7.0
        if FakeEvent.capturing:
            raise RuntimeError("it waits\nfor the host")

    seen, names = [], ["ours"]
    ours = timing.Contestant("x", "ours", call, "cuda", least=3)
    peer = timing.Contestant("x", "peer", call, least=3, eager=True)
    refused = timing.Contestant("x", "refused", waits, "cuda", least=3)
    timing.measure([ours], device_clock, 0.01, lambda: None)
    assert seen == ["ours"]
    names[0] = "peer"
    timing.measure([peer, refused], device_clock, 0.01, lambda: None)
    assert seen == ["ours"]
    assert device_clock.runs == {}
    assert (ours.note, peer.note, refused.note) == (timing.GRAPH, "eager", "eager: it waits")
    assert set(ours.samples) == set(ours.warm) == {1e-3}
    assert set(peer.samples) == {5e-3}
    assert set(refused.samples) == {7e-3}
    assert peer.warm == refused.warm == []


def test_figures_are_saved_after_every_setting(tmp_path: Path) -> None:
    """A run that is ended leaves what it has found."""
    file = tmp_path / "x.json"
    code = (
        "import sys, os\n"
        "from fastconfig.bench import run\n"
        "taken = run.run_setting\n"
        "def once(setting, *rest):\n"
        "    if setting.n > 50: os._exit(9)\n"
        "    return taken(setting, *rest)\n"
        "run.run_setting = once\n"
        "run.floor.BANDWIDTH_BYTES = (1 << 16,)\n"
        "from fastconfig.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    asked = [
        "bench",
        "--m",
        "2",
        "--n",
        "50,60",
        "--quick",
        "--no-memory",
        "--only",
        "gram",
        "--backend",
        "pytorch",
    ]
    run = subprocess.run([sys.executable, "-c", code, *asked, "--json", file], capture_output=True, text=True)
    assert run.returncode == 9, run.stderr
    assert [place["setting"]["n"] for place in json.loads(file.read_text())["settings"]] == [50]
