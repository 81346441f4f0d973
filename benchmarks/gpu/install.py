"""The package under test and the peers into a folder of their own, outside of the checkout.

No virtual environment: one that is made inside another sees nothing of it. And nothing is run from the
checkout, whose folder ``fastconfig`` has no extension and would come first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu.points import Machine, Points
from gpu.wheel import ROOT, build_tag

PIP = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps")
LOOK = """
import json, fastconfig, fastconfig._C
found = {"package": fastconfig.__file__, "cuda": None}
try:
    import fastconfig._cuda as cuda
    found["cuda"] = cuda.problem() or "serves"
except ImportError as error:
    found["cuda"] = str(error)
print(json.dumps(found))
"""


def run(points: Points, machine: Machine) -> None:
    target = machine.work / "packages"
    for name, what, extra in candidates(machine.wheels):
        attempt = points.run(name, lambda what=what, extra=extra: install(what, extra, machine))
        if "error" not in attempt:
            (machine.work / "attempt").rename(target)
            points.note("installed", name)
            # the ones that failed are told there, and are no failure of the step
            points.note("passed over", {k: p for k, p in points.found["points"].items() if "error" in p})
            for failed in points.found["passed over"]:
                del points.found["points"][failed]
            break
    peers = [path for path in sorted(machine.wheels.glob("*.whl")) if not path.name.startswith("fastconfig-")]
    for wheel in peers:
        points.run(wheel.name, lambda wheel=wheel: pip(["--target", str(target), str(wheel)], machine))


def candidates(wheels: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """What to try, in order: a wheel of these very sources, a build of them, a wheel of others."""
    tag = f"-{build_tag()}-"
    found = sorted(wheels.glob("fastconfig-*.whl"), key=lambda path: path.stat().st_mtime, reverse=True)
    for wheel in found:
        if tag in wheel.name:
            yield wheel.name, wheel, []
    yield "build", ROOT, ["--no-build-isolation"]
    for wheel in found:
        if tag not in wheel.name:
            yield f"{wheel.name}, of other sources", wheel, []


def install(what: Path, extra: list[str], machine: Machine) -> dict[str, Any]:
    """Into a new folder, and look whether it runs."""
    attempt = machine.work / "attempt"
    shutil.rmtree(attempt, ignore_errors=True)
    if what == ROOT:
        extra = [*extra, "-C", f"cmake.define.FASTCONFIG_CUDA={'OFF' if machine.dry else 'ON'}"]
    pip([*extra, "--target", str(attempt), str(what)], machine)
    environment = {**os.environ, "PYTHONPATH": str(attempt)}
    look = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, env=environment, cwd=machine.work
    )
    if look.returncode:
        raise RuntimeError(look.stderr[-1500:])
    found = json.loads(look.stdout.splitlines()[-1])
    if not Path(found["package"]).resolve().is_relative_to(attempt.resolve()):
        raise RuntimeError(f"fastconfig came from {found['package']}, want it from {attempt}")
    if not machine.dry and found["cuda"] != "serves":
        raise RuntimeError(f"fastconfig._cuda: {found['cuda']}")
    print(f"installed {what.name}: {found}")
    return found


def pip(arguments: list[str], machine: Machine) -> dict[str, Any]:
    """Run pip install.

    Raises:
        RuntimeError: with what pip said, if it failed.
    """
    jobs = str(len(os.sched_getaffinity(0)))
    environment = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": jobs}
    run = subprocess.run(
        [*PIP, *arguments], capture_output=True, text=True, env=environment, cwd=machine.work
    )
    if run.returncode:
        raise RuntimeError((run.stdout + run.stderr)[-1800:])
    return {}
