"""The compiled code as Python calls it, under sanitizers of addresses and of undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import built
import processes
import pytest
import torch
from pairs import slow

import fastconfig

pytestmark = slow
CSRC = built.ROOT / "csrc"
NAMES = ("bindings", "networks", "results", "steps", "vectors")
SOURCES = [CSRC / f"{name}.cpp" for name in NAMES]
FLAGS = ["-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# an editable installation is found by a finder, which comes before all folders
RUN = """
import sys
folder, *arguments = sys.argv[1:]
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, folder)
from fastconfig import _C
assert _C.__file__.startswith(folder), _C.__file__
import pytest
sys.exit(pytest.main(arguments))
"""


def library(compiler: list[str], name: str) -> str:
    """The path of one of the compiler's libraries."""
    found = subprocess.run(
        [*compiler, f"-print-file-name={name}"], capture_output=True, text=True
    ).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip(f"no {name} beside {compiler[0]}")
    return found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a copy of fastconfig whose ``_C`` is sanitized, and the environment that it runs in."""
    compiler = processes.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    preloaded = " ".join(library(compiler, name) for name in ("libasan.so", "libstdc++.so"))
    headers = Path(torch.__file__).parent / "include"  # pybind11's among them
    include = [f"-I{path}" for path in (CSRC, headers, sysconfig.get_path("include"))]
    command = [*compiler, *FLAGS, *include, *map(str, SOURCES)]

    def make(target: Path) -> None:
        subprocess.run([*command, "-o", str(target)], check=True)

    module = built.once("_C.so", built.sources(CSRC), (command, torch.__version__), make)
    folder = tmp_path_factory.mktemp("sanitized")
    ours = Path(fastconfig.__file__).parent
    shutil.copytree(
        ours, folder / "fastconfig", ignore=shutil.ignore_patterns("*.so", "__pycache__", "kernels")
    )
    shutil.copytree(built.ROOT / "kernels", folder / "fastconfig" / "kernels")
    shutil.copy(module, folder / "fastconfig" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    environment = {
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "FASTCONFIG_TEST_EXAMPLES": "5",
    }
    return folder, environment


@pytest.mark.parametrize(
    "names",
    [["fuzz"], ["short", "merge_into", "momentum_short", "network", "gradients"]],
    ids=["fuzz", "tests"],
)
def test_sanitized(names: list[str], package: tuple[Path, dict[str, str]], seed: int) -> None:
    folder, environment = package
    files = [f"tests/test_{name}.py" for name in names]
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *files, "-p", "no:cacheprovider", "-m", "not slow"],
        env={**os.environ, **environment, "FASTCONFIG_TEST_SEED": str(seed)},
        cwd=built.ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    assert "passed" in run.stdout
