"""The memory order of dense tensors, and new tensors in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .results import new_result


def flat_view(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in memory order."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def one_memory_order(column: Sequence[Tensor | None]) -> bool:
    """Whether the tensors that are there lie in one dense order."""
    present = [tensor for tensor in column if tensor is not None]
    return all(t.is_contiguous() for t in present) or (
        len({t.stride() for t in present}) == 1 and is_dense(present[0])
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each once, in whatever order."""
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


def new_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised and contiguous."""
    if device.type == "cpu":
        return new_result(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=device)
