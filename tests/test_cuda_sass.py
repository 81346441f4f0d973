"""What nvcc makes of the kernels for sm_90: local memory, loads of rows, tensor cores, size of the stage."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import sass
from compile_cuda import SOURCES, compiled, needs_nvcc, quick
from pairs import slow
from sass import Instruction, Kernel

ARCH = 90
STAGE = Path(__file__).parent / "cuda" / "stage.cu"
#: functions of the m x m stage's general path (csrc/rules.hpp), which a kernel calls where C is not
#: clearly of full rank: one warp works there on what the call passes in memory
GENERAL = ("solve_any", "pinv_apply", "cholesky_solve", "pcgrad", "upgrad", "dualproj", "ActiveSet")

pytestmark = [
    needs_nvcc,
    pytest.mark.skipif(sass.tool() is None, reason="no nvdisasm: neither Triton nor a toolkit"),
]


def on_sources(*names: str) -> pytest.MarkDecorator:
    """These sources of kernels/, of which the large ones are slow."""
    chosen = [source for source in SOURCES if not names or source.stem in names]
    assert len(chosen) == len(names or SOURCES)
    given = [pytest.param(each, marks=() if quick(each, ARCH) else slow, id=each.stem) for each in chosen]
    return pytest.mark.parametrize("source", given)


@functools.cache
def kernels(source: Path) -> list[Kernel]:
    return sass.kernels(compiled(source, ARCH) / "kernels.cubin")


def is_general(name: str) -> bool:
    return any(f"{len(function)}{function}" in name for function in GENERAL)


def local(code: list[Instruction]) -> list[str]:
    """Uses of local memory, but for what is stored right before a call of the general path."""
    found: list[str] = []
    stored: list[str] = []
    for at in code:
        kind = at.operation.partition(".")[0]
        if kind == "STL":
            stored.append(at.text)
        elif kind == "LDL":
            found.append(at.text)
        elif kind == "CALL" and is_general(at.text):
            stored = []
        elif kind in ("CALL", "BRA", "EXIT", "RET"):
            found, stored = found + stored, []
    return found + stored


@on_sources(*(source.stem for source in SOURCES if source.stem != "heavy"))  # a stage alone, of one warp
def test_no_local_memory(source: Path) -> None:
    for kernel in kernels(source):
        for function in (kernel.body, *kernel.called):
            if not is_general(function.name.rpartition("$")[2]):
                assert local(function.code) == [], f"{kernel}: {function.name}"


#: The part of a kernel's loads of 16 bytes that is one round: all, but for a second loop over further rows,
#: with what the first round of momenta reads besides, and for a loop over what is left.
ROUND = {
    "combine": (1, 2),
    "finish<16>": (1, 2),
    "rescale": (3, 5),
    "finish_momentum<16>": (3, 5),
    "accumulate": (4, 7),
}


def is_row(kernel: Kernel, at: Instruction) -> bool:
    """Whether a load reads 16 bytes of a row; gradients of momenta have branches of their own."""
    return at.width == 128 and (not kernel.name.startswith("accumulate") or ".STRONG" in at.operation)


def is_element(kernel: Kernel, at: Instruction) -> bool:
    """Whether a load has an element's width, and the cache hint of rows."""
    return at.width == 8 * kernel.size and (".CONSTANT" in at.operation or ".EF" in at.operation)


@on_sources("gram", "gram_tiles", "combine", "update", "momentum", "momentum_tiles", "rescale")
def test_aligned_rows_are_loaded_together(source: Path) -> None:
    """By 16 bytes, and all of a round are issued before the first is waited for."""
    for kernel in kernels(source):
        rows = functools.partial(is_row, kernel)
        loads = sum(at.operation.startswith("LDG") and rows(at) for at in kernel.body.code)
        few = f"{kernel.name}<{kernel.numbers[0]}>" if kernel.numbers else kernel.name
        part, whole = ROUND.get(few, ROUND.get(kernel.name, (1, 1)))
        together = kernel.body.together(rows)
        print(f"{kernel}: {loads} loads of 16 bytes, {together} together")
        assert loads > 0
        if kernel.name == "gram_tiles" and (kernel.size < 8 or kernel.numbers == (1,)):
            # ptxas puts the products of a first vector of every tile before the loads of the others
            assert together >= max(2, kernel.numbers[0]), str(kernel)
        elif kernel.name == "whole":
            # nvcc copies a vector that may have been gathered right after its load, outside float32 early
            least = loads * 3 / 4 if kernel.size == 4 else min(loads, 2)
            assert together >= least, str(kernel)
        else:
            assert together * whole == loads * part, str(kernel)


@on_sources("gram", "gram_tiles", "combine", "update")
def test_unaligned_rows_are_loaded_element_by_element(source: Path) -> None:
    """By the width of an element, many of them together."""
    for kernel in kernels(source):
        together = kernel.body.together(functools.partial(is_element, kernel))
        print(f"{kernel}: {together} elements together")
        rows = kernel.numbers[0] if kernel.numbers else 4
        assert together >= min(8, rows * 16 // kernel.size), str(kernel)


@on_sources("gram_tiles", "momentum_tiles")
def test_products_of_two_tiles_are_one_instruction(source: Path) -> None:
    """DMMA.16x8x4 has Hopper's full rate; what lies on the diagonal is left for 8x8x4."""
    for kernel in kernels(source):
        tiles = kernel.numbers[0]
        pairs, alone = tiles // 2 * ((tiles + 1) // 2), (tiles + 1) // 2
        large, small = kernel.body.count("DMMA.16x8x4"), kernel.body.count("DMMA.8x8x4")
        print(f"{kernel}: {large} of 16x8x4, {small} of 8x8x4")
        assert small > 0
        assert large * alone == small * pairs, str(kernel)


ROOT, RECIPROCAL, DIVISION = 8, 6, 12  # float64 operations of their steps


def of_cosines(m: int) -> int:
    """Float64 operations and loads that lead from G to C and the norms."""
    return m * (1 + ROOT + 2) + m * (m - 1) // 2 * 3


def of_solution(m: int) -> float:
    """The same of a system of m unknowns with a unit diagonal."""
    elimination = (m - 1) * RECIPROCAL + sum((m - 1 - k) * (2 + (m - k) / 2) for k in range(m))
    return elimination + m * (m - 1) // 2 + m


def arithmetic(kernel: str, m: int) -> int:
    """Float64 operations, loads and stores of ConFIG's stage at full rank, or of UPGrad's in a lane."""
    if kernel == "stage":
        length = m * 5 + DIVISION + m  # x / norm, the sums of norms and of x w, times the scale, and c
        return round(of_cosines(m) + of_solution(m) + length)
    share = m + RECIPROCAL + 2  # and the order of the gradients in a lane
    slopes = (m - 1) * m + m + 1 + 2 * (m - 1)  # what they and mu are held against, and the determinant
    result = m * 3 + m * 2  # x / norm in a length, and the sums over the projections
    return round(of_cosines(m) + of_solution(m - 1) + share + slopes + result)


def test_size_of_the_stage() -> None:
    """At most three instructions an operation: addresses, selections and moves are the others."""
    for kernel in kernels(STAGE):
        m = kernel.numbers[0]
        found, bound = len(kernel.body.code), 3 * arithmetic(kernel.name, m)
        roots = sum(at.operation.startswith("MUFU") for at in kernel.body.code)
        print(f"{kernel}: {found} instructions, at most {bound}; {roots} roots and reciprocals")
        # m norms, a pivot for each unknown but one, and one division
        assert roots == (2 * m if kernel.name == "stage" else 2 * m - 1), str(kernel)
        assert found <= bound, str(kernel)
