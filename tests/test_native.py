"""The compiled code without Python: programs that judge it, run under sanitizers of addresses and of UB."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import built
import processes
import pytest

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


def compile_and_run(compiler: list[str], source: Path, *flags: str, seed: int) -> None:
    """Make a program of one source file, sanitized, and run it on a seed."""
    command = [*compiler, *SANITIZED, *flags]
    program = built.once(
        source.stem,
        [source, *built.sources(HERE / "native", CSRC)],
        command,
        lambda target: succeed(*command, str(source), "-o", str(target)),
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
        compile_and_run(found, trivial, seed=0)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"address and undefined sanitizers do not work here: {error}")
    return found


@pytest.mark.parametrize("source", PROGRAMS, ids=lambda source: source.stem)
def test_sanitized(source: Path, compiler: list[str], seed: int) -> None:
    compile_and_run(compiler, source, *WARNINGS, "-I", str(CSRC), seed=seed)
