"""The compiled code without Python: programs that judge it, run under sanitizers of addresses and of UB."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import processes
import pytest

HERE = Path(__file__).parent
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


def compile_and_run(compiler: list[str], source: Path, folder: Path, *flags: str, seed: int) -> None:
    """Make a program of one source file, sanitized, in ``folder``, and run it on a seed."""
    program = str(folder / source.stem)
    succeed(*compiler, *SANITIZED, *flags, str(source), "-o", program)
    succeed(program, str(seed))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The C++ compiler, if a program that it makes with the sanitizers runs here."""
    found = processes.compiler()
    if found is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    folder = tmp_path_factory.mktemp("sanitizers")
    trivial = folder / "trivial.cpp"
    trivial.write_text("int main() { return 0; }\n")
    try:
        compile_and_run(found, trivial, folder, seed=0)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"address and undefined sanitizers do not work here: {error}")
    return found


@pytest.mark.parametrize("source", PROGRAMS, ids=lambda source: source.stem)
def test_sanitized(source: Path, compiler: list[str], tmp_path: Path, seed: int) -> None:
    compile_and_run(compiler, source, tmp_path, *WARNINGS, "-I", str(HERE.parent / "csrc"), seed=seed)
