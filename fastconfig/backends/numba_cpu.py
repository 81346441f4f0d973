"""CPU: the kernels of kernels/numba over a table of addresses; no gradient is copied."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

try:
    from .. import _C
except ImportError as error:
    raise ImportError("fastconfig's C++ code is not built, want: pip install . (in the checkout)") from error
from ..gradients import TYPES, Gradients, GradientsLike, Update
from ..gradients.results import KEPT_FROM
from ..kernels.numba import ir as ir_numba
from ..kernels.numba.update import COMBINE, GRAM, bodies, run_address
from ..methods.base import Rule, native_coefficients
from ..numbers import KINDS
from .numba_momentum import NumbaMomentum
from .table import entries, tensor_entry
from .team import ALONE, team_address, threads_for, worth_a_team

_ZERO = array("d", [0])
_UNSUPPORTED = {dtype: ir_numba.unsupported(kind) for dtype, kind in KINDS.items()}


class NumbaBackend(NumbaMomentum):
    """Gram, coefficients and combine in compiled code on the CPU."""

    name = "numba"

    def unsupported(self, grads: Gradients) -> str | None:
        if grads.device_type != "cpu":
            return f"it serves the CPU, the gradients are on {grads.device}"
        return _UNSUPPORTED[grads.dtype]

    def unsupported_device(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else f"it serves the CPU, not {device}"

    def gram(self, grads: Gradients) -> Tensor:
        out = torch.empty(*grads.batch_shape, grads.m, grads.m, dtype=torch.float64, device=grads.device)
        _run(GRAM, grads, None, out.data_ptr(), 0)
        return out

    def coefficients(
        self, gram: Tensor, rule: Rule, grads: Gradients, losses: Tensor | None = None
    ) -> Tensor:
        if rule.native is None:
            return super().coefficients(gram, rule, grads, losses)
        return native_coefficients(gram, rule, grads.dtype)

    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        c = c.contiguous()
        _run(COMBINE, grads, out, 0, c.data_ptr())

    def update_groups(
        self, grads: Gradients, groups: list[list[int]], rules: list[Rule], out: Update
    ) -> bool:
        if not rules:
            return True
        if not grads.plain:
            return False
        run, team, gram_body, combine_body, size = _entries(grads.dtype)
        threads = threads_for(grads.m * grads.n * size)
        natives = [rule.native_address for rule in rules]
        kernels = (size, threads, worth_a_team(threads), team, gram_body, combine_body)
        _C.run_groups(run, grads.rows, out, groups, natives, *kernels, rules[0].cutoff(grads.dtype))
        return True

    def short_update(self, grads: GradientsLike, rule: Rule, ring: int = 0) -> Update | None:
        return _C.short_update(grads, TYPES, rule.native_address, rule.cutoffs, ring)

    def merge_into(
        self, rows: list[Sequence[Tensor | None]], parameters: list[Tensor], rule: Rule, ring: int = 0
    ) -> list[Tensor] | None:
        return _C.merge_into(rows, parameters, TYPES, rule.native_address, rule.cutoffs, ring)

    def update(self, grads: Gradients, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        if rule.native is None:
            super().update(grads, rule, out, losses)
            return
        if grads.plain:
            _run(GRAM + COMBINE, grads, out, 0, 0, rule)
            return
        m = grads.m
        problems = grads.problems
        scratch = _ZERO * (problems * (m + 1) * m)  # G, then c; made in less time than a tensor
        gram = scratch.buffer_info()[0]
        _run(GRAM + COMBINE, grads, out, gram, gram + 8 * problems * m * m, rule)


@cache
def _entries(dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """Addresses of run, of team.py and of the bodies of the two passes; bytes of an element."""
    kind, run, team, size = KINDS[dtype], run_address(), team_address(), dtype.itemsize
    gram_body, combine_body = bodies(kind)
    kernels = (run, team, gram_body, combine_body)
    _C.keep_kernels(kind, torch.empty_like, threads_for, *kernels, size, ALONE, KEPT_FROM - 1)
    return *kernels, size


def _run(
    steps: int, grads: Gradients, out: Update | None, gram: int, c: int, rule: Rule | None = None
) -> None:
    """``steps`` of kernels/numba/update.py; ``gram``, ``c``: addresses of float64 memory, or 0 if plain."""
    dtype, m = grads.dtype, grads.m
    run, team, gram_body, combine_body, size = _entries(dtype)
    threads = threads_for(m * grads.n * size)
    native, rcond = (0, 0.0) if rule is None else (rule.native_address, rule.cutoff(dtype))
    rest = (gram, c, native, size, threads, team, gram_body, combine_body, rcond)
    if grads.plain:
        _C.run_plain(run, steps, grads.rows, out, *rest)  # type: ignore[arg-type]
        return
    table, problems, segments = _table(grads, out)
    _C.run(run, steps, table.buffer_info()[0], problems, segments, m, *rest)


def _table(grads: Gradients, out: Update | None) -> tuple[array[int], int, int]:
    """What kernels/numba/gram.py describes, problems, segments. ``grads`` keeps its addresses alive."""
    rows = grads.rows
    if not isinstance(rows, Tensor):
        return array("q", [word for entry in entries(grads, out) for word in entry]), 1, len(grads.segments)
    words = [word for problem in range(grads.problems) for word in tensor_entry(rows, out, problem)]
    return array("q", words), grads.problems, 1
