"""torch's own OpenMP team, so that a kernel brings no second thread pool into the process."""

from __future__ import annotations

import ctypes
import os
from array import array
from functools import cache
from pathlib import Path

import torch

# bytes of input from which on waking a team gains more than it costs: for each of a few threads, and for any
EACH, ENOUGH = 1 << 17, 1 << 19
ALONE = 2 * EACH  # bytes of input below which there never is a team

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    # GNU OpenMP's threads do not survive a fork, and a child that waits for them waits for ever.
    os.register_at_fork(after_in_child=_mark_forked)


def threads_for(size: int) -> int:
    """Threads to use for ``size`` bytes of input: torch's number, or one."""
    if size < ALONE or _forked or not team_address():
        return 1
    threads = torch.get_num_threads()
    return threads if size >= worth_a_team(threads) else 1


def worth_a_team(threads: int) -> int:
    """Bytes of input from which on waking a team gains more than it costs."""
    return min(threads * EACH, ENOUGH)


@cache
def team_address() -> int:
    """Address of two words, those of GOMP_parallel and omp_get_thread_num; 0 without them."""
    functions = _functions()
    return functions.buffer_info()[0] if functions else 0


@cache
def _functions() -> array[int] | None:
    """From the OpenMP library that torch has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return None
    names = ("libgomp", "libomp", "libiomp")
    paths = {line[line.index("/") :] for line in lines if "/" in line}
    libraries = sorted(path for path in paths if Path(path).name.startswith(names))
    # torch's own copy first, if another package brought one too
    for path in sorted(libraries, key=lambda path: "torch" not in path):
        try:
            library = ctypes.CDLL(path)
            functions = (library.GOMP_parallel, library.omp_get_thread_num)
        except (OSError, AttributeError):
            continue
        return array("q", [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions])
    return None
