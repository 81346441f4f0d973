"""Memory for large results on the CPU, kept from one call to the next.

The C library hands a large block back to the system when it is freed, and the next call pays for the first
touch of every page: more than writing the result costs. Here the memory of a result that its owner has
dropped serves the next one of its size, as under torch's caching allocator on a GPU.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

KEPT_FROM = 8 << 20  # bytes of a result from which on its memory is kept
MOST_KEPT = 256 << 20  # bytes that are kept altogether
_HUGE_PAGE = 2 << 20
_PRIVATE = sys.platform == "linux"  # anonymous memory that a forked child does not share

_blocks: list[mmap.mmap] = []


def new_result(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised contiguous tensor on the CPU."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < KEPT_FROM or size > MOST_KEPT or not _PRIVATE:
        return torch.empty(shape, dtype=dtype)
    block = _free_block(-(-size // _HUGE_PAGE) * _HUGE_PAGE)
    # the tensor's memory holds a reference to the block while it lives
    return torch.frombuffer(block, dtype=dtype, count=count).view(shape)


def _free_block(size: int) -> mmap.mmap:
    found: mmap.mmap | None = None
    for _ in range(len(_blocks)):
        block, references = _take(_blocks)
        if block is None:  # another thread looks at the same list
            break
        if found is None and references == _UNUSED and len(block) == size:
            found = block
        else:
            _blocks.append(block)
    if found is None:
        found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            found.madvise(mmap.MADV_HUGEPAGE)  # each large page spares 511 faults
    while _blocks and size + sum(map(len, _blocks)) > MOST_KEPT:
        _take(_blocks)
    _blocks.append(found)
    return found


def _take(blocks: list[Any]) -> tuple[Any, int]:
    """The oldest block and the number of references to it, in one step: no two threads take the same."""
    try:
        block = blocks.pop(0)
    except IndexError:
        return None, 0
    return block, sys.getrefcount(block)


_UNUSED = _take([object()])[1]
