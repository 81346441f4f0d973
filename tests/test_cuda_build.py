"""What the CUDA compiler says of the kernels: no spills, and registers for all threads of a block."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "kernels").glob("*.cu"))
NVCC = shutil.which("nvcc")
REGISTERS = 65536  # of a multiprocessor

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def compiled(source: Path, arch: int, folder: Path) -> tuple[str, dict[str, int]]:
    """The assembler's report, and threads of a block by kernel."""
    cubin = folder / "kernels.cubin"
    include = [f"-I{ROOT / name}" for name in ("csrc", "kernels")]
    options = ["-std=c++17", "-O3", "-Xptxas", "-v", "--keep", "--keep-dir", str(folder)]
    run = [str(NVCC), *options, *include, f"-arch=sm_{arch}", "-cubin", str(source), "-o", str(cubin)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assembly = next(folder.glob("*.ptx")).read_text()
    entries = re.findall(r"\.entry (\w+)\(.*?\)\s*(\.maxntid (\d+))?", assembly, re.DOTALL)
    return done.stderr, {name: int(threads or 1024) for name, _, threads in entries}


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_spills_and_room_for_all_threads(source: Path, arch: int, tmp_path: Path) -> None:
    report, threads = compiled(source, arch, tmp_path)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(threads) > 0
    assert set(spills) == {("0", "0")}
    used = dict(re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL))
    assert used.keys() == threads.keys()
    for name, registers in used.items():
        # the assembler hands out registers by eights
        assert (int(registers) + 7) // 8 * 8 * threads[name] <= REGISTERS, name
