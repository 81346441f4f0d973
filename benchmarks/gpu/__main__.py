"""``make gpu``: build, test and measure on a machine with a CUDA GPU and no network, within nine minutes.

    python benchmarks/gpu --out FOLDER [--dry-run] [--steps ceilings,install,...]

Every step (plan.py) is a process of its own with a time limit; none stops the next. What it has found is in
FOLDER at once: ``gpu-<card>.json`` in the form of ``fastconfig bench``, and ``gpu-<card>-steps.zip`` with the
steps' own files and logs. Needs nothing but Python here; the steps need torch.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path[0] = str(BENCHMARKS)  # so that this folder is the package gpu

from gpu import merge, plan, steps  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description="Build, test and measure on a CUDA GPU.")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, all that needs no GPU")
    parser.add_argument("--steps", type=lambda text: text.split(","), help="some steps only")
    parser.add_argument("--wheels", type=Path, default=BENCHMARKS.parent / "wheels")
    arguments = parser.parse_args()
    try:
        chosen = plan.chosen(arguments.steps)
    except ValueError as error:
        parser.error(f"argument --{error}")
    print(plan.table(chosen), flush=True)
    card = "dry-run" if arguments.dry_run else card_here()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step at work ends, too
    work = Path(tempfile.mkdtemp(prefix="fastconfig-gpu-"))
    try:
        return steps.run(chosen, out, work, arguments.wheels.resolve(), card)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def card_here() -> str:
    """Of the driver's list of devices.

    Raises:
        SystemExit: if it has none.
    """
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        name = ""
    if not name:
        sys.exit("make gpu: nvidia-smi lists no device here; GPU_ARGS=--dry-run runs what needs none")
    return merge.card_of(name.splitlines()[0])


if __name__ == "__main__":
    sys.exit(main())
