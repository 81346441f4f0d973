"""The CUDA backend without a GPU: its kernels compiled for the CPU with ``tests/emulator``."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from processes import compiler

from fastconfig import backends

NAME = "fastconfig._cuda"
HERE = Path(__file__).parent
ROOT = HERE.parent
INCLUDED = (HERE / "emulator", ROOT / "csrc", ROOT / "kernels")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas")


@functools.cache
def module(float64: bool) -> ModuleType:
    """``fastconfig._cuda`` on the CPU, built once for a state of the sources; without a compiler, a skip.

    Args:
        float64: whether the device is one that computes float64 at a usable rate.
    """
    command = compiler()
    if command is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    sources = [*sorted((ROOT / "kernels").glob("*.cu")), *sorted((ROOT / "csrc").glob("cuda*.cpp"))]
    included = [path for folder in INCLUDED for path in sorted(folder.iterdir())]
    state = hashlib.sha256(repr((FLAGS, sysconfig.get_platform(), sysconfig.get_python_version())).encode())
    for path in included:
        if path.suffix in (".cu", ".cuh", ".hpp", ".h", ".cpp"):
            state.update(path.read_bytes())
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"_cuda-{state.hexdigest()[:16]}-{int(float64)}.so"
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of test processes side by side one builds
        if not target.exists():
            _build(command, sources, float64, target)
    before = sys.modules.get(NAME)
    spec = importlib.util.spec_from_file_location(NAME, target)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    del sys.modules[NAME]  # where a module of C puts itself
    if before is not None:
        sys.modules[NAME] = before
    return made


def serve(monkeypatch: pytest.MonkeyPatch, float64: bool) -> None:
    """Have the CUDA backend serve the CPU."""
    monkeypatch.setitem(sys.modules, NAME, module(float64))
    backends._loaded.pop("cuda", None)


def _build(command: list[str], sources: list[Path], float64: bool, target: Path) -> None:
    include = [f"-I{path}" for path in (*INCLUDED, sysconfig.get_path("include"))]
    define = f"-DFASTCONFIG_EMULATED_FLOAT64={int(float64)}"

    def compile_one(source: Path) -> str:
        made = str(target.with_suffix(f".{source.stem}.o"))
        run = [*command, *FLAGS, *include, define, "-include", "cuda_runtime.h", "-x", "c++"]
        subprocess.run([*run, "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    unfinished = target.with_suffix(".part")
    subprocess.run([*command, "-shared", "-pthread", *objects, "-o", unfinished], check=True)
    unfinished.rename(target)
    for made in objects:
        os.unlink(made)
