"""Memory for large results on the CPU, kept from one call to the next.

The C library returns a large block to the system when it is freed, and the next call pays for the first touch
of every page, which costs more than writing the result. Here a dropped result's memory serves the next result
of its size, as in torch's caching allocator on a GPU.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..numbers import DTYPES

KEPT_FROM = 1 << 20  # results of at least so many bytes keep their memory
MOST_KEPT = 256 << 20  # bytes kept in all
MOST_SHARED = 256 << 20  # bytes that the results of all parameters share on a GPU; KEPT_FROM on the CPU
_HUGE_PAGE = 2 << 20
_WASTE = _HUGE_PAGE // 4  # bytes beyond a tensor that a last large page may take
_PRIVATE = sys.platform == "linux"  # anonymous memory that a forked child does not share

#: whose ``new_empty`` is on the CPU, whatever torch's default device is, and quicker than one that is told so
ON_CPU = {dtype: torch.empty(0, dtype=dtype, device="cpu") for dtype in DTYPES}
_blocks: list[mmap.mmap] = []


def new_result(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised contiguous tensor on the CPU."""
    if torch._C._len_torch_dispatch_stack():  # tensors may be fake: no real memory goes among them
        return torch.empty(shape, dtype=dtype, device="cpu")
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < KEPT_FROM or size > MOST_KEPT or not _PRIVATE:
        return ON_CPU[dtype].new_empty(shape)
    # the tensor's memory holds a reference to the block while it lives
    return torch.frombuffer(_free_block(size), dtype=dtype, count=count).view(shape)


def _new_block(size: int) -> mmap.mmap:
    """Zeros, aligned to large pages."""
    block = mmap.mmap(-1, _rounded(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    large = (size + _WASTE) // _HUGE_PAGE * _HUGE_PAGE
    if large and hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE, 0, large)  # each spares 511 faults
    return block


def _rounded(size: int) -> int:
    return -(-size // _HUGE_PAGE) * _HUGE_PAGE


def _free_block(size: int) -> mmap.mmap:
    found: mmap.mmap | None = None
    wanted = _rounded(size)
    for _ in range(len(_blocks)):
        block, references = _take(_blocks)
        if block is None:  # another thread looks at the same list
            break
        if references == _UNUSED and len(block) == wanted:
            found = block
            break
        _blocks.append(block)
    if found is None:
        found = _new_block(size)
    while _blocks and len(found) + sum(map(len, _blocks)) > MOST_KEPT:
        _take(_blocks)
    _blocks.append(found)
    return found


def _take(blocks: list[Any]) -> tuple[Any, int]:
    """Take the oldest block and its reference count in one step, so that no two threads take the same."""
    try:
        block = blocks.pop(0)
    except IndexError:
        return None, 0
    return block, sys.getrefcount(block)


_UNUSED = _take([object()])[1]
