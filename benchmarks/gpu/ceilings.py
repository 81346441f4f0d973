"""The machine, and how fast it copies and reads: what other figures are held against. Needs torch alone."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gpu.points import Machine, Points
from gpu.wheel import commit

SIZES = (1 << 16, 1 << 20, 1 << 24, 1 << 28, 1 << 32)  # bytes
SAMPLES = 20
PACKAGES = ("torch", "triton", "numba", "numpy", "pybind11", "scikit-build-core", "pytest")


def run(points: Points, machine: Machine) -> None:
    points.run("origin", lambda: origin(machine))
    for size in SIZES[:2] if machine.dry else SIZES:
        found = points.run(f"{size} bytes", lambda size=size: bandwidth(size, machine.device))
        if "error" not in found:
            print(
                f"{size:>13,} bytes: copy {found['copy_gb_s']:,.0f} GB/s, read {found['read_gb_s']:,.0f} GB/s"
            )


def origin(machine: Machine) -> dict[str, Any]:
    """As ``fastconfig bench`` has it, and what a GPU's owner asks next."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    here: dict[str, Any] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "load_before": os.getloadavg()[0],
    }
    if not machine.dry:
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} sees no CUDA device")
        of = torch.cuda.get_device_properties(0)
        here |= {
            "device": of.name,
            "l2_bytes": of.L2_cache_size,
            "multiprocessors": of.multi_processor_count,
            "memory_bytes": of.total_memory,
            "cuda": torch.version.cuda,
            "driver_says": told_by_the_driver(),
        }
    print(here, versions)
    return {"machine": here, "versions": versions, "commit": commit()}


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def told_by_the_driver() -> str:
    """Its version, and the clocks as they are."""
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def bandwidth(size: int, device: str) -> dict[str, Any]:
    """GB/s of a copy, bytes read plus bytes written, and of a read; medians."""
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device)
    read = seconds(source.sum, device)
    return {
        "bytes": size,
        "read_gb_s": size / read / 1e9,
        "read_way": "torch.sum",
        "copy_gb_s": 2 * size / copy / 1e9,
    }


def seconds(call: Callable[[], Any], device: str) -> float:
    """Median of calls one after another; of ten at a time where they are short."""
    call()
    times, many = [], 10
    for _ in range(SAMPLES):
        if device == "cpu":
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(many):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / many)
    return statistics.median(times)
