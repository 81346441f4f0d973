"""Plain PyTorch, for any device: blocks of columns widened to float64, never an m x N copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..gradients import Gradients, Segment, Update
from ..numbers import float64_device
from .base import ThreeSteps, block_elements
from .momentum import TorchMomentum


class PyTorchBackend(TorchMomentum, ThreeSteps):
    """Gram and combine by ``torch.matmul`` on float64 blocks of columns."""

    name = "pytorch"

    def unsupported(self, grads: Gradients) -> str | None:
        return None

    @torch.no_grad()
    def gram(self, grads: Gradients) -> Tensor:
        work = float64_device(grads.device)
        total = torch.zeros(*grads.batch_shape, grads.m, grads.m, dtype=torch.float64, device=work)
        for segment in grads.segments:
            for _, block in _blocks(segment, grads, work):
                total += block @ block.mT
        return total

    @torch.no_grad()
    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        work = float64_device(grads.device)
        c = c.to(work).unsqueeze(-2)
        for segment, flat in zip(grads.segments, grads.split(out), strict=True):
            for start, block in _blocks(segment, grads, work):
                flat[..., start : start + block.shape[-1]] = (c @ block).squeeze(-2)


def _blocks(segment: Segment, grads: Gradients, work: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(first column, (..., m, k) float64) over the columns of a segment, k bounded."""
    problems = grads.batch or 1
    width = max(block_elements(work) // (grads.m * problems), 256)
    if isinstance(segment, Tensor):
        for start in range(0, segment.shape[-1], width):
            yield start, segment[..., start : start + width].to(work, torch.float64)
        return
    like = next(row for row in segment if row is not None)
    for start in range(0, len(like), width):
        piece = slice(start, start + width)
        zeros = torch.zeros_like(like[piece])
        rows = [zeros if row is None else row[piece] for row in segment]
        yield start, torch.stack(rows).to(work, torch.float64)
