"""The launches behind triton_gpu.py: what each kernel is told, and where it writes."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
import triton
from torch import Tensor

from ..gradients import Gradients, Update
from ..kernels import coefficients_triton, combine_triton, gram_triton, partials_triton, update_triton
from ..kernels.rows_triton import DENSE, SCATTERED, STRIDED, TABLE, write_words
from ..kernels.shapes_triton import (
    SMALL,
    Shape,
    chunk_width,
    float64_is_usable,
    one_launch,
    rows_block,
    shape,
    solve_warps,
    tile_rows,
)
from ..methods import LENGTHS, Rule
from .base import device_cutoff
from .table import entries

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
COOPERATIVE = VERSION >= (3, 3)  # launches whose programs all run at once
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# multiply-adds whatever a version's default; registers without the assembler's own, lower limits, which spill
OPTIONS = {"enable_fp_fusion": True} | ({} if torch.version.hip else {"maxnreg": 255})


NewTable: TypeAlias = Callable[[list[int], torch.device], Tensor]


@dataclass(frozen=True)
class Bias:
    """What the m x m stage of momenta corrects: gram by r_i r_j, c by r_i, r_i = 1 / (1 - beta^t_i).

    Attributes:
        steps: int64 on the device, the m counts t_i first.
        beta: the bits of beta, as :func:`bits` gives them.
    """

    steps: Tensor
    beta: int


def bits(number: float) -> int:
    """A float64's bits as an integer: what a kernel takes without rounding."""
    return int.from_bytes(struct.pack("<d", number), "little", signed=True)


class Call:
    """The launches of one call over one set of gradients.

    Args:
        grads, out: as a backend is given them.
        table: brings words to the device.
        told: entries of the table, if other than those of ``grads`` and ``out``.
    """

    def __init__(
        self,
        grads: Gradients,
        out: Update | None,
        table: NewTable,
        told: Iterable[list[int]] | None = None,
    ) -> None:
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
            told = entries(grads, out) if told is None else told
            words, self.segments, self.mode = _words(told, width)
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
        self.block = (s.rows, s.block, self.mode)

    def partials(self) -> Tensor:
        """First launch: Gram matrices of the programs' chunks; a second set where float32 may fail."""
        partials = self.new_partials()
        self._gram(partials, self.float64, False)
        self.repair(partials)
        return partials

    def new_partials(self) -> Tensor:
        m, sets = self.grads.m, 1 if self.float64 else 2
        size = (sets, self.problems, self.shape.programs[0], m, m)
        return torch.empty(size, dtype=torch.float64, device=self.device)

    def repair(self, partials: Tensor) -> None:
        """The second set, where float32 products may fail; returns at once where they did not."""
        if not self.float64:
            self._gram(partials, True, True)

    def _gram(self, partials: Tensor, float64: bool, repair: bool) -> None:
        s, m = self.shape, self.grads.m
        grid = (s.programs[0], self.problems)
        where = self._where(partials)
        options = {"num_warps": s.repair_warps if repair else s.warps[0], **OPTIONS}
        kernel, tile = gram_triton.gram_small, self.tile
        if m > SMALL:
            kernel, tile = gram_triton.gram_tiles, (s.width, s.depth, s.vector)
        kernel[grid](*where, self.problems, m, *tile, *self.block, float64, repair, **options)

    def _where(self, target: Tensor) -> tuple[object, ...]:
        """What every kernel is told of the rows, with its own result in between."""
        table = target if self.table is None else self.table
        return (self.base, table, target, self.grads.n, self.chunks, self.segments, *self.steps)

    def gram(self, partials: Tensor, bias: Bias | None = None) -> Tensor:
        m, s = self.grads.m, self.shape
        gram = torch.empty(*self.grads.batch_shape, m, m, dtype=torch.float64, device=self.device)
        partials_triton.sum_rows[(m, self.problems)](
            partials,
            gram,
            *_steps(bias, partials),
            self.problems,
            s.programs[0],
            m,
            self.grads.n,
            s.rows,
            rows_block(s),
            self.float64,
            bias is not None,
            **OPTIONS,
        )
        return gram

    def combine(self, c: Tensor) -> None:
        s = self.shape
        base, table, _, *rest = self._where(c)
        combine_triton.combine[(s.programs[1], self.problems)](
            base,
            table,
            self._target(c),
            c,
            *rest,
            self.grads.m,
            *self.tile,
            self.mode,
            num_warps=s.warps[1],
            **OPTIONS,
        )

    def finish(self, partials: Tensor, rule: Rule) -> None:
        """Second launch of the fused update."""
        s, m = self.shape, self.grads.m
        size = (self.problems, s.programs[1], m)
        scratch = torch.empty(size, dtype=torch.float64, device=self.device)
        base, table, _, *rest = self._where(partials)
        weights, weights_step = weights_of(rule, partials)
        combine_triton.finish[(s.programs[1], self.problems)](
            base,
            table,
            self._target(partials),
            partials,
            scratch,
            weights,
            *rest,
            m,
            s.programs[0],
            weights_step,
            *codes(rule),
            self.cutoff(rule),
            *self.tile,
            *self.block,
            self.float64,
            num_warps=s.warps[1],
            **OPTIONS,
        )

    def fits_one_launch(self) -> bool:
        """Whether the whole update may be one launch, and is asked for: FASTCONFIG_TRITON_ONE_LAUNCH=1."""
        asked = os.environ.get("FASTCONFIG_TRITON_ONE_LAUNCH") == "1" and self.float64 and COOPERATIVE
        m, chunks = self.grads.m, self.chunks
        return asked and one_launch(m, chunks, self.problems, self.whole_rows, self.processors)

    def whole(self, rule: Rule) -> None:
        """The update in one cooperative launch."""
        m = self.grads.m
        partials = torch.empty(self.chunks, m, m, dtype=torch.float64, device=self.device)
        base, table, _, n, _, *rest = self._where(partials)
        cooperative = {} if INTERPRETED else {"launch_cooperative_grid": True}
        update_triton.whole[(self.chunks, 1)](
            base,
            table,
            self._target(partials),
            partials,
            torch.zeros(1, dtype=torch.int32, device=self.device),
            weights_of(rule, partials)[0],
            n,
            *rest,
            *codes(rule),
            self.cutoff(rule),
            m,
            *self.tile,
            *self.block,
            num_warps=8,
            **cooperative,
            **OPTIONS,
        )

    def cutoff(self, rule: Rule) -> float:
        """The eigenvalue cut-off."""
        return device_cutoff(rule, self.grads.dtype, self.usable)

    def _target(self, instead: Tensor) -> Tensor:
        """The result, where it is one tensor; otherwise the table says."""
        return instead if self.out is None else self.out


def solve(gram: Tensor, rule: Rule, rcond: float, bias: Bias | None = None) -> Tensor:
    """Coefficients (..., m) of Gram matrices (..., m, m): one launch, a program a problem."""
    m = gram.shape[-1]
    c = torch.empty(gram.shape[:-1], dtype=torch.float64, device=gram.device)
    weights, weights_step = weights_of(rule, gram)
    order = rule.order
    coefficients_triton.coefficients[(c.numel() // m,)](
        gram,
        c,
        weights,
        gram if order is None else order,
        *_steps(bias, gram),
        weights_step,
        0 if order is None or order.dim() == 2 else m * m,
        *codes(rule),
        rcond,
        m,
        tile_rows(m),
        order is not None,
        bias is not None,
        num_warps=solve_warps(m),
        **OPTIONS,
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


def _steps(bias: Bias | None, instead: Tensor) -> tuple[Tensor, int]:
    return (instead, 0) if bias is None else (bias.steps, bias.beta)


def weights_of(rule: Rule, instead: Tensor) -> tuple[Tensor, int]:
    """The weights and their step from problem to problem."""
    if rule.weights is None:
        return instead, 0
    return rule.weights, 0 if rule.weights.dim() == 1 else rule.weights.shape[-1]


def _is_dense(rows: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether all rows, and all results of a batch, start on multiples of 16 bytes."""
    starts = [*strides[:2], *([rows.shape[-1]] if rows.dim() == 3 else [])]
    aligned = all(start * rows.element_size() % 16 == 0 for start in starts)
    return strides[2] == 1 and aligned and rows.data_ptr() % 16 == 0


def _words(told: Iterable[list[int]], width: int) -> tuple[list[int], int, int]:
    """The table of rows_triton.py, its segments, and the mode."""
    ends: list[int] = []
    words: list[int] = []
    aligned = True
    for entry in told:
        half = 1 + len(entry) // 2  # before it the length, the result and the rows, behind it their steps
        length, places, steps = entry[0], entry[1:half], entry[half:]
        if length:
            ends.append((ends[-1] if ends else 0) + -(-length // width))
            words += entry
            aligned = aligned and all(a % 16 == 0 for a in places) and all(step == 1 for step in steps)
    return ends + words, len(ends), TABLE if aligned else SCATTERED


def captured_table(words: list[int], device: torch.device) -> Tensor:
    """A table that kernels write: in a CUDA graph it lives and is written again with the graph."""
    table = torch.empty(len(words), dtype=torch.int64, device=device)
    for start in range(0, len(words), 8):
        piece = words[start : start + 8]
        write_words[(1,)](table, start, len(words), *piece, *[0] * (8 - len(piece)), **OPTIONS)
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
