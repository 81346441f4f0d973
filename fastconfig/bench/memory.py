"""Extra peak memory of one call, beyond its result; measured in a process of its own.

Run as a module it reads a list of requests as JSON and answers each with a line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..backends import use_backend
from .cases import Inputs, Setting, flat, make_inputs, our_calls
from .momentum import MOMENTUM
from .peers import find_peers

REPEATS, REPEAT_SECONDS = 3, 2.0
WARM_N = 1000  # elements of the call that loads and compiles what later calls need
# Blocks from 64 KiB on come from the system and go back to it at once, so that resident memory tells.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}


def extra_memory(requests: list[dict[str, Any]]) -> Iterator[int | None]:
    """Bytes for every request in turn, None where they cannot be measured.

    Args:
        requests: of "setting", "operation", "name", "backend", "device" and "threads"; those of one setting
            follow each other.
    """
    command = [sys.executable, "-m", "fastconfig.bench.memory"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **MALLOC}
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(requests))
        child.stdin.close()
        for _ in requests:
            line = child.stdout.readline()  # empty once the child is gone
            yield json.loads(line) if line else None


def serve() -> None:
    """The child process."""
    setting, inputs = None, None
    for request in json.load(sys.stdin):
        device = torch.device(request["device"])
        torch.set_num_threads(request["threads"])
        wanted = Setting(**request["setting"])
        if wanted != setting:
            inputs = None  # before the next ones are made
            setting, inputs = wanted, make_inputs(wanted, device)
        assert inputs is not None
        try:
            print(json.dumps(_answer(request, wanted, inputs, device)), flush=True)
        except Exception:  # a peer's; its timing has told why
            print("null", flush=True)


def _answer(request: dict[str, Any], setting: Setting, inputs: Inputs, device: torch.device) -> int | None:
    small = Setting(setting.m, min(setting.n, WARM_N), setting.dtype, setting.form)
    call_of = _calls(request, device)
    with use_backend(request["backend"]) if request["backend"] else nullcontext():
        call_of(small, make_inputs(small, device))()
        call = call_of(setting, inputs)
        if request["operation"] == MOMENTUM:
            call()  # makes the state, which is no extra
        return extra_bytes(call, device)


def _calls(request: dict[str, Any], device: torch.device) -> Callable[[Setting, Inputs], Callable[[], Any]]:
    operation, backend = request["operation"], request["backend"]
    if backend is None:
        peer = next(p for p in find_peers() if p.name == request["name"])
        return lambda setting, inputs: peer.calls(inputs.grads)[operation]

    def ours(setting: Setting, inputs: Inputs) -> Callable[[], Any]:
        gram = torch.eye(setting.m, dtype=torch.float64, device=device)
        return our_calls(setting, inputs, backend, gram, gram[0])[operation]

    return ours


def extra_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Median over a few calls of the peak memory, beyond what was in use and the result; None if unknown."""
    measure = device_bytes if device.type == "cuda" else host_bytes
    found: list[int] = []
    began = time.perf_counter()
    while not found or (len(found) < REPEATS and time.perf_counter() - began < REPEAT_SECONDS):
        extra = measure(call)
        if extra is None:
            return None
        found.append(max(extra, 0))
    return sorted(found)[len(found) // 2]


def device_bytes(call: Callable[[], Any]) -> int:
    """That peak in the memory of the current CUDA device, as PyTorch allocates it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - _size(result)


def host_bytes(call: Callable[[], Any]) -> int | None:
    """Peak of one call beyond what was in use and its result; None if the system does not tell."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status("VmHWM")
        result = call()
        return _status("VmHWM") - before - _size(result)
    except OSError:
        return None


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def _size(result: Any) -> int:
    vector = result if isinstance(result, torch.Tensor) else flat(result)
    return vector.numel() * vector.element_size()


if __name__ == "__main__":
    serve()
