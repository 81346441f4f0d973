"""``make gpu``: build, test and measure on a machine with a CUDA GPU and no network; one JSON comes out.

Makes a virtual environment on top of the Python that runs this, which has torch, triton, numba, pybind11 and
scikit-build-core; adds the wheels that lie in ``wheels/`` (pytest, rich, the peers: ``make gpu-wheels``
fetches them elsewhere); builds the package with its CUDA extension; runs all tests, those of
test_gpu_kernels.py and test_gpu.py on the device, and a small run under compute-sanitizer where there is one;
then ``fastconfig bench`` with a cold L2 and CUDA graphs, and the host's time of an eager call.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json [--steps build,test,sanitize,bench] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL_RUN = Path(__file__).with_name("gpu_host.py")
STEPS = ("build", "test", "sanitize", "bench")
NATIVE = {"CUDAARCHS": "native", **os.environ}  # built for the GPU that is here
# what the device is judged by; small N shows the launches, large N the bandwidth
MATRIX = ("--m", "2,3,8,32", "--n", "1e4,1e5,1e6,1e7,1e8", "--dtype", "float32,bfloat16")
QUICK = ("--m", "3,8", "--n", "1e4,1e7", "--quick")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build, test and measure on a CUDA GPU.")
    parser.add_argument("--json", type=Path, required=True, help="the file to write")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"some of {', '.join(STEPS)}")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-gpu")
    parser.add_argument("--quick", action="store_true", help="few sizes, few samples")
    arguments = parser.parse_args()
    steps = arguments.steps.split(",")
    if unknown := set(steps) - set(STEPS):
        parser.error(f"argument --steps: got {', '.join(sorted(unknown))}, want some of {', '.join(STEPS)}")
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode:
        sys.exit(f"benchmarks/gpu.py: {sys.executable} has no PyTorch that sees a CUDA device")
    python = arguments.venv / "bin" / "python"
    if "build" in steps or not python.exists():
        build(arguments.venv, python)
    tests = test(python) if "test" in steps else None
    sanitized = sanitize(python) if "sanitize" in steps else None
    numbers = bench(python, arguments.json, arguments.quick) if "bench" in steps else {}
    if "bench" in steps:
        numbers["host_us"] = host(python)
    numbers["tests"], numbers["sanitizer"] = tests, sanitized
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.json}")
    failed = [tests is not None and tests["exit"] != 0, *(code != 0 for code in (sanitized or {}).values())]
    return int(any(failed))


def build(venv: Path, python: Path) -> None:
    """The package and whatever ``wheels/`` holds, from this machine's own torch and compilers."""
    run = [sys.executable, "-m", "venv", "--system-site-packages", venv]
    subprocess.run(run, check=True)
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    wheels = sorted((ROOT / "wheels").glob("*.whl"))
    if wheels:
        subprocess.run([*install, *wheels], check=True)
    subprocess.run([*install, "--no-build-isolation", "-e", ROOT], check=True, env=NATIVE)


def test(python: Path) -> dict[str, object]:
    """All tests; how many passed, and the last lines if any did not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    order = ["tests/test_gpu.py", "tests/test_gpu_kernels.py", "tests"]
    many = subprocess.run([python, "-c", "import xdist"], stderr=subprocess.DEVNULL).returncode == 0
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if many else []
    command = [python, "-m", "pytest", "-q", "--maxfail=20", *workers, *order, "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(run.stdout[-6000:], run.stderr[-2000:])
    counts = {
        kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", run.stdout)
    }
    last = "" if run.returncode == 0 else run.stdout[-4000:]
    return {"command": "pytest " + " ".join(order), "exit": run.returncode, **counts, "last": last}


def sanitize(python: Path) -> dict[str, int]:
    """Exit codes of compute-sanitizer's tools over a small run; none where there is no compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("no compute-sanitizer on the PATH")
        return {}
    codes = {}
    for name in ("memcheck", "racecheck", "initcheck"):
        command = [tool, "--tool", name, "--error-exitcode", "1", python, SMALL_RUN, "--once"]
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "FASTCONFIG_BACKEND": "cuda"}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        print(f"compute-sanitizer {name}: exit {run.returncode}\n{run.stdout[-1500:]}")
        codes[name] = run.returncode
    return codes


def host(python: Path) -> dict[str, dict[str, float]]:
    """Microseconds of the host in an eager call, by backend and form."""
    run = subprocess.run([python, SMALL_RUN], cwd=ROOT, capture_output=True, text=True)
    return json.loads(run.stdout) if run.returncode == 0 else {}


def bench(python: Path, target: Path, quick: bool) -> dict[str, object]:
    """The benchmark's own JSON."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # or a run that fails would publish an older one's figures
    command = [python, "-m", "fastconfig", "bench", "--device", "cuda", *(QUICK if quick else MATRIX)]
    code = subprocess.run([*command, "--json", target], cwd=ROOT).returncode
    if not target.exists():
        sys.exit(f"benchmarks/gpu.py: the benchmark wrote no {target} (exit {code})")
    return json.loads(target.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
