"""Every Triton kernel that the launch table can choose compiles for three GPUs: no spills, 16-byte loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import built
import pytest
from pairs import slow

pytest.importorskip("triton")

from fastconfig.kernels.rows_triton import DENSE, TABLE

HOT = (
    "gram_small",
    "gram_tiles",
    "combine",
    "finish",
    "accumulate",
    "accumulate_gram",
    "rescale",
    "finish_step",
)
PARTS = ("float32", "float64", "bfloat16", "float16", "shared", "momentum")
EVERYWHERE = ("float32", "momentum")
# a few sizes, and all dtypes for one GPU, unless asked for everything, which takes minutes for each GPU
WHOLE = os.environ.get("FASTCONFIG_TEST_COMPILE") == "all"
FEW = [] if WHOLE else ["3,8,20"]
ALL = [(arch, part) for arch in (90, 80, 120) for part in PARTS if WHOLE or arch == 90 or part in EVERYWHERE]
# with float64 at a usable rate and without
JOBS = [(90, "kinds"), (120, "kinds"), *(pytest.param(*job, marks=slow) for job in ALL)]


@pytest.mark.parametrize(("arch", "part"), JOBS)
def test_kernels_compile(arch: int, part: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(built.FOLDER / "triton")  # by the sources of a kernel
    script = Path(__file__).with_name("compile_triton.py")
    command = [sys.executable, script, str(arch), part, *(FEW if part in PARTS else [])]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert reports
    wrong = [report for report in reports if report["spilled"] or not loads_whole_vectors(report)]
    assert not wrong, wrong


def loads_whole_vectors(report: dict) -> bool:
    """Whether a kernel that may load 16 bytes at a time does."""
    constants = report["constants"]
    hot = report["kernel"] in HOT and constants["MODE"] in (DENSE, TABLE) and not constants.get("REPAIR")
    return not hot or 128 in report["widths"]
