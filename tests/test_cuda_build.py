"""What the CUDA compiler says of the kernels: no spills, and registers for all threads of a block."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
from compile_cuda import SOURCES, compiled, needs_nvcc, quick
from pairs import slow

REGISTERS = 65536  # of a multiprocessor
FEW = {"heavy": 128}  # bytes that a function may keep over its calls, where one warp works alone

pytestmark = needs_nvcc

JOBS = [
    pytest.param(source, arch, marks=() if quick(source, arch) else slow, id=f"{source.stem}-{arch}")
    for source, arch in product(SOURCES, (90, 80))
]


@pytest.mark.parametrize(("source", "arch"), JOBS)
def test_no_spills_and_room_for_all_threads(source: Path, arch: int) -> None:
    report, threads = json.loads((compiled(source, arch) / "report.json").read_text())
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(threads) > 0
    assert all(int(count) <= FEW.get(source.stem, 0) for each in spills for count in each)
    used = dict(re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL))
    assert used.keys() == threads.keys()
    for name, registers in used.items():
        # the assembler hands out registers by eights
        assert (int(registers) + 7) // 8 * 8 * threads[name] <= REGISTERS, name
