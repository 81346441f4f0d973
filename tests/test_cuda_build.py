"""What the CUDA compiler says of the kernels: no spills, and registers for all threads of a block."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from itertools import product
from pathlib import Path

import pytest
from compile_cuda import NVCC, ROOT, SOURCES, compiled, needs_nvcc, quick
from pairs import slow

REGISTERS = 65536  # of a multiprocessor
FEW = {"heavy": 128}  # bytes that a function may keep over its calls, where one warp works alone

pytestmark = needs_nvcc

JOBS = [
    pytest.param(source, arch, marks=() if quick(source, arch) else slow, id=f"{source.stem}-{arch}")
    for source, arch in product(SOURCES, (90, 80))
]


#: where a kernel of :data:`gpu_predicted.REGISTERS` stands, and its parameters for m float32 rows
KERNELS = {
    "whole": ("update", lambda m: f"IfLi{m}ELi1ELNS_6WeightE0EE"),
    "gram_small": ("gram", lambda m: f"IfLi{m}EE"),
    "finish": ("combine", lambda m: f"IfLi{m}ELNS_6WeightE0EE"),
    "gram_tiles": ("gram_tiles", lambda m: f"IfLi{m // 8}EE"),
    "sum": ("solve", lambda _: "E"),
    "solve_problem": ("solve", lambda _: "ILi2EE"),
    "combine": ("combine", lambda _: "IfEE"),
}


@slow
def test_registers_in_the_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/gpu_predicted.py tells of one release of the compiler."""
    says = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    if "release 13.0" not in says:
        pytest.skip("another release of nvcc")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for m, ways in importlib.import_module("gpu_predicted").REGISTERS.items():
        for kernel, count in {**ways[0], **ways[1]}.items():
            source, parameters = KERNELS[kernel]
            name = f"{len(kernel)}{kernel}{parameters(m)}"
            used = registers(compiled(ROOT / "kernels" / "cuda" / f"{source}.cu", 90))
            assert [found for each, found in used.items() if name in each] == [count], name


def registers(folder: Path) -> dict[str, int]:
    """By kernel, as the compiler reports them."""
    report, _ = json.loads((folder / "report.json").read_text())
    found = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL)
    return {name: int(count) for name, count in found}


@pytest.mark.parametrize(("source", "arch"), JOBS)
def test_no_spills_and_room_for_all_threads(source: Path, arch: int) -> None:
    report, threads = json.loads((compiled(source, arch) / "report.json").read_text())
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(threads) > 0
    assert all(int(count) <= FEW.get(source.stem, 0) for each in spills for count in each)
    used = registers(compiled(source, arch))
    assert used.keys() == threads.keys()
    for name, count in used.items():
        # the assembler hands out registers by eights
        assert (count + 7) // 8 * 8 * threads[name] <= REGISTERS, name
