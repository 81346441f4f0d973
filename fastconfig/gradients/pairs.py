"""Complex gradients as pairs of real numbers, as in torch's optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as real numbers (..., 2); any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_numel(tensor: Tensor) -> int:
    """How many real numbers a tensor has: two for each complex element."""
    return tensor.numel() * (1 + tensor.is_complex())


def to_complex(real: Tensor) -> Tensor:
    """Pairs of real numbers (..., 2) as complex numbers; copied only if pairs are not adjacent in memory."""
    strides = real.stride()
    paired = strides[-1] == 1 and not any(stride % 2 for stride in (*strides[:-1], real.storage_offset()))
    return torch.view_as_complex(real if paired else real.clone(memory_format=torch.contiguous_format))


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a real dtype; if it is complex, in the complex dtype of that precision."""
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


def real_rows(rows: list[Any]) -> tuple[list[Any], tuple[bool, ...]]:
    """Rows in real numbers, and which tensors were complex.

    Rows without complex tensors are returned as they are, and so are rows that Gradients will refuse.
    """
    vectors = [isinstance(row, Tensor) for row in rows]
    if all(vectors):
        if not all(row.is_complex() and row.dim() == 1 for row in rows):
            return rows, ()
        return [as_real(row).flatten() for row in rows], (True,)
    if any(vectors) or not all(isinstance(row, Sequence) and not isinstance(row, str) for row in rows):
        return rows, ()
    pairs = tuple(any(_is_complex(value) for value in column) for column in zip(*rows, strict=False))
    if not any(pairs):
        return rows, ()
    return [tuple(as_real(g) if _is_complex(g) else g for g in row) for row in rows], pairs


def _is_complex(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


def as_complex(update: Any, pairs: tuple[bool, ...]) -> Any:
    """An update in real numbers, with those tensors complex again that :func:`real_rows` found complex."""
    if isinstance(update, Tensor):
        return to_complex(update.view(*update.shape[:-1], update.shape[-1] // 2, 2))
    return [
        to_complex(piece) if pair and piece is not None else piece
        for piece, pair in zip(update, pairs, strict=True)
    ]
