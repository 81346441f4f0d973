"""The launches behind triton_gpu.py: what each kernel is told, and where it writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeAlias

import torch
import triton
from torch import Tensor

from ..gradients import Gradients, Update
from ..kernels.triton import coefficients as coefficients_triton
from ..kernels.triton import combine as combine_triton
from ..kernels.triton import gram as gram_triton
from ..kernels.triton import partials as partials_triton
from ..kernels.triton.rows import DENSE, SCATTERED, STRIDED, TABLE, write_words
from ..kernels.triton.shapes import (
    COMBINE_REGISTERS,
    SMALL,
    Shape,
    chunk_width,
    float64_is_usable,
    shape,
    solve_warps,
    tile_rows,
)
from ..methods.base import LENGTHS, Rule
from .base import device_cutoff
from .table import entries

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

NewTable: TypeAlias = Callable[[list[int], torch.device], Tensor]


@cache
def options(warps: int, most: int = 255) -> dict[str, object]:
    """Of every launch: multiply-adds whatever a version's default is, at most ``most`` registers a thread.

    By default as many as there are: the assembler's own limits are lower, and it spills.
    """
    registers = {} if torch.version.hip else {"maxnreg": min(most, 65536 // (32 * warps))}
    return {"num_warps": warps, "enable_fp_fusion": True, **registers}


class Call:
    """The launches of one call over one set of gradients.

    Args:
        grads, out: as a backend is given them.
        table: brings words to the device.
    """

    def __init__(self, grads: Gradients, out: Update | None, table: NewTable) -> None:
        self.grads = grads
        self.device = grads.device
        self.problems = grads.problems
        self.usable = uses_float64(self.device)
        self.float64 = grads.dtype is torch.float64 or self.usable
        width = chunk_width(grads.dtype.itemsize)
        self.out = out if isinstance(out, Tensor) else None
        rows = grads.rows
        if isinstance(rows, Tensor):
            strides = (rows.stride(0) if rows.dim() == 3 else 0, *rows.stride()[-2:])
            self.mode = DENSE if _is_dense(rows, strides) else STRIDED
            self.base = rows
            self.table, self.segments, self.steps = None, 1, strides
            self.chunks = -(-grads.n // width)
        else:
            words, self.segments, self.mode = _words(entries(grads, out), width)
            self.base = next(row for row in grads.segments[0] if row is not None)  # for its dtype
            self.chunks = words[self.segments - 1] if self.segments else 0
            self.table, self.steps = table(words, self.device), (0, 0, 1)
        self.whole_rows = self.mode in (DENSE, TABLE)
        self.processors = _processors(self.device)
        itemsize = grads.dtype.itemsize
        self.shape: Shape = shape(
            grads.m, self.chunks, self.problems, itemsize, self.whole_rows, self.usable, self.processors
        )
        s = self.shape
        # the end of what every kernel of a tile is told
        self.tile = (s.width, s.threads, s.vector)

    def partials(self) -> Tensor:
        """First launch: Gram matrices of the programs' chunks; a second set where float32 may fail."""
        m, sets = self.grads.m, 1 if self.float64 else 2
        size = (sets, self.problems, self.shape.programs[0], m, m)
        partials = torch.empty(size, dtype=torch.float64, device=self.device)
        self._gram(partials, self.float64, False)
        if not self.float64:  # returns at once where float32 products did not fail
            self._gram(partials, True, True)
        return partials

    def _gram(self, partials: Tensor, float64: bool, repair: bool) -> None:
        s, m = self.shape, self.grads.m
        kernel, tile = gram_triton.gram_small, self.tile
        if m > SMALL:
            kernel, tile = gram_triton.gram_tiles, (s.width, s.depth, s.vector)
        kernel[(s.programs[0], self.problems)](
            *self._where(partials),
            self.problems,
            m,
            *tile,
            s.rows,
            s.block,
            self.mode,
            float64,
            repair,
            1 if torch.version.hip else s.stages,
            **options(s.repair_warps if repair else s.warps[0]),
        )

    def _where(self, target: Tensor) -> tuple[object, ...]:
        """The arguments that describe the rows to a kernel, around its own result."""
        table = target if self.table is None else self.table
        return (self.base, table, target, self.grads.n, self.chunks, self.segments, *self.steps)

    def gram(self, partials: Tensor) -> Tensor:
        m, s = self.grads.m, self.shape
        gram = torch.empty(*self.grads.batch_shape, m, m, dtype=torch.float64, device=self.device)
        partials_triton.sum_rows[(m, self.problems)](
            partials,
            gram,
            self.problems,
            s.programs[0],
            m,
            self.grads.n,
            s.rows,
            s.block,
            self.float64,
            **options(4),
        )
        return gram

    def combine(self, c: Tensor) -> None:
        s = self.shape
        base, table, _, *rest = self._where(c)
        combine_triton.combine[(s.programs[1], self.problems)](
            base,
            table,
            c if self.out is None else self.out,  # the table says, where it is not one tensor
            c,
            *rest,
            self.grads.m,
            s.sharers,
            *self.tile,
            self.mode,
            **options(s.warps[1], COMBINE_REGISTERS),
        )

    def update(self, rule: Rule) -> None:
        """The whole update."""
        partials, m = self.partials(), self.grads.m
        if m > SMALL:
            c = solve(self.gram(partials), rule, self.cutoff(rule))
        else:
            gram = torch.empty(self.problems, m, m, dtype=torch.float64, device=self.device)
            c = solve(gram, rule, self.cutoff(rule), self, partials)
        self.combine(c)

    def cutoff(self, rule: Rule) -> float:
        """The eigenvalue cut-off."""
        return device_cutoff(rule, self.grads.dtype, self.usable)


def solve(
    gram: Tensor, rule: Rule, rcond: float, call: Call | None = None, partials: Tensor | None = None
) -> Tensor:
    """Coefficients (..., m) of Gram matrices (..., m, m): one launch, a program a problem.

    Args:
        gram: on the device; written by the launch if there are partials.
        rule: of all problems.
        rcond: the eigenvalue cut-off.
        call, partials: what is to be added up first, if anything is.
    """
    c = torch.empty(gram.shape[:-1], dtype=torch.float64, device=gram.device)
    m = c.shape[-1]
    rows, order = tile_rows(m), rule.order
    weights = gram if rule.weights is None else rule.weights
    sums = (0, 0, 0) if call is None else (call.grads.n, call.problems, call.shape.programs[0])
    coefficients_triton.coefficients[(c.numel() // m,)](
        gram if partials is None else partials,
        gram,
        c,
        weights,
        gram if order is None else order,
        *sums,
        0 if rule.weights is None or weights.dim() == 1 else m,
        0 if order is None or order.dim() == 2 else m * m,
        *codes(rule),
        rcond,
        m,
        rows,
        1 if call is None else call.shape.block,
        call is None or call.float64,
        order is not None,
        call is not None,
        **options(solve_warps(m)),
    )
    return c


def codes(rule: Rule) -> tuple[int, int, int, int, int]:
    """method, length, track_id, mean and has_weights as the kernels count them."""
    weighted = rule.weights is not None
    return (
        coefficients_triton.METHODS.index(rule.native),
        LENGTHS.index(rule.length),
        rule.track_id,
        int(rule.mean),
        int(weighted),
    )


def _is_dense(rows: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether all rows, and all results of a batch, start on multiples of 16 bytes."""
    starts = [*strides[:2], *([rows.shape[-1]] if rows.dim() == 3 else [])]
    aligned = all(start * rows.element_size() % 16 == 0 for start in starts)
    return strides[2] == 1 and aligned and rows.data_ptr() % 16 == 0


def _words(told: Iterator[list[int]], width: int) -> tuple[list[int], int, int]:
    """The table of kernels/triton/rows.py, its segments, and the mode."""
    ends: list[int] = []
    words: list[int] = []
    end, low, aligned = 0, 0, True
    for entry in told:
        half = 1 + len(entry) // 2  # before it the length, the result and the rows, behind it their steps
        length, places, steps = entry[0], entry[1:half], entry[half:]
        if length:
            end += -(-length // width)
            ends.append(end)
            words += entry
            for place in places:
                low |= place
            aligned = aligned and steps.count(1) == len(steps)
    return ends + words, len(ends), TABLE if aligned and low % 16 == 0 else SCATTERED


def captured_table(words: list[int], device: torch.device) -> Tensor:
    """A table that kernels write: in a CUDA graph it lives and is written again with the graph."""
    table = torch.empty(len(words), dtype=torch.int64, device=device)
    for start in range(0, len(words), 8):
        piece = words[start : start + 8]
        write_words[(1,)](table, start, len(words), *piece, *[0] * (8 - len(piece)), **options(4))
    return table


def uses_float64(device: torch.device) -> bool:
    """Whether products are float64; FASTCONFIG_TRITON_FLOAT64=0 or 1 decides otherwise."""
    forced = os.environ.get("FASTCONFIG_TRITON_FLOAT64")
    if forced:
        return forced == "1"
    return _usable_float64(device)


@cache
def _usable_float64(device: torch.device) -> bool:
    if device.type == "cpu":  # interpreted
        return True
    backend = "hip" if torch.version.hip else "cuda"
    return float64_is_usable(backend, torch.cuda.get_device_capability(device))


@cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
