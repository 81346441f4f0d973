"""Runs of a momentum operator beside the float64 transcription of its algorithm, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from inputs import conflicting, relative_error
from torch import Tensor

from fastconfig import (
    ConFIGOperator,
    GradientOperator,
    GramOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    TrackMinimum,
    reference,
)
from fastconfig.momentum.clock import Clock
from fastconfig.momentum_operator import PseudoMomentumOperator


class Own(GradientOperator):
    """A user's operator; knows tensors (m, N) only."""

    def calculate_gradient(self, grads: Tensor, losses: Any = None) -> Tensor:  # type: ignore[override]
        assert isinstance(grads, Tensor)
        return grads.sum(0)


Oracle = Callable[[Tensor], Tensor]


def _unit_sum(gram: Tensor) -> Tensor:
    """A user's own rule."""
    return 1 / gram.diagonal().sqrt()


#: what makes this package's operators, and the oracle's function of the rows that each merges
MAKERS: dict[str, tuple[Callable[..., GradientOperator], Oracle]] = {
    "config": (ConFIGOperator, reference.config),
    "config-minimum": (
        partial(ConFIGOperator, length_model=TrackMinimum()),
        partial(reference.config, length="minimum"),
    ),
    "pcgrad": (PCGradOperator, reference.pcgrad),
    "ppcgrad": (PPCGradOperator, reference.ppcgrad),
    "ppcgrad-mean": (
        partial(PPCGradOperator, reduction="mean"),
        partial(reference.ppcgrad, reduction="mean"),
    ),
    "imtlg": (IMTLGOperator, reference.imtlg),
    "function": (
        partial(GramOperator, _unit_sum),
        lambda rows: sum(row / row.norm() for row in rows.double()),
    ),
}
#: the operators themselves, and a user's
OPERATORS: dict[str, tuple[GradientOperator, Oracle]] = {
    **{name: (make(), oracle) for name, (make, oracle) in MAKERS.items()},
    "own": (Own(), lambda rows: rows.sum(0)),
}


def strided(rows: Tensor) -> list[Tensor]:
    """Every second element of memory, with NaN between."""
    return [torch.stack([row, torch.full_like(row, torch.nan)], 1)[:, 0] for row in rows]


def odd_addresses(rows: Tensor) -> list[Tensor]:
    return [torch.cat([row[:1], row])[1:] for row in rows]


SHAPES = [(2, 3, 5, 4), (), (0, 3), (17,), (9, 31)]
ELEMENTS = sum(torch.Size(shape).numel() for shape in SHAPES)


def per_parameter(rows: Tensor) -> list[list[Tensor]]:
    """Rows of ELEMENTS as tensors of SHAPES."""
    pieces = [row.split([torch.Size(shape).numel() for shape in SHAPES]) for row in rows]
    return [[piece.view(shape) for piece, shape in zip(row, SHAPES, strict=True)] for row in pieces]


def joined(update: list[Tensor]) -> Tensor:
    assert [tuple(piece.shape) for piece in update] == SHAPES
    return torch.cat([piece.reshape(-1) for piece in update])


class Long(PseudoMomentumOperator):
    """Goes the long way every time."""

    def _short_step(self, indexes: Any, grads: Any) -> None:
        return None


def state(operator: PseudoMomentumOperator) -> tuple[Any, ...]:
    """All that a step changes, in a form that == compares to the bit."""
    known = operator.state_dict()
    tensors = [*(row[0] for row in known["momenta"]), known["second"][0], known["fake"][0], known["gram"]]
    bits = [None if tensor is None else (tensor.dtype, tensor.numpy().tobytes()) for tensor in tensors]
    return known["counts"], known["updates"], bits


def same_step(operators: list[Any], *arguments: Any) -> Tensor:
    first, second = (operator.calculate_gradient(*arguments) for operator in operators)
    assert first.dtype == second.dtype
    assert torch.equal(first.isnan(), second.isnan())
    assert torch.equal(first.nan_to_num(), second.nan_to_num())
    assert state(operators[0]) == state(operators[1])
    return first


def count_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks count where the gradients are, as on a device that runs behind the host."""

    def move(clock: Clock, device: torch.device) -> None:
        steps = [*clock.counts, clock.updates, clock.updates]
        clock.set_steps(torch.tensor(steps, dtype=torch.int64, device=device))

    monkeypatch.setattr(Clock, "move", move)


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


def momentum_error(update: Tensor, wanted: Tensor, exact: reference.Momentum) -> float:
    """Relative, before the division by the root of the second moment.

    In early steps an element is divided by itself: near zero it keeps a sign that rounding decides.
    """
    return relative_error(update * exact.divisor, wanted * exact.divisor)


def errors(
    operator: PseudoMomentumOperator,
    schedule: Iterator[list[int]],
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    give: Callable[[Tensor], Any] = lambda rows: rows,
    take: Callable[[Any], Tensor] = lambda update: update,
    device: torch.device | None = None,
    merge: Callable[[Tensor], Tensor] = reference.config,
) -> list[float]:
    """Relative error of every update, judged by the transcription on the same rounded gradients.


    Args:
        give: (k, N) gradients as the operator is told of them.
        device: where they are.
        take: what the operator answers as a vector (N,).
    """
    m = operator.num_vectors
    exact = reference.Momentum(m, merge, operator.beta_1, operator.beta_2)
    mean = conflicting(m, n)
    found = []
    for indexes in schedule:
        rows = (mean[indexes] * (1 + torch.randn(len(indexes), n))).to(dtype)
        before = rows.clone()
        update = take(operator.calculate_gradient(indexes, give(rows.to(device)))).cpu()
        wanted = exact.step(indexes, rows)
        assert torch.equal(rows, before)
        assert update.dtype == dtype
        if operator.all_initialized:
            found.append(momentum_error(update, wanted, exact))
        else:
            assert not update.any()
            assert not wanted.any()
    return found


def assert_served(operator: GradientOperator, exact: Tensor, rows: Tensor) -> None:
    """By the backend of the day: 4 float32 rows of 1031 elements in every form, zeros, NaN, and momentum."""
    pieces = [[row[:700].clone(), row[700:].clone()] for row in rows]
    for given in (rows, list(rows), pieces):
        update = operator.calculate_gradient(given)
        assert relative_error(update if isinstance(update, Tensor) else torch.cat(update), exact) <= 1e-5
    assert not operator.calculate_gradient(torch.zeros(3, 33)).any()
    broken = rows.clone()
    broken[2, 5] = torch.nan
    assert operator.calculate_gradient(broken).isnan().all()
    momentum = PseudoMomentumOperator(2, gradient_operator=operator)
    assert momentum.calculate_gradient([0, 1], list(rows[:2])).isfinite().all()
