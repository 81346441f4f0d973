"""Memory order of dense tensors, and new tensors in the same order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .results import KEPT_FROM, MOST_SHARED, new_result

try:
    from .._C import new_results
except ImportError:  # not built: tensors are made one by one
    new_results = None  # type: ignore[assignment]


def flat_view(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in memory order."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def one_memory_order(column: Sequence[Tensor | None]) -> bool:
    """Whether all tensors (None aside) have one dense memory order."""
    present = [tensor for tensor in column if tensor is not None]
    return all(t.is_contiguous() for t in present) or (
        len({t.stride() for t in present}) == 1 and is_dense(present[0])
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a block of memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def new_in_order(like: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """Uninitialised, of the shape of ``like``; with ``keep`` in its memory order, which is dense then."""
    if keep and not like.is_contiguous():
        return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=like.device)
    return new_tensor(like.shape, dtype, like.device)


def in_order_of(tensor: Tensor, column: Tensor) -> Tensor:
    """A tensor in the memory order of ``column``; copied only if its own differs."""
    if tensor.stride() == column.stride():
        return tensor.detach()
    ordered = torch.empty_strided(column.shape, column.stride(), dtype=tensor.dtype, device=tensor.device)
    return ordered.copy_(tensor.detach())


def zeros_in_order(like: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Zeros in the memory order of ``like`` if that is dense; never in memory reused for results."""
    order = torch.preserve_format if is_dense(like) else torch.contiguous_format
    return torch.zeros_like(like, dtype=dtype, memory_format=order)


def like_in(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised, in the memory order of ``like`` if that is dense."""
    return new_in_order(like, dtype, not like.is_contiguous() and is_dense(like))


def new_like_all(column: Sequence[Tensor | None]) -> Tensor:
    """Uninitialised, in the shape, dtype and common memory order of the tensors (None aside)."""
    first = next(tensor for tensor in column if tensor is not None)
    return new_in_order(first, first.dtype, one_memory_order(column))


def new_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised and contiguous."""
    if device.type == "cpu":
        return new_result(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=device)


def new_tensors(like: Tensor, shapes: list[torch.Size | None], *, apart: bool) -> list[Tensor | None]:
    """Uninitialised and contiguous, None for None, in the dtype and on the device of ``like``.

    Args:
        apart: give each memory of its own; otherwise they share a buffer, unless that would be large.
    """
    dtype, device = like.dtype, like.device
    if new_results is not None and not apart:
        found = new_results(like, shapes, KEPT_FROM - 1 if device.type == "cpu" else MOST_SHARED)
        if found is not None:
            return found
    return [None if shape is None else new_tensor(shape, dtype, device) for shape in shapes]
