"""The CUDA backend without a GPU: its kernels compiled for the CPU with ``tests/emulator``."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import built
import pytest
import torch
from processes import compiler

from fastconfig import backends

NAME = "fastconfig._cuda"
HERE = Path(__file__).parent
ROOT = HERE.parent
SOURCES = (*sorted((ROOT / "kernels/cuda").glob("*.cu")), *sorted((ROOT / "csrc").glob("cuda*.cpp")))
INCLUDED = (HERE / "emulator", ROOT / "csrc", ROOT / "kernels/cuda")
FLAGS = ("-std=c++17", "-Og", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas")


@functools.cache
def module(float64: bool) -> ModuleType:
    """``fastconfig._cuda`` on the CPU, built once for a state of the sources; without a compiler, a skip.

    Args:
        float64: whether the device is one that computes float64 at a usable rate.
    """
    command = compiler()
    if command is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    options = (*FLAGS, f"-DFASTCONFIG_EMULATED_FLOAT64={int(float64)}")
    target = built.once(
        f"_cuda-{int(float64)}.so",
        built.sources(*INCLUDED),
        (options, sysconfig.get_platform(), sysconfig.get_python_version()),
        lambda target: _build(command, options, target),
    )
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
    monkeypatch.setattr(backends, "registry", backends.Registry())


def serve_here(monkeypatch: pytest.MonkeyPatch, float64: bool = True) -> None:
    """Have the CUDA backend serve a GPU; where there is none, the CPU."""
    monkeypatch.setattr(backends, "registry", backends.Registry())  # a failure withdraws the backend
    if not torch.cuda.is_available():
        serve(monkeypatch, float64)


def _build(command: list[str], options: tuple[str, ...], target: Path) -> None:
    include = [f"-I{path}" for path in (*INCLUDED, sysconfig.get_path("include"))]

    def compile_one(source: Path) -> str:
        made = str(target.with_suffix(f".{source.stem}.o"))
        run = [*command, *options, *include, "-include", "cuda_runtime.h", "-x", "c++"]
        subprocess.run([*run, "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    subprocess.run([*command, "-shared", "-pthread", *objects, "-o", target], check=True)
    for made in objects:
        os.unlink(made)
