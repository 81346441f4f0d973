"""Every Triton kernel that the launch table can choose compiles for three GPUs, fits, and is fast there."""

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

from fastconfig.kernels.triton.rows import DENSE, TABLE

HOT = ("gram_small", "gram_tiles", "combine")  # kernels that read gradients
PARTS = ("float32", "float64", "bfloat16", "float16", "shared")
REGISTERS = 65536  # of a multiprocessor
SHARED = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}  # bytes that a program may have
# a few sizes, and all dtypes for one GPU, unless asked for everything, which takes minutes for each GPU
WHOLE = os.environ.get("FASTCONFIG_TEST_COMPILE") == "all"
FEW = [] if WHOLE else ["3,8,9,20,33"]  # one of every size of a tile
ALL = [
    (arch, part, version)
    for version in (
        "installed",
        "3.6.0",
    )  # beside the newest, that of torch 2.11: others fail on other kernels
    for arch in (90, 80, 120)
    for part in PARTS
    if WHOLE or arch == 90 or (part == "float32" and version == "installed")
]
# with float64 at a usable rate, and without
SLOW = [(120, "kinds", "installed"), *ALL]
JOBS = [(90, "kinds", "installed"), *(pytest.param(*job, marks=slow) for job in SLOW)]


@pytest.mark.parametrize(("arch", "part", "version"), JOBS)
def test_kernels_compile(arch: int, part: str, version: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if version != "installed":
        environment["PYTHONPATH"] = str(triton_beside(version))
    environment["TRITON_CACHE_DIR"] = str(built.FOLDER / "triton")  # by the sources of a kernel
    script = Path(__file__).with_name("compile_triton.py")
    command = [sys.executable, script, str(arch), part, *(FEW if part in PARTS else [])]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert reports
    wrong = [report for report in reports if not (fits(report, arch) and is_fast(report, part))]
    assert not wrong, wrong


def triton_beside(version: str) -> Path:
    """A folder with another Triton than the one that is installed."""
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        f"triton=={version}",
        "--target",
    ]
    try:
        return built.once(
            "triton-beside", [], [version], lambda path: subprocess.run([*install, path], check=True)
        )
    except subprocess.CalledProcessError:
        pytest.skip(f"Triton {version} cannot be installed here")


def fits(report: dict, arch: int) -> bool:
    """Whether a multiprocessor can run one program: registers are given to a thread by eights."""
    registers = -(-report["registers"] // 8) * 8
    return registers * report["threads"] <= REGISTERS and report["shared"] <= SHARED[arch]


def is_fast(report: dict, part: str) -> bool:
    """Whether a kernel that reads gradients spills nothing, and loads what it may at once."""
    constants = report["constants"]
    if report["kernel"] not in HOT or constants.get("REPAIR"):  # a repair ends at once in most calls
        return True
    whole = constants["MODE"] in (DENSE, TABLE)
    bits = 16 * constants["V"] if part.endswith("float16") else 128
    return not report["spilled"] and (not whole or min(bits, 128) in report["widths"])
