"""Plain PyTorch, for any device: blocks of columns widened to float64, never an m x N copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..gradients import Gradients, Segment, Update
from ..gradients.memory_order import new_tensor
from ..methods.base import Rule
from ..numbers import float64_device
from .base import Backend

_CHUNK = 512  # columns of one matrix product: rounding grows with them, the cost of a call shrinks
_LEAST = 8 * _CHUNK  # columns of a block, so that its copies are worth their calls
_ROWS = 24  # of a tile of G on a CPU, which computes little above the diagonal; elsewhere calls cost more


class PyTorchBackend(Backend):
    """Gram and combine on float64 blocks of columns.

    G is symmetric to the bit. Every form of the same gradients, whatever its strides and alignment, fills the
    same blocks, and so has the same bits in every run; other machines, other numbers of threads and
    batches may differ in the last ones, where their matrix products do.
    """

    name = "pytorch"

    def unsupported(self, grads: Gradients) -> str | None:
        return None

    @torch.no_grad()
    def gram(self, grads: Gradients) -> Tensor:
        return _gram(grads, _blocks(grads))

    @torch.no_grad()
    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        _combine(grads, _blocks(grads), c, out)

    @torch.no_grad()
    def update(self, grads: Gradients, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        blocks: Iterable[_Block] = _blocks(grads)
        one = _width(grads) >= grads.n and _together(grads) >= grads.problems
        if one:  # is widened once
            blocks = list(blocks)
        c = self.coefficients(_gram(grads, blocks), rule, grads, losses)
        _combine(grads, blocks if one else _blocks(grads), c, out)


class _Block(NamedTuple):
    """Some columns of some problems.

    Attributes:
        problems: which of B they are.
        columns: (problems, m, k) float64; overwritten by the next block.
        sums: (problems, 1, k) float64, uninitialised: room for a combination of the rows.
        pieces: segment, its first column and number of columns, of what lies in ``columns`` side by side.
    """

    problems: slice
    columns: Tensor
    sums: Tensor
    pieces: list[tuple[int, int, int]]


def _gram(grads: Gradients, blocks: Iterable[_Block]) -> Tensor:
    m = grads.m
    gram = torch.zeros(grads.problems, m, m, dtype=torch.float64, device=float64_device(grads.device))
    for block in blocks:
        _add_products(gram[block.problems], block.columns)
    lower = gram.tril()
    return (lower + lower.tril(-1).mT).view(*grads.batch_shape, m, m)


def _combine(grads: Gradients, blocks: Iterable[_Block], c: Tensor, out: Update) -> None:
    c = c.to(float64_device(grads.device)).view(-1, 1, grads.m)
    targets = grads.split(out)
    for block in blocks:
        _multiply(c[block.problems], block.columns, block.sums)
        start = 0
        for s, begin, length in block.pieces:
            target = targets[s] if grads.batch is None else targets[s][block.problems]
            target[..., begin : begin + length] = block.sums[:, 0, start : start + length]
            start += length


def _elements(grads: Gradients) -> int:
    """Elements of each row in a block, which stays in the cache on a CPU."""
    return 1 << (19 if float64_device(grads.device).type == "cpu" else 22)


def _width(grads: Gradients) -> int:
    """Columns of a block."""
    return min(max(_elements(grads) // (grads.m * _CHUNK) * _CHUNK, _LEAST), max(grads.n, 1))


def _together(grads: Gradients) -> int:
    """Problems of a block."""
    return max(min(_elements(grads) // (grads.m * _width(grads)), grads.problems), 1)


def _blocks(grads: Gradients) -> Iterator[_Block]:
    """All columns, each once; one block takes short segments together."""
    m, width, together, elements = grads.m, _width(grads), _together(grads), _elements(grads)
    size = together * (m + 1) * width
    # a large one has the memory of the last call's
    room = size if 2 * size < elements else max(size, elements)
    memory = new_tensor((room,), torch.float64, float64_device(grads.device))
    buffer = memory[:size].view(together, m + 1, width)
    for first in range(0, grads.problems, together):
        problems = slice(first, min(first + together, grads.problems))
        block = buffer[: problems.stop - first]
        filled, pieces = 0, []
        for s, segment in enumerate(grads.segments):
            begin = 0
            for rows in _cut(segment, problems, width - filled, width):
                count = rows.shape[-1] if isinstance(rows, Tensor) else len(_any(rows))
                _fill(block[:, :m, filled : filled + count], rows)
                pieces.append((s, begin, count))
                begin, filled = begin + count, filled + count
                if filled == width:
                    yield _Block(problems, block[:, :m], block[:, m:], pieces)
                    filled, pieces = 0, []
        if filled:
            yield _Block(problems, block[:, :m, :filled], block[:, m:, :filled], pieces)


def _cut(segment: Segment, problems: slice, first: int, width: int) -> Iterator[Segment]:
    """The columns of a segment in pieces: one of ``first``, then of ``width``, and what is left."""
    if isinstance(segment, Tensor):
        segment = segment if segment.dim() == 2 else segment[problems]
        yield from segment.split(_sizes(segment.shape[-1], first, width), -1)
        return
    sizes = _sizes(len(_any(segment)), first, width)
    none = [None] * len(sizes)
    yield from map(list, zip(*(none if row is None else row.split(sizes) for row in segment), strict=True))


def _sizes(length: int, first: int, width: int) -> list[int]:
    first = min(first, length)
    whole, rest = divmod(length - first, width)
    return [size for size in (first, *[width] * whole, rest) if size]


def _fill(target: Tensor, rows: Segment) -> None:
    """Copy a piece of a segment to ``target`` (problems, m, k)."""
    if isinstance(rows, Tensor):
        target.copy_(rows)
        return
    if target.device != _any(rows).device:
        zeros = torch.zeros_like(_any(rows))
        target.copy_(torch.stack([zeros if row is None else row for row in rows]))  # one transfer
        return
    if any(row is None for row in rows):
        target.zero_()
    pairs = [(to, row) for to, row in zip(target[0].unbind(), rows, strict=True) if row is not None]
    torch._foreach_copy_([to for to, _ in pairs], [row for _, row in pairs])


def _any(rows: Segment) -> Tensor:
    return next(row for row in rows if row is not None)


def _add_products(gram: Tensor, block: Tensor) -> None:
    """Add A A^T of every problem (problems, m, k) to the lower triangle of ``gram`` (problems, m, m)."""
    m = block.shape[1]
    tile = _ROWS if block.device.type == "cpu" else m
    for part in _chunks(block):
        for row in range(0, m, tile):
            end = min(row + tile, m)
            products = torch.bmm(part[:, row:end], part[:, :end].mT)
            gram[:, row:end, :end].add_(products if len(products) == len(gram) else products.sum(0))


def _chunks(block: Tensor) -> Iterator[Tensor]:
    """All columns of a block, as (problems, m, k); of a single problem as (chunks, m, k)."""
    m, k = block.shape[1:]
    if len(block) > 1:
        yield from block.split(_CHUNK, -1)
        return
    whole = k // _CHUNK * _CHUNK if k >= 2 * _CHUNK else 0  # one product of what is short
    if whole:
        yield block[0, :, :whole].view(m, -1, _CHUNK).transpose(0, 1)
    if whole < k:
        yield block[:, :, whole:]


def _multiply(c: Tensor, block: Tensor, sums: Tensor) -> None:
    """sums <- c A of every problem; of a single one by all threads."""
    if len(block) == 1:
        torch.mm(c[0], block[0], out=sums[0])
    else:
        torch.bmm(c, block, out=sums)
