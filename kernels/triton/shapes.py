"""Launch shapes of the Triton kernels: one place, a pure function of what is known without a GPU.

A thread takes up to 16 bytes of a row at a time, 256 threads a program; where rows have strides or odd
addresses, neighbouring threads take neighbouring elements. A multiprocessor needs some 48 KiB on their way
to it: the gram pass, whose sums fill the registers, has the next tiles on their way to shared memory, and few
programs, whose partials one program adds up; the combine pass has as many programs as fit.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL = 8  # gradients up to which the products stay in registers, and one launch adds them up and solves
MOST = 64  # gradients that the kernels take
CHAIN = 16  # most float32 products in a row before they are added up in float64
_THREADS = 256
_COMBINE = 4  # programs of the combine pass on a multiprocessor
COMBINE_REGISTERS = 64  # a thread, so that they all run at once
_ADDED = 2048  # float64 numbers that a program adds up at a time


@dataclass(frozen=True)
class Shape:
    """Of all launches of one call.

    Attributes:
        width: columns of a chunk.
        threads, vector: tile of a row; ``vector`` columns a thread, ``threads * vector`` at a time.
        rows: m, rounded up to the size of a tile.
        block: partial Gram matrices that a program adds up at a time; rows of them beyond SMALL gradients.
        depth: columns of a tile in the matrix products of more than SMALL gradients.
        stages: tiles of the gram pass that are on their way or in use.
        programs: of the gram pass and of the combine pass, a problem.
        sharers: programs of the combine pass that share the chunks of one of the gram pass.
        warps: of the gram pass, the combine pass, and of the m x m stage.
        repair_warps: of a gram pass that takes products again in float64.
    """

    width: int
    threads: int
    vector: int
    rows: int
    block: int
    depth: int
    stages: int
    programs: tuple[int, int]
    sharers: int
    warps: tuple[int, int, int]
    repair_warps: int


def shape(
    m: int, chunks: int, problems: int, itemsize: int, whole: bool, float64: bool, processors: int
) -> Shape:
    """The launch shape.

    Args:
        m: gradients, 1..MOST.
        chunks: of ``chunk_width(itemsize)`` columns, in one problem.
        problems: independent problems.
        itemsize: bytes of an element.
        whole: whether rows are contiguous and on multiples of 16 bytes.
        float64: whether the device computes float64 at a usable rate.
        processors: multiprocessors of the device.
    """
    rows = tile_rows(m)
    small = m <= SMALL
    # with 8 columns of 8 rows in float64 a thread of the gram pass spills
    vector = 1 if not whole else 4 if itemsize == 2 and rows == SMALL else 16 // itemsize
    depth = CHAIN if not float64 or (rows == MOST and not whole) else 64 if rows <= 16 else 32
    each = max(1, processors // max(1, problems))
    # in a product of tiles, a vector a thread at least, so that loads stay 16 bytes wide
    most = 4 if rows <= 16 else 8 if rows <= 32 or whole else 16
    warps = 8 if small else max(1, min(most, rows * depth // vector // 32))
    gram = max(1, min(chunks, each * (1 if rows == SMALL else 2)))
    sharers = max(1, min(-(-chunks // gram), each * _COMBINE // gram))
    return Shape(
        width=chunk_width(itemsize),
        threads=_THREADS,
        vector=vector,
        rows=rows,
        block=max(1, _ADDED // (rows * rows if small else rows)),
        depth=depth,
        stages=3 if small else 6,
        programs=(gram, gram * sharers),
        sharers=sharers,
        warps=(warps, 8, solve_warps(m)),
        repair_warps=max(warps, 4),
    )


def tile_rows(m: int) -> int:
    """m, rounded up to 4, 8, 16, 32 or 64."""
    return max(4, 1 << (m - 1).bit_length())


def solve_warps(m: int) -> int:
    """Warps of the m x m stage on its own."""
    return 4 if m <= SMALL else 1 if m <= 16 else 4 if m <= 32 else 16


def chunk_width(itemsize: int) -> int:
    """Columns of a chunk: 16 bytes a thread."""
    return _THREADS * 16 // itemsize


def float64_is_usable(backend: str, capability: tuple[int, int]) -> bool:
    """Whether a device computes float64 at a usable rate: 1/2 or so of float32's, not 1/32 or 1/64.

    Args:
        backend: "cuda" or "hip", as Triton calls it.
        capability: compute capability of a CUDA device.
    """
    if backend == "hip":
        return True
    return capability in ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
