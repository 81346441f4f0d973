"""What this machine has: versions, processor, devices."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numba", "numpy", "triton", "conflictfree")


def versions() -> dict[str, str | None]:
    """Version of fastconfig, python and each of ``PACKAGES`` (None if missing), none imported."""
    from . import __version__

    found: dict[str, str | None] = {"fastconfig": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """Name of the CPU model, or of its architecture where the system does not tell more."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def origin(threads: int) -> dict[str, Any]:
    """Where figures come from: for the JSON files of the benchmarks."""
    return {"processor": processor(), "threads": threads, "versions": versions()}


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_device(name: str) -> torch.device:
    """Return the device if it can be used here.

    Raises:
        ValueError: naming what came and what is wanted.
    """
    import torch

    wanted = "want cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"got {name!r}, {wanted}") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"got {name!r}, {wanted}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ValueError(f"got {name!r}, but PyTorch sees {count} CUDA devices here; {wanted}")
    return device
