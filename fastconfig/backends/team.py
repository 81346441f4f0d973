"""torch's own OpenMP team, so that a kernel brings no second thread pool into the process."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

SERIAL_BELOW = 1 << 19  # bytes of input under which waking a team costs more than it gains

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    # GNU OpenMP's threads do not survive a fork, and a child that waits for them waits for ever.
    os.register_at_fork(after_in_child=_mark_forked)


def threads_for(size: int) -> int:
    """Threads to use for ``size`` bytes of input: torch's number, or one."""
    if size < SERIAL_BELOW or _forked or not parallel_address():
        return 1
    return torch.get_num_threads()


@cache
def parallel_address() -> int:
    """Address of GOMP_parallel in the OpenMP library that torch has loaded; 0 if there is none."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    names = ("libgomp", "libomp", "libiomp")
    paths = {line[line.index("/") :] for line in lines if "/" in line}
    libraries = sorted(path for path in paths if Path(path).name.startswith(names))
    # torch's own copy first, if another package brought one too
    for path in sorted(libraries, key=lambda path: "torch" not in path):
        try:
            function = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0
