"""What the kernels are told of a list of gradients: one entry of int64 words a segment."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..gradients import Gradients, Update


def entries(grads: Gradients, out: Update | None) -> Iterator[list[int]]:
    """Per segment: length, address of the result (0 without ``out``), m row addresses, m steps in elements.

    A row address of 0 is a missing gradient. ``grads`` and ``out`` keep the memory alive.

    Raises:
        TypeError: for a row that has no memory of its own.
    """
    results = [out] if isinstance(out, Tensor) else out or []
    targets = [result.data_ptr() for result in results if result is not None] or [0] * len(grads.segments)
    for segment, target in zip(grads.segments, targets, strict=True):
        length = next(row for row in segment if row is not None).numel()
        addresses = [0 if row is None else row.data_ptr() or address(row) for row in segment]
        steps = [1 if row is None else row.stride()[0] for row in segment]
        yield [length, target, *addresses, *steps]


def tensor_entry(rows: Tensor, out: Update | None, problem: int = 0) -> list[int]:
    """The entry of one problem of a tensor (m, N) or (B, m, N), as those of :func:`entries`.

    Raises:
        TypeError: for a tensor that has no memory of its own.
    """
    (m, n), (stride, step) = rows.shape[-2:], rows.stride()[-2:]
    size = rows.element_size()
    first = address(rows) + (problem * rows.stride(0) * size if rows.dim() == 3 else 0)
    target = out.data_ptr() + problem * n * size if isinstance(out, Tensor) else 0
    return [n, target, *(first + i * stride * size for i in range(m)), *[step] * m]


def address(row: Tensor) -> int:
    """Where a row's elements lie; 0 would count as a missing gradient.

    Raises:
        TypeError: if they lie nowhere.
    """
    found = row.data_ptr()
    if not found and row.numel():
        raise TypeError(f"grads: got a {type(row).__name__} without memory of its own, want plain tensors")
    return found
