"""One command with a time limit: over it, the command's whole process group is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LOOK_EVERY = 0.1  # seconds
DEATH = 3.0  # seconds within which a killed process is gone, unless a driver holds it


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit status; None if it was killed.
        seconds: that it ran.
        why: "done", or what was wrong.
    """

    code: int | None
    seconds: float
    why: str


def run(
    command: Sequence[str | Path],
    seconds: float,
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    alive: Path | None = None,
    silence: float = float("inf"),
    meanwhile: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a command.

    Args:
        command: what to run, in a process group of its own.
        seconds: until it is killed with all that it started.
        log: its output is added to this file.
        environment, folder: it runs with and in.
        alive: a file that it writes again and again, at least every ``silence`` seconds, or it is killed.
        meanwhile: is called several times a second.
    """
    began = heard = time.monotonic()
    before = _written(alive)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    why = ""
    try:
        while not why and child.poll() is None:
            now = time.monotonic()
            if (written := _written(alive)) != before:
                before, heard = written, now
            if now - began > seconds:
                why = f"killed over its {seconds:.0f} s"
            elif now - heard > silence:
                why = f"killed after {silence:g} s without a result"
            else:
                meanwhile()
                time.sleep(LOOK_EVERY)
    finally:
        _kill_group(child)  # also what a command that has ended left behind
    meanwhile()
    took = time.monotonic() - began
    if why:
        return Ended(None, took, why)
    code = child.returncode
    return Ended(code, took, "done" if code == 0 else f"failed with exit status {code}")


def _written(path: Path | None) -> int | None:
    """When a file was last written."""
    try:
        return None if path is None else path.stat().st_mtime_ns
    except OSError:
        return None


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(DEATH)
