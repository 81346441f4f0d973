"""Indexes of a step's losses: an integer or a sequence, from Python, NumPy or torch."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor


def is_one(indexes: Any) -> bool:
    """Whether this is one index and no sequence."""
    return isinstance(indexes, int) or getattr(indexes, "ndim", None) == 0 or not hasattr(indexes, "__len__")


def _index(i: Any) -> int:
    """An integer; booleans are refused, since they may be a mask."""
    if isinstance(i, bool) or getattr(i, "dtype", None) is torch.bool:
        raise TypeError
    return operator.index(i)


def index_list(indexes: Any, count: int, argument: str) -> list[int]:
    """The indexes as a list of different integers from 0 to ``count`` - 1.

    Args:
        indexes: an integer, or a sequence, NumPy array or tensor of them.
        count: how many there are to choose from.
        argument: its name in error messages.

    Raises:
        TypeError: if one is no integer.
        ValueError: for an index out of range or given twice, and for no index.
    """
    several: Iterable[Any] = [indexes] if is_one(indexes) else indexes
    try:
        if type(several) is not list and isinstance(several, (Mapping, Set)):  # without an order
            raise TypeError
        chosen = [i if type(i) is int else _index(i) for i in several]
    except TypeError:
        raise TypeError(f"{argument}: got {indexes!r}, want an integer or a sequence of integers") from None
    if not chosen:
        raise ValueError(f"{argument}: got no index, want at least one of 0..{count - 1}")
    for i in chosen:
        if not 0 <= i < count:
            raise ValueError(f"{argument}: got {i}, want 0..{count - 1}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{argument}: got {chosen}, want every index once")
    return chosen


def as_rows(grads: Any, one: bool) -> Any:
    """The gradients as a tensor (k, N) or a sequence of k."""
    if isinstance(grads, Tensor):
        return [grads] if grads.dim() == 1 else grads
    if not one or not isinstance(grads, Sequence):
        return grads
    first = grads[0] if len(grads) == 1 else None
    wrapped = (isinstance(first, Tensor) and first.dim() == 1) or isinstance(first, Sequence)
    return grads if wrapped else [grads]
