"""A momentum step on the CPU by kernels/numba/momentum.py, in one call."""

from __future__ import annotations

import ctypes
from array import array
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..gradients import TYPES, Gradients, Update
from ..gradients.results import KEPT_FROM
from ..kernels.numba import ir as ir_numba
from ..kernels.numba.momentum import ACCUMULATE, GRAM, RESCALE, bodies, momentum_address
from ..methods.base import Rule
from ..momentum.step import Plain, Step
from ..numbers import KINDS
from .base import Backend
from .table import address, entries
from .team import ALONE, team_address, threads_for


class NumbaMomentum(Backend):
    """The part of the backend that takes momentum steps; PyTorch takes gradients that it cannot convert."""

    def accumulate(self, step: Step) -> None:
        if _converts(step):
            _run(ACCUMULATE, step, step.momenta, None)
        else:
            super().accumulate(step)

    def momentum_update(self, step: Step, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        plain = rule.unwatched
        again = plain is not rule  # for who is told of it: by a rule that has no state
        if plain.native is None or (again and plain.state is not None) or not _converts(step):
            super().momentum_update(step, rule, out, losses)
            return
        _run(ACCUMULATE + GRAM + RESCALE, step, step.momenta, out, plain)
        if again:
            assert step.gram is not None
            decayed = step.clock.decayed(step.device)[:-2]
            self.coefficients(step.gram / (decayed * decayed[:, None]), rule, step.momenta, losses)

    def short_step(self, state: Plain, indexes: Any, grads: Any, rule: Rule, ring: int = 0) -> Tensor | None:
        return _C.short_step(*state, indexes, grads, TYPES, rule.native_address, rule.cutoffs, ring)

    def rescale(self, step: Step, merged: Update, out: Update) -> None:
        if _converts(step):
            rows: Any = [merged]
            _run(RESCALE, step, Gradients(rows, "merged"), out)
        else:
            super().rescale(step, merged, out)


def _converts(step: Step) -> bool:
    return ir_numba.unsupported(KINDS[step.dtype]) is None


def _run(steps: int, step: Step, rows: Gradients, out: Update | None, rule: Rule | None = None) -> None:
    """``steps`` of kernels/numba/momentum.py, with ``rows`` in the table."""
    dtype, m = rows.dtype, rows.m
    run, team, coefficients, accumulate_body, rescale_body = _entries(dtype, step.dtype)
    table = _rows(step, rows, out)
    coming = _coming(step)
    chosen = array("q", step.chosen)
    *decayed, first, second = step.clock.values()
    size = dtype.itemsize
    products = step.known
    if products is None:
        products = torch.empty(m, m, dtype=torch.float64, device=rows.device)
    native, rcond = (0, 0.0) if rule is None else (rule.native_address, rule.cutoff(dtype))
    numbers = array("d", [step.clock.beta_1, step.clock.beta_2, first, second, rcond, *decayed])
    words = (
        steps,
        table.buffer_info()[0],
        len(step.fake),
        m,
        coming.buffer_info()[0],
        chosen.buffer_info()[0],
        len(chosen),
        KINDS[step.dtype],
        numbers.buffer_info()[0],
        products.data_ptr(),
        step.known is not None,
        coefficients,
        native,
        size,
        threads_for(m * rows.n * size),
        team,
        accumulate_body,
        rescale_body,
    )
    call = array("q", words)
    run(call.buffer_info()[0])
    if steps & GRAM:
        step.gram = products


@cache
def _entries(dtype: torch.dtype, given: torch.dtype) -> tuple[Any, int, int, int, int]:
    """The compiled call; addresses of team.py, fastconfig_coefficients and both passes' bodies.

    For a state and gradients of these dtypes, which short_step knows from now on.
    """
    kinds, run, team, size = (KINDS[dtype], KINDS[given]), momentum_address(), team_address(), dtype.itemsize
    first, second = bodies(KINDS[dtype])
    most = (KEPT_FROM - 1) // given.itemsize * size
    _C.keep_step_kernels(*kinds, torch.empty_like, threads_for, run, team, first, second, size, ALONE, most)
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(run), team, _C.coefficients_address, first, second


def _rows(step: Step, rows: Gradients, out: Update | None) -> array[int]:
    """The table of kernels/numba/gram.py; the momenta's is kept, and only told where the result goes."""
    if rows is not step.momenta:
        return _words(rows, out)
    table: array[int] | None = step.kept.get("numba")
    if table is None:
        table = step.kept["numba"] = _words(rows, None)
    if out is not None:
        words = 2 + 2 * rows.m
        for segment, target in enumerate(rows.split(out)):
            table[words * segment + 1] = target.data_ptr()
    return table


def _words(rows: Gradients, out: Update | None) -> array[int]:
    return array("q", [word for entry in entries(rows, out) for word in entry])


def _coming(step: Step) -> array[int]:
    """What kernels/numba/momentum.py describes; ``step`` keeps its addresses alive."""
    words: list[int] = []
    for fake, second, given in zip(step.fake, step.second, step.grads, strict=True):
        words += fake.data_ptr(), second.data_ptr()
        addresses = [0 if row is None else row.data_ptr() for row in given]
        if 0 in addresses:
            addresses = [0 if row is None else address(row) for row in given]
        words += addresses
        words += [1 if row is None else row.stride(0) for row in given]
    return array("q", words)
