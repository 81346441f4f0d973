"""One step after another, each in processes of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from gpu import merge, plan, runner
from gpu.points import Machine, Points

BENCHMARKS = Path(__file__).resolve().parents[1]
TOLD = 900  # characters of a step's output
SLOWER = 6  # times that a dry run may take for a point
LEAST = 3.0  # seconds below which a step is not started again
ALSO = ("/usr/local/cuda/bin",)  # where nvcc may lie beside the PATH


def run(steps: list[plan.Step], out: Path, work: Path, wheels: Path, card: str) -> int:
    """All steps, one after another.

    Returns:
        0, or 1 if a step failed or a result was wrong.
    """
    files = work / "steps"
    files.mkdir()
    folder = merge.Folder(out, files, card, f"make gpu ({', '.join(step.name for step in steps)})")
    began, due = time.time(), 0.0
    for step in steps:
        due += step.seconds
        machine = Machine("cpu" if card == "dry-run" else "cuda", work, wheels, began + due)
        print(f"\n== {step.name}, {machine.left():.0f} s", flush=True)
        ended = run_step(step, machine, folder)
        folder.ended[step.name] = {"planned": step.seconds, "seconds": ended.seconds, "ended": ended.why}
        folder.write()
        log = (files / f"{step.name}.log").read_text(encoding="utf-8", errors="replace")
        print(log[-TOLD:], f"-- {step.name}: {ended.why}, {ended.seconds:.1f} s", sep="\n", flush=True)
    failed = json.loads(folder.merged.read_text(encoding="utf-8"))["failed"]
    print(f"\n{folder.merged} and {folder.zipped.name} after {time.time() - began:.0f} s")
    for name, how in folder.ended.items():
        print(f"  {name:12} {how['seconds']:6.1f} s of {how['planned']:3}  {how['ended']}")
    print(*(line[:300] for line in failed[:20]), sep="\n")
    return int(bool(failed) or any(how["ended"] != "done" for how in folder.ended.values()))


def run_step(step: plan.Step, machine: Machine, folder: merge.Folder) -> runner.Ended:
    """A step's process; again behind a point that ended it, as long as that brings new points."""
    file, log = folder.steps / f"{step.name}.json", folder.steps / f"{step.name}.log"
    began, why = time.monotonic(), ""
    while True:
        points = len(Points(file, why).found["points"])  # marks the point that was running
        place = (file, machine.device, machine.work, machine.wheels, machine.until)
        ended = runner.run(
            [sys.executable, "-m", "gpu.child", step.function, *map(str, place), why],
            machine.left(),
            log,
            environment=environment(machine),
            folder=machine.work,
            alive=file,
            silence=step.silence * (SLOWER if machine.dry else 1),
            meanwhile=folder.while_running,
        )
        why = ended.why
        found = Points(file, why).found["points"]
        orderly = ended.code in (0, 1)  # 1: it went through all its points, and some failed
        if orderly or machine.left() < LEAST or len(found) == points:
            break
    took = time.monotonic() - began
    if ended.code == 1 and not any("error" in point for point in found.values()):
        why = "failed beside its points: its log says how"
    return runner.Ended(ended.code, took, why)


def environment(machine: Machine) -> dict[str, str]:
    """The package that was installed before any other, this one's scripts, caches of the run's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCONFIG_", "TRITON_", "PYTEST_"))}
    places = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep), *ALSO]
    return kept | {
        "PATH": os.pathsep.join(places),
        "PYTHONPATH": os.pathsep.join((str(machine.work / "packages"), str(BENCHMARKS))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TRITON_CACHE_DIR": str(machine.work / "triton"),
        "NUMBA_CACHE_DIR": str(machine.work / "numba"),
    }
