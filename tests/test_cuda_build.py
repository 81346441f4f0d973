"""What the CUDA compiler says of the kernels: no spills, and registers for all threads of a block."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import built
import pytest
from pairs import slow

ROOT = built.ROOT
INCLUDED = [ROOT / name for name in ("csrc", "kernels")]
SOURCES = sorted((ROOT / "kernels").glob("*.cu"))
LARGE = ("combine", "update")  # take half a minute of a processor
NVCC = shutil.which("nvcc")
REGISTERS = 65536  # of a multiprocessor

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def compiled(source: Path, arch: int, target: Path) -> None:
    """Write the assembler's report, and threads of a block by kernel, as JSON."""
    options = ["-std=c++17", "-O3", "-Xptxas", "-v", "--keep", f"-arch=sm_{arch}", "-cubin", str(source)]
    with tempfile.TemporaryDirectory() as folder:
        include = [f"-I{path}" for path in INCLUDED]
        run = [str(NVCC), *options, *include, "--keep-dir", folder, "-o", f"{folder}/kernels.cubin"]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assembly = next(Path(folder).glob("*.ptx")).read_text()
    entries = re.findall(r"\.entry (\w+)\(.*?\)\s*(\.maxntid (\d+))?", assembly, re.DOTALL)
    target.write_text(json.dumps([done.stderr, {name: int(threads or 1024) for name, _, threads in entries}]))


def quick(source: Path, arch: int) -> bool:
    return arch == 90 and source.stem not in LARGE


JOBS = [
    pytest.param(source, arch, marks=() if quick(source, arch) else slow, id=f"{source.stem}-{arch}")
    for source, arch in product(SOURCES, (90, 80))
]


@pytest.mark.parametrize(("source", "arch"), JOBS)
def test_no_spills_and_room_for_all_threads(source: Path, arch: int) -> None:
    compiler = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True).stdout
    found = built.once(
        f"{source.stem}-{arch}.json",
        built.sources(*INCLUDED),
        (compiler,),
        lambda target: compiled(source, arch, target),
    )
    report, threads = json.loads(found.read_text())
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(threads) > 0
    assert set(spills) == {("0", "0")}
    used = dict(re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL))
    assert used.keys() == threads.keys()
    for name, registers in used.items():
        # the assembler hands out registers by eights
        assert (int(registers) + 7) // 8 * 8 * threads[name] <= REGISTERS, name
