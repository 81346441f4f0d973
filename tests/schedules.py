"""Runs of a momentum operator beside the float64 transcription of its algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from inputs import conflicting, relative_error
from torch import Tensor

from fastconfig import reference
from fastconfig.momentum_operator import PseudoMomentumOperator


def cyclic(m: int, steps: int) -> Iterator[list[int]]:
    for step in range(steps):
        yield [step % m]


def random(m: int, steps: int) -> Iterator[list[int]]:
    for _ in range(steps):
        yield [int(torch.randint(m, ()))]


def several(m: int, steps: int) -> Iterator[list[int]]:
    """One to m of them, in any order."""
    for _ in range(steps):
        yield torch.randperm(m)[: int(torch.randint(1, m + 1, ()))].tolist()


SCHEDULES: dict[str, Callable[[int, int], Iterator[list[int]]]] = {
    "cyclic": cyclic,
    "random": random,
    "several": several,
}


def errors(
    operator: PseudoMomentumOperator,
    schedule: Iterator[list[int]],
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    give: Callable[[Tensor], Any] = lambda rows: rows,
    take: Callable[[Any], Tensor] = lambda update: update,
    merge: Callable[[Tensor], Tensor] = reference.config,
) -> list[float]:
    """Relative error of every update, judged by the transcription on the same rounded gradients.

    Args:
        give: (k, N) gradients as the operator is told of them.
        take: what the operator answers as a vector (N,).
    """
    m = operator.num_vectors
    exact = reference.Momentum(m, merge, operator.beta_1, operator.beta_2)
    mean = conflicting(m, n)
    found = []
    for indexes in schedule:
        rows = (mean[indexes] * (1 + torch.randn(len(indexes), n))).to(dtype)
        before = rows.clone()
        update = take(operator.calculate_gradient(indexes, give(rows)))
        wanted = exact.step(indexes, rows)
        assert torch.equal(rows, before)
        assert update.dtype == dtype
        if operator.all_initialized:
            found.append(relative_error(update, wanted))
        else:
            assert not update.any()
            assert not wanted.any()
    return found
