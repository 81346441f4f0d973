"""The CUDA sources compiled by nvcc, once for all tests of a state of the sources."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import built
import pytest

ROOT = built.ROOT
INCLUDED = [ROOT / name for name in ("csrc", "kernels/cuda")]
SOURCES = sorted((ROOT / "kernels/cuda").glob("*.cu"))
QUICK = ("gram", "solve")  # others take up to half a minute of a processor
NVCC = shutil.which("nvcc")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def quick(source: Path, arch: int) -> bool:
    return arch == 90 and source.stem in QUICK


def compiled(source: Path, arch: int) -> Path:
    """A folder with kernels.cubin, and the assembler's report and threads by kernel in report.json."""
    compiler = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    state = [source, *built.sources(*INCLUDED)]
    return built.once(
        f"{source.stem}-{arch}", state, (compiler,), lambda target: _compile(source, arch, target)
    )


def _compile(source: Path, arch: int, target: Path) -> None:
    target.mkdir(exist_ok=True)
    options = ["-std=c++17", "-O3", "-Xptxas", "-v", "--keep", f"-arch=sm_{arch}", "-cubin", str(source)]
    with tempfile.TemporaryDirectory() as folder:
        include = [f"-I{path}" for path in INCLUDED]
        run = [str(NVCC), *options, *include, "--keep-dir", folder, "-o", str(target / "kernels.cubin")]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assembly = next(Path(folder).glob("*.ptx")).read_text()
    entries = re.findall(r"\.entry (\w+)\(.*?\)\s*(\.maxntid (\d+))?", assembly, re.DOTALL)
    report = [done.stderr, {name: int(threads or 1024) for name, _, threads in entries}]
    (target / "report.json").write_text(json.dumps(report))
