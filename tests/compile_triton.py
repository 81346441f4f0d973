"""Compile the Triton kernels ahead of time, without a GPU, and report what came out.

    python compile_triton.py ARCH PART [SIZES]    (80, 90 or 120; a dtype, shared or kinds; as 3,8)

Prints one JSON object a variant that the launch table can choose: registers, bytes spilled, and the widths in
bits of its loads from global memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastconfig.backends.triton_gpu import TritonBackend
from fastconfig.backends.triton_launch import options
from fastconfig.kernels.triton import coefficients as small
from fastconfig.kernels.triton import combine as combine_triton
from fastconfig.kernels.triton import gram as gram_triton
from fastconfig.kernels.triton import partials as partials_triton
from fastconfig.kernels.triton import rows as rows_triton
from fastconfig.kernels.triton import shapes as shapes

POINTERS = {"float32": "*fp32", "float64": "*fp64", "bfloat16": "*bf16", "float16": "*fp16"}
ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
WHOLE = (rows_triton.DENSE, rows_triton.TABLE)  # rows in vectors of 16 bytes
MODES = (rows_triton.DENSE, rows_triton.STRIDED, rows_triton.TABLE, rows_triton.SCATTERED)
ROWS = {
    "n": "i64",
    "chunks": "i32",
    "segments": "i32",
    "batch_step": "i64",
    "row_step": "i64",
    "column_step": "i64",
}
SIZES = (64, 32, 16, 8, 3)  # one of every size of a tile, the one that takes most first
RULE = dict.fromkeys(("weights_step", "method", "length", "track_id", "mean", "has_weights"), "i32")
Variant = tuple[Any, dict[str, str], dict[str, Any], tuple[int, ...]]  # the last is for options()


def of_dtype(dtype: str, usable: bool, sizes: Sequence[int]) -> Iterator[Variant]:
    """Kernels that read m gradients, where the device computes float64 at a usable rate or not."""
    seen: set[str] = set()
    for mode in MODES:
        whole = mode in WHOLE
        for m in sizes:
            shape = shapes.shape(m, 1 << 20, 1, ITEMSIZE[dtype], whole, usable, 132)
            for variant in _of_shape(shape, m, mode, POINTERS[dtype], usable or dtype == "float64"):
                key = repr((variant[0].__name__, variant[1:]))
                if key not in seen:
                    seen.add(key)
                    yield variant


def _of_shape(shape: shapes.Shape, m: int, mode: int, pointer: str, float64: bool) -> Iterator[Variant]:
    rows = {"base": pointer, "table": "*i64"}
    tile = {"WIDTH": shape.width, "T": shape.threads, "V": shape.vector}
    block = {"MP": shape.rows, "PB": shape.block, "MODE": mode, "STAGES": shape.stages}
    gram = rows | {"partials": "*fp64"} | ROWS | {"problems": "i32"}
    for products, repair in ((float64, False),) if float64 else ((False, False), (True, True)):
        flags = block | {"FLOAT64": products, "REPAIR": repair}
        warps = shape.repair_warps if repair else shape.warps[0]
        if m <= shapes.SMALL:
            yield gram_triton.gram_small, gram, {"m": m} | tile | flags, (warps,)
        else:
            deep = {"WIDTH": shape.width, "K": shape.depth, "V": shape.vector}
            yield gram_triton.gram_tiles, gram | {"m": "i32"}, deep | flags, (warps,)
    combine = rows | {"out": pointer, "c": "*fp64"} | ROWS | {"m": "i32", "sharers": "i32"}
    yield combine_triton.combine, combine, tile | {"MODE": mode}, (shape.warps[1], shapes.COMBINE_REGISTERS)


def shared(float64: bool) -> Iterator[Variant]:
    """Kernels that see Gram matrices only."""
    words = dict.fromkeys("abcdefgh", "i64")
    yield rows_triton.write_words, {"table": "*i64", "start": "i32", "count": "i32"} | words, {}, (4,)
    counts = {"n": "i64"} | dict.fromkeys(("problems", "programs", "m"), "i32")
    solve = dict.fromkeys(("partials", "gram", "c", "weights"), "*fp64") | {"order": "*i64"}
    solve |= counts | RULE | {"order_step": "i32", "rcond": "fp32"}
    for m in SIZES:
        shape = shapes.shape(m, 1 << 20, 1, 4, True, float64, 132)
        constants = {"MP": shape.rows, "PB": shape.block, "FLOAT64": float64}
        yield partials_triton.sum_rows, {"partials": "*fp64", "gram": "*fp64"} | counts, constants, (4,)
        for ordered, sums in ((False, False), (True, False), (False, True)):
            if not sums or m <= shapes.SMALL:
                flags = {"ORDERED": ordered, "SUM": sums}
                yield small.coefficients, solve, constants | flags, (shape.warps[2],)


def kinds(usable: bool, sizes: Sequence[int]) -> Iterator[Variant]:
    """Every kernel once for each way of loading and of multiplying that it has, in float32."""
    seen: set[tuple[Any, ...]] = set()
    for variant in chain(of_dtype("float32", usable, sizes), shared(usable)):
        kernel, _, constants, _ = variant
        kind = kernel, constants.get("MODE") in WHOLE, constants.get("REPAIR"), constants.get("SUM")
        if kind not in seen:
            seen.add(kind)
            yield variant


def compiled(variant: Variant, arch: int) -> dict[str, Any]:
    """What ptxas made of a variant."""
    function, types, constants, warps = variant
    arguments = [name for name in function.arg_names if name in types]
    assert len(arguments) == len(types), set(types) - set(arguments)
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    if triton.__version__.startswith("3.2."):
        plain = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        source = ASTSource(function, plain, constants)
    else:
        source = ASTSource(
            function, signature, {(function.arg_names.index(k),): v for k, v in constants.items()}
        )
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options(*warps))
    ptx = kernel.asm["ptx"]
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)", ptx)
    widths = {int(count or 1) * int(bits) for count, bits in loads}
    widths |= {8 * int(size, 0) for size in re.findall(r"cp\.async[\w.]*global[^;]*?, (0x[\da-f]+|\d+)", ptx)}
    return {
        "kernel": function.__name__,
        "constants": constants,
        "threads": 32 * warps[0],
        "shared": kernel.metadata.shared,
        "widths": sorted(widths),
        **_resources(kernel.asm["cubin"]),
    }


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of local memory: what the registers could not hold."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


if __name__ == "__main__":
    assert isinstance(gram_triton.gram_small, triton.JITFunction), "TRITON_INTERPRET must not be set"
    arch = int(sys.argv[1])
    usable = shapes.float64_is_usable("cuda", divmod(arch, 10))
    few = [int(m) for m in sys.argv[3].split(",")] if len(sys.argv) > 3 else None
    if sys.argv[2] == "shared":
        chosen = shared(usable)
    elif sys.argv[2] == "kinds":
        chosen = kinds(usable, few or (3, 20))
    else:
        chosen = of_dtype(sys.argv[2], usable, few or range(1, TritonBackend().most + 1))
    for each in chosen:
        print(json.dumps(compiled(each, arch)), flush=True)
