"""Uninitialised memory holds NaN: an element that is read before it is written, or never written, shows."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastconfig.gradients import results


def poison() -> None:
    """From now on, for all that this process makes; before anything keeps ``torch.empty``, as C++ does."""
    for name in ("empty", "empty_like", "empty_strided"):
        setattr(torch, name, _filled(getattr(torch, name)))
    torch.Tensor.new_empty = _filled(torch.Tensor.new_empty)  # type: ignore[method-assign]
    free_block = results._free_block

    def poisoned(size: int) -> mmap.mmap:
        block = free_block(size)
        torch.frombuffer(block, dtype=torch.uint8).fill_(255)  # NaN in every floating dtype
        return block

    results._free_block = poisoned


def _filled(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(empty)
    def filled(*shape: Any, **options: Any) -> Tensor:
        tensor = empty(*shape, **options)
        if tensor.layout is not torch.strided:
            return tensor
        with torch.no_grad():
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.fill_(torch.nan)
            return tensor.fill_(True if tensor.dtype is torch.bool else torch.iinfo(tensor.dtype).max)

    return filled
