"""The GPU test files, from outside of the checkout, on the package that was installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpu.points import Machine, Points
from gpu.wheel import ROOT

TESTS = ROOT / "tests"
# those that need no GPU for an answer, and take seconds
DRY = ("test_gpu.py", "test_gpu_training.py")
MORE = ("test_cuda_backend.py", "test_cuda_groups.py", "test_cuda_momentum.py")
WORKERS = 12
HANGS = 60  # seconds after which a test that is still running shows where it is


def cuda(points: Points, machine: Machine) -> None:
    """All but Triton's."""
    points.run("not triton", lambda: pytest("not triton", files(machine), machine))


def triton(points: Points, machine: Machine) -> None:
    """Triton's, which compile."""
    points.run("triton", lambda: pytest("triton", files(machine), machine))


def files(machine: Machine) -> list[Path]:
    if machine.dry:
        return [TESTS / name for name in DRY]
    found = sorted(path for path in TESTS.glob("test_gpu*.py") if path.name != "test_gpu_script.py")
    return found + [TESTS / name for name in MORE if (TESTS / name).exists()]


def pytest(chosen: str, files: list[Path], machine: Machine) -> dict[str, Any]:
    """Counts of outcomes.

    Raises:
        RuntimeError: naming the tests that failed or did not end.
    """
    stem = machine.work / "steps" / f"tests-{chosen.replace(' ', '-')}"
    workers = 2 if machine.dry else min(WORKERS, len(os.sched_getaffinity(0)))
    # no plugin but these, and no warning is an error: both are other machines' business, and not this one's
    plugins = ["-W", "default", "-p", "xdist.plugin", "-p", "gpu.pytest_lines", "-p", "no:cacheprovider"]
    command = [
        *(sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT),
        *(*plugins, "-n", str(workers), "--dist", "worksteal", "-k", chosen),
        *("--junit-xml", f"{stem}.xml", "-o", f"faulthandler_timeout={HANGS}", *files),
    ]
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
        "GPU_LINES": f"{stem}.json",
    }
    code = subprocess.run(command, env=environment, cwd=machine.work).returncode
    lines = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
    print(f"{chosen}: {lines['counts']}, exit status {code}", flush=True)
    if code not in (0, 5):  # 5: there was none
        broken = [*lines["failed"], *(f"{name} (not ended)" for name in lines["running"])]
        raise RuntimeError(f"exit status {code}, {lines['counts']}: {', '.join(broken)}")
    return {"exit": code, **lines}
