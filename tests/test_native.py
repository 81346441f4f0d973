"""The compiled code without Python: programs that judge it, sanitized (addresses, UB) or emulated."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import built
import emulated
import processes
import pytest
from pairs import slow

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"
PROGRAMS = sorted((HERE / "native").glob("*.cpp"))
SANITIZED = ("-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
SECONDS = 120  # for a compilation or a run, which take a tenth of it


def succeed(*command: str) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: with all that it wrote to stderr, if it does not exit with 0.
    """
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if ended.returncode != 0:
        raise RuntimeError(f"exit {ended.returncode} of {shlex.join(command)}\n{ended.stderr}")


def compile_and_run(command: list[str], source: Path, seed: int, includes: Sequence[Path] = ()) -> None:
    """Make a program of one source file, unless it is made already, and run it on a seed."""
    command = [*command, *(f"-I{path}" for path in includes), str(source)]
    program = built.once(
        source.stem,
        [source, *built.sources(HERE / "native", *includes)],
        command,
        lambda target: succeed(*command, "-o", str(target)),
    )
    succeed(str(program), str(seed))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The C++ compiler, if a program that it makes with the sanitizers runs here."""
    found = processes.compiler()
    if found is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    trivial = tmp_path_factory.mktemp("sanitizers") / "trivial.cpp"
    trivial.write_text("int main() { return 0; }\n")
    try:
        compile_and_run([*found, *SANITIZED], trivial, seed=0)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"address and undefined sanitizers do not work here: {error}")
    return found


@slow
@pytest.mark.parametrize("source", PROGRAMS, ids=lambda source: source.stem)
def test_sanitized(source: Path, compiler: list[str], seed: int) -> None:
    compile_and_run([*compiler, *SANITIZED, *WARNINGS], source, seed, [CSRC])


@pytest.mark.parametrize("parity", [0, pytest.param(1, marks=slow)])
def test_coefficients_on_a_device(parity: int, seed: int) -> None:
    """The kernels' m x m stage holds what the host's does; seeds of either parity take another launch."""
    found = processes.compiler()
    if found is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    emulator = ("-DFASTCONFIG_EMULATED_FLOAT64=1", "-include", "cuda_runtime.h", "-pthread")
    command = [*found, *emulated.FLAGS, *emulator]
    source = HERE / "native" / "coefficients.cpp"
    compile_and_run(command, source, seed // 2 * 2 + parity, emulated.INCLUDED)
