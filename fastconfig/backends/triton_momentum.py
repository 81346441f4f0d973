"""The launches of a momentum step behind triton_gpu.py.

Only the first launch writes momenta, and only the last one the second moment, ``fake`` and the update: a
kernel that fails to compile leaves a step that can be taken up where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..gradients import Update
from ..kernels import average_triton, momentum_triton
from ..kernels.shapes_triton import SMALL
from ..methods import Rule
from ..momenta import Step
from .table import address
from .triton_launch import OPTIONS, Bias, Call, NewTable, bits, codes, solve, weights_of


def accumulate(step: Step, table: NewTable) -> None:
    """The moving averages alone: a row of programs for each gradient that came."""
    call, k = _StepCall(step, _pairs(step), table), len(step.chosen)
    average_triton.accumulate[(call.shape.programs[1], k)](
        *call.sources(), *call.columns(), k, call.betas[0], *call.tile, call.mode, **call.options
    )


def rescale(step: Step, merged: Update, out: Update, table: NewTable) -> None:
    """The second pass alone, over a vector that is merged already."""
    pieces = [[address(piece)] for piece in step.momenta.split(merged)]
    one = torch.ones(1, dtype=torch.float64, device=step.device)
    _StepCall(step, _second_pass(step, pieces, out), table).rescale(one, 1, 3)


def begin(step: Step, rule: Rule, out: Update, table: NewTable) -> Callable[[], None]:
    """Launch the first pass of a whole step; the answer launches the rest."""
    if step.momenta.m > SMALL:
        accumulate(step, table)
        return lambda: _merge_many(step, rule, out, table)
    call = _SmallStep(step, out, table)
    partials = call.first()
    return lambda: call.merge(partials, rule)


def _merge_many(step: Step, rule: Rule, out: Update, table: NewTable) -> None:
    momenta = Call(step.momenta, None, table)
    rows = [state[1:-2] for state in _state(step)]
    call = _StepCall(step, _second_pass(step, rows, out), table)
    gram = momenta.gram(momenta.partials(), call.bias)
    call.rescale(solve(gram, rule, call.cutoff(rule), call.bias), call.grads.m, call.grads.m + 2)


class _StepCall(Call):
    """A call over momenta with a table of its own."""

    def __init__(self, step: Step, told: Iterator[list[int]], table: NewTable) -> None:
        super().__init__(step.momenta, None, table, told)
        self.step = step
        clock = step.clock
        self.betas = bits(clock.beta_1), bits(clock.beta_2)
        self.options = {"num_warps": self.shape.warps[1], **OPTIONS}

    @property
    def bias(self) -> Bias:
        clock = self.step.clock
        steps = clock.steps
        if steps is None:  # interpreted
            steps = torch.tensor(
                [*clock.counts, clock.updates, clock.updates], dtype=torch.int64, device="cpu"
            )
        return Bias(steps, self.betas[0])

    def sources(self) -> tuple[object, ...]:
        """Where the rows are, and their dtypes."""
        return self.base, torch.empty(0, dtype=self.step.dtype, device=self.device), self.table

    def columns(self) -> tuple[int, ...]:
        return self.grads.n, self.chunks, self.segments

    def rescale(self, c: Tensor, m: int, rows: int) -> None:
        """The second pass over a table of ``rows`` rows, the first m of which are combined."""
        steps = self.bias.steps[-1:]
        momentum_triton.rescale[(self.shape.programs[1],)](
            *self.sources(), c, steps, *self.betas, *self.columns(), m, rows, *self.tile, self.mode,
            **self.options,
        )  # fmt: skip


class _SmallStep(_StepCall):
    """A whole step of up to SMALL gradients in two launches."""

    def __init__(self, step: Step, out: Update, table: NewTable) -> None:
        super().__init__(step, _whole(step, out), table)
        self.rows = 2 * step.momenta.m + 2

    def first(self) -> Tensor:
        partials = self.new_partials()
        self._gram(partials, self.float64, False)
        return partials

    def _gram(self, partials: Tensor, float64: bool, repair: bool) -> None:
        s = self.shape
        which = 0 if repair else sum(1 << i for i in self.step.chosen)
        warps = s.repair_warps if repair else s.warps[0]
        momentum_triton.accumulate_gram[(s.programs[0],)](
            *self.sources(), partials, *self.columns(), which, self.betas[0], self.grads.m,
            *self.tile, *self.block, float64, repair, **(self.options | {"num_warps": warps}),
        )  # fmt: skip

    def merge(self, partials: Tensor, rule: Rule) -> None:
        """The second pass."""
        self.repair(partials)
        m, s, bias = self.grads.m, self.shape, self.bias
        if rule.order is not None:
            self.rescale(solve(self.gram(partials, bias), rule, self.cutoff(rule), bias), m, self.rows)
            return
        scratch = torch.empty(s.programs[1], m, dtype=torch.float64, device=self.device)
        momentum_triton.finish_step[(s.programs[1],)](
            *self.sources(), partials, scratch, weights_of(rule, partials)[0], bias.steps, *self.betas,
            *self.columns(), m, self.rows, s.programs[0], *codes(rule), self.cutoff(rule),
            *self.tile, *self.block, self.float64, **self.options,
        )  # fmt: skip


def _state(step: Step) -> list[list[int]]:
    """Of every segment its length, and where m momenta, fake and second are; 0 is a missing momentum."""
    found: list[list[int]] | None = step.kept.get("triton")
    if found is None:
        found = step.kept["triton"] = []
        for rows, fake, second in zip(step.momenta.segments, step.fake, step.second, strict=True):
            places = [0 if row is None else address(row) for row in rows]
            found.append([second.numel(), *places, address(fake), address(second)])
    return found


def _given(row: Sequence[Tensor | None]) -> tuple[list[int], list[int]]:
    """Addresses of gradients, and their steps."""
    places = [0 if tensor is None else address(tensor) for tensor in row]
    return places, [1 if tensor is None else tensor.stride(0) for tensor in row]


def _pairs(step: Step) -> Iterator[list[int]]:
    """Entries of k momenta, then their gradients."""
    for (length, *state), row in zip(_state(step), step.grads, strict=True):
        places, steps = _given(row)
        yield [length, 0, *(state[i] for i in step.chosen), *places, *[1] * len(row), *steps]


def _second_pass(step: Step, rows: Sequence[list[int]], out: Update) -> Iterator[list[int]]:
    """Entries of rows to combine, then fake and second."""
    targets = step.momenta.split(out)
    for (length, *_, fake, second), row, target in zip(_state(step), rows, targets, strict=True):
        yield [length, target.data_ptr(), *row, fake, second, *[1] * (len(row) + 2)]


def _whole(step: Step, out: Update) -> Iterator[list[int]]:
    """Entries of m momenta, fake, second, and a gradient for every momentum."""
    targets = step.momenta.split(out)
    for (length, *state), row, target in zip(_state(step), step.grads, targets, strict=True):
        by_index: list[Tensor | None] = [None] * step.momenta.m
        for i, gradient in zip(step.chosen, row, strict=True):
            by_index[i] = gradient
        places, steps = _given(by_index)
        yield [length, target.data_ptr(), *state, *places, *[1] * len(state), *steps]
