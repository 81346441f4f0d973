"""Bank conflicts of the m x m stage's shared memory, counted on tests/emulator."""

from __future__ import annotations

import subprocess
from pathlib import Path

import built
import emulated
import processes
import pytest
from pairs import slow

HERE = Path(__file__).parent / "banks"
FLAGS = (*emulated.FLAGS, "-DFASTCONFIG_EMULATED_FLOAT64=1", "-include", "cuda_runtime.h")


def _build(command: list[str], target: Path) -> None:
    """The stage with a call at every access to memory, and what is called without."""
    made = str(target.with_suffix(".o"))
    subprocess.run([*command, "-fsanitize=thread", "-c", str(HERE / "stage.cpp"), "-o", made], check=True)
    subprocess.run([*command, "-pthread", str(HERE / "hooks.cpp"), made, "-o", str(target)], check=True)
    Path(made).unlink()


@slow  # builds for six seconds
def test_bank_conflicts() -> None:
    """No lanes of ConFIG's stage meet at a bank, but on the diagonal of 32 gradients."""
    found = processes.compiler()
    if found is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    command = [*found, *FLAGS, *(f"-I{path}" for path in emulated.INCLUDED)]
    state = built.sources(HERE, *emulated.INCLUDED)
    program = built.once("banks", state, command, lambda target: _build(command, target))
    printed = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout
    print(printed)
    for line in printed.splitlines():
        method, m, instructions, extra = line.split()
        assert int(instructions) > int(m)
        if method == "config":  # 34 numbers apart, two lanes in each half of each of 8 warps meet
            assert int(extra) <= (16 if m == "32" else 0), line
