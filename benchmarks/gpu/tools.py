"""compute-sanitizer and Nsight Compute over gpu/small.py; a dry run runs that without them."""

from __future__ import annotations

import csv
import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu.points import Machine, Points

# where they lie if they are not on the PATH
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/nsight-compute/*")
# by section: a metric by a name that ncu does not know would end it
SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "ComputeWorkloadAnalysis",
    "LaunchStats",
    "Occupancy",
    "SchedulerStats",
    "WarpStateStats",
)
# of which these are told
TOLD = ("gpu__time_duration", "dram__bytes", "dram__throughput", "t_sector_hit_rate", "registers_per_thread")
KERNELS = 3


def memcheck(points: Points, machine: Machine) -> None:
    points.run("memcheck", lambda: sanitized("memcheck", machine))


def racecheck(points: Points, machine: Machine) -> None:
    points.run("racecheck", lambda: sanitized("racecheck", machine))


def counters(points: Points, machine: Machine) -> None:
    points.run("ncu", lambda: counted(machine))


def sanitized(tool: str, machine: Machine) -> dict[str, Any]:
    """How many errors a tool of compute-sanitizer saw.

    Raises:
        RuntimeError: if it saw some, or did not run.
    """
    log = machine.work / "steps" / f"{tool}.txt"
    before: list[str] = []
    if not machine.dry:
        # our kernels only: torch's would take the time, and torch tries calls that may fail
        before = [
            *(found("compute-sanitizer"), "--tool", tool, "--error-exitcode", "9", "--log-file", str(log)),
            *("--kernel-name", "kernel_substring=fastconfig", "--report-api-errors", "no"),
        ]
    # each allocation by itself, so that a read beyond one is seen
    watched(before, "kernels", machine, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, log)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return {"summary": re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)}


def counted(machine: Machine) -> dict[str, Any]:
    """Hardware counters of the first kernels, as ncu's CSV has them.

    Raises:
        RuntimeError: with what ncu said, if it failed.
    """
    log = machine.work / "steps" / "ncu.csv"
    before: list[str] = []
    if not machine.dry:
        before = [
            *(found("ncu"), "--profile-from-start", "off", "--launch-count", str(KERNELS)),
            *("--clock-control", "none"),  # the card's clocks stay as they are
            *(part for section in SECTIONS for part in ("--section", section)),
            *("--csv", "--page", "raw", "--log-file", str(log)),
        ]
    watched(before, "counters", machine, {}, log)
    if machine.dry:
        return {"kernels": []}
    kernels = rows_of(log.read_text(encoding="utf-8", errors="replace"))
    if not kernels:
        raise RuntimeError(f"ncu gave no rows: {log.read_text(errors='replace')[-1000:]}")
    for kernel in kernels:
        print({name: value for name, value in kernel.items() if any(told in name for told in TOLD)})
    return {"kernels": kernels}


def watched(
    before: Sequence[str], what: str, machine: Machine, environment: dict[str, str], log: Path
) -> None:
    """Run gpu/small.py.

    Raises:
        RuntimeError: with the end of its output and of the tool's log, if it failed.
    """
    backend = "pytorch" if machine.dry else "cuda"
    command = [*before, sys.executable, "-m", "gpu.small", backend, machine.device, what]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=machine.work
    )
    print(run.stdout[-1500:], run.stderr[-1500:])
    if run.returncode:
        told = log.read_text(encoding="utf-8", errors="replace")[-1200:] if log.exists() else ""
        raise RuntimeError(f"exit status {run.returncode}: {told} {run.stdout[-300:]} {run.stderr[-400:]}")


def rows_of(text: str) -> list[dict[str, str]]:
    """The kernels in ncu's CSV: names and metrics, with their units."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return []
    heads, units, *rows = csv.reader(lines)
    names = [f"{head} {unit}".strip() for head, unit in zip(heads, units, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def found(tool: str) -> str:
    """The path of a tool.

    Raises:
        RuntimeError: if there is none.
    """
    places = [
        os.environ.get("PATH", ""),
        *(folder for place in PLACES for folder in sorted(glob.glob(place))),
    ]
    path = shutil.which(tool, path=os.pathsep.join(places))
    if path is None:
        raise RuntimeError(f"there is no {tool} on the PATH, nor in {', '.join(PLACES)}")
    return path
