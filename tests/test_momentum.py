"""The momentum operators beside a float64 transcription of M-ConFIG, in every form that gradients come in."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from inputs import METHODS, conflicting, relative_error
from schedules import (
    ELEMENTS,
    OPERATORS,
    SCHEDULES,
    cyclic,
    errors,
    joined,
    momentum_error,
    per_parameter,
    several,
    strided,
)
from torch import Tensor

from fastconfig import (
    PPCGradOperator,
    reference,
)
from fastconfig.momentum.clock import Clock
from fastconfig.momentum_operator import PseudoMomentumOperator, SeparateMomentumOperator
from fastconfig.numbers import cutoff


@pytest.mark.parametrize("m", [2, 3, 8])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_transcription_over_200_steps(backend: str, schedule: str, m: int) -> None:
    found = errors(PseudoMomentumOperator(m), SCHEDULES[schedule](m, 200), 1003)
    assert found[-1] <= 1e-5


@pytest.mark.parametrize("name", ["config", "config-minimum", "pcgrad", "ppcgrad", "imtlg"])
@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_inner_operators_in_float64(backend: str, name: str, m: int) -> None:
    operator, merge = OPERATORS[name]
    momentum = PseudoMomentumOperator(m, 0.8, 0.99, operator)
    found = errors(momentum, several(m, 25), 517, dtype=torch.float64, merge=merge)
    assert max(found) <= 1e-9


@pytest.mark.parametrize("n", [1, 7, 64, 1001, 70_001])
def test_sizes(backend: str, n: int) -> None:
    operator = PseudoMomentumOperator(1 if n == 1 else 3, dtype=torch.float64)
    schedule = cyclic(operator.num_vectors, 9)
    assert max(errors(operator, schedule, n, dtype=torch.float64)) <= 1e-9


def test_a_users_own_operator_sees_the_corrected_momenta(backend: str) -> None:
    operator, merge = OPERATORS["own"]
    momentum = PseudoMomentumOperator(3, gradient_operator=operator)
    found = errors(momentum, several(3, 40), 301, merge=merge)
    assert max(found) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_state_in_float32(backend: str, dtype: torch.dtype) -> None:
    momentum = PseudoMomentumOperator(3)
    found = errors(momentum, cyclic(3, 60), 1003, dtype=dtype)
    assert found[-1] <= torch.finfo(dtype).eps  # one rounding of the result
    assert {tensor.dtype for row in momentum.state_dict()["momenta"] for tensor in row} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_of_float64(backend: str, dtype: torch.dtype) -> None:
    momentum = PseudoMomentumOperator(3, dtype=torch.float64)
    found = errors(momentum, cyclic(3, 60), 1003, dtype=dtype)
    assert max(found) <= torch.finfo(dtype).eps


def test_counters_on_a_device(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may lag behind the host's until they are asked for."""

    def move(clock: Clock, device: torch.device) -> None:
        clock.set_steps(torch.tensor([*clock.counts, clock.updates, clock.updates], device=device))

    monkeypatch.setattr(Clock, "move", move)
    momentum = PseudoMomentumOperator(3)
    assert max(errors(momentum, iter([[0], *several(3, 3), [2, 1, 0], *several(3, 3)]), 101)) <= 1e-5
    clock = momentum._momenta.clock
    counts, updates = list(clock.counts), clock.updates
    steps = clock.counted_steps()
    assert steps is not None
    assert steps.tolist() == [*counts, updates, updates]
    assert momentum.state_dict()["counts"] == counts


def channels_last(rows: Tensor) -> list[list[Tensor]]:
    given = per_parameter(rows)
    return [[row[0].contiguous(memory_format=torch.channels_last), *row[1:]] for row in given]


def mixed(rows: Tensor) -> list[list[Tensor]]:
    """In another memory order from step to step."""
    return channels_last(rows) if torch.rand(()) < 0.5 else per_parameter(rows)


@pytest.mark.parametrize("give", [list, strided], ids=["list", "strided"])
def test_lists_of_vectors(backend: str, give: Any) -> None:
    assert max(errors(PseudoMomentumOperator(4), several(4, 30), 777, give=give)) <= 1e-5


@pytest.mark.parametrize("name", ["config", "own"])
@pytest.mark.parametrize("give", [per_parameter, channels_last, mixed])
def test_per_parameter_lists(backend: str, give: Any, name: str) -> None:
    operator, merge = OPERATORS[name]
    momentum = PseudoMomentumOperator(3, gradient_operator=operator)
    assert max(errors(momentum, several(3, 30), ELEMENTS, give=give, take=joined, merge=merge)) <= 1e-5


def test_parameters_that_a_loss_never_has(backend: str) -> None:
    """Heads of their own: a missing gradient counts as zeros, and a parameter nobody had yet stays None."""
    momentum, exact = PseudoMomentumOperator(2, dtype=torch.float64), reference.Momentum(2)
    nothing = torch.zeros(4)
    for step in range(20):
        trunk, head = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
        if step % 2 == 0:
            given, full = [trunk, head, None], torch.cat([trunk, head, nothing[:2]])
        else:
            given, full = [trunk, None, head], torch.cat([trunk, nothing[:2], head])
        update = momentum.calculate_gradient(step % 2, given)
        wanted = exact.step([step % 2], full[None])
        if step == 0:
            assert update[2] is None
        if step > 0:
            assert momentum_error(torch.cat(update), wanted, exact) <= 1e-10


def test_gradients_that_come_in_some_steps_only(backend: str) -> None:
    """A momentum decays as by zeros where its loss has no gradient of a tensor this time."""
    momentum, exact = PseudoMomentumOperator(3, dtype=torch.float64), reference.Momentum(3)
    for step, indexes in enumerate([[0, 1, 2], *several(3, 20)]):
        rows = conflicting(3, 137)[: len(indexes)].double()
        given: list[list[Tensor | None]] = []
        for i, row in zip(indexes, rows, strict=True):
            head = row[100:].clone() if (step + i) % 2 == 0 or step == 0 else None
            row[100:] *= head is not None
            given.append([row[:100].clone(), head])
        update = momentum.calculate_gradient(indexes, given)
        wanted = exact.step(indexes, rows)
        assert momentum_error(torch.cat(update), wanted, exact) <= 1e-10, step  # type: ignore[arg-type]


@pytest.mark.parametrize(("m", "n"), [(7, 19), (9, 3001), (16, 40_003)])
def test_few_of_many_losses_a_step(backend: str, m: int, n: int) -> None:
    """Only the products of these change; each loss has a head that no other has, and one has no trunk."""
    momentum, exact = PseudoMomentumOperator(m), reference.Momentum(m)
    for step, indexes in enumerate([[*range(m)], *([i % m] for i in range(2 * m)), [3, 1], [2], [0, 4], [1]]):
        trunk, heads = torch.randn(len(indexes), n), torch.randn(len(indexes), 5)
        full = torch.zeros(len(indexes), n + 5 * m)
        given: list[list[Tensor | None]] = []
        for k, i in enumerate(indexes):
            full[k, n + 5 * i :][:5] = heads[k]
            if i != 2:
                full[k, :n] = trunk[k]
            own = [heads[k] if i == j else None for j in range(m)]
            given.append([trunk[k] if i != 2 else None, *own])
        update = momentum.calculate_gradient(indexes, given)
        assert isinstance(update, list)
        wanted = exact.step(indexes, full.double())
        joined_update = torch.cat([piece for piece in update if piece is not None])
        assert momentum_error(joined_update, wanted, exact) <= 1e-5, step


def test_the_operator_may_change_between_steps(backend: str) -> None:
    """Products of momenta that a user's own operator has merged are not known in the next step."""
    momentum, exact = PseudoMomentumOperator(9), reference.Momentum(9)
    for indexes, name in [([*range(9)], "config"), ([3], "config"), ([1], "own"), ([2], "config")]:
        momentum.gradient_operator, exact.merge = OPERATORS[name]
        rows = conflicting(9, 300)[indexes]
        wanted = exact.step(indexes, rows)
        update = momentum.calculate_gradient(indexes, rows)
        assert momentum_error(update, wanted, exact) <= 1e-5  # type: ignore[arg-type]


def test_large_updates_at_any_address(backend: str) -> None:
    """Chunks of the second parameter begin between two cache lines."""
    found = errors(
        PseudoMomentumOperator(2),
        cyclic(2, 4),
        600_003,
        give=lambda rows: [[row[:3], row[3:]] for row in rows],
        take=torch.cat,
    )
    assert max(found) <= 1e-5


def test_half_precision_that_cannot_tell_rows_apart(backend: str) -> None:
    """The cut-off is the gradients' own, though the state is in float32."""
    rows = conflicting(3, 2000).bfloat16()
    rows[1] = rows[0]
    rows[1, :40] *= 1 + 2**-7  # one unit in the last place
    cut = partial(reference.config, rcond=cutoff(torch.bfloat16))
    operator, exact = PseudoMomentumOperator(3), reference.Momentum(3, cut)
    wanted = exact.step([0, 1, 2], rows)
    update = operator.calculate_gradient([0, 1, 2], rows)
    assert isinstance(update, Tensor)
    assert momentum_error(update, wanted, exact) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", METHODS)
def test_zero_gradients_give_finite_updates(backend: str, name: str) -> None:
    momentum = PseudoMomentumOperator(3)
    rows = conflicting(3, 100)
    rows[1] = 0
    for step in range(6):
        update = momentum.calculate_gradient(step % 3, rows[step % 3])
        assert torch.isfinite(update).all()
    assert update.any()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_gradient_gives_nan(backend: str, broken: float) -> None:
    momentum = PseudoMomentumOperator(2)
    momentum.calculate_gradient([0, 1], torch.randn(2, 50))
    row = torch.randn(50)
    row[7] = broken
    assert momentum.calculate_gradient(1, row).isnan().all()


@pytest.mark.parametrize("give", [list, per_parameter])
def test_every_element_is_written(backend: str, give: Any) -> None:
    operator = PseudoMomentumOperator(3)
    for indexes in several(3, 12):
        update = operator.calculate_gradient(indexes, give(torch.randn(len(indexes), 417)))
        for piece in [update] if isinstance(update, Tensor) else update:
            assert piece is not None
            assert torch.isfinite(piece).all()


@pytest.mark.parametrize("n", [5000, 300_001])
@pytest.mark.parametrize("m", [4, 9])
def test_the_same_bits_for_any_number_of_threads(m: int, n: int) -> None:
    before = torch.get_num_threads()
    schedule = [list(range(m)), *cyclic(m, 4), *several(m, 8)]
    steps = [(indexes, torch.randn(len(indexes), n)) for indexes in schedule]
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            operator = PseudoMomentumOperator(m)
            found.append([operator.calculate_gradient(*step) for step in steps])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_separate_moments(backend: str) -> None:
    """Each momentum over the root of its own second moment, then merged."""
    operator = SeparateMomentumOperator(3, 0.9, 0.99, PPCGradOperator())
    m, s, t = torch.zeros(3, 201).double(), torch.zeros(3, 201).double(), [0] * 3
    for indexes in several(3, 40):
        rows = conflicting(3, 201)[indexes].double()
        update = operator.calculate_gradient(indexes, rows)
        for i, row in zip(indexes, rows, strict=True):
            t[i] += 1
            m[i] = 0.9 * m[i] + 0.1 * row
            s[i] = 0.99 * s[i] + 0.01 * row**2
        if 0 in t:
            assert not update.any()
            continue
        first = torch.tensor([1 - 0.9**k for k in t], dtype=torch.float64)[:, None]
        second = torch.tensor([1 - 0.99**k for k in t], dtype=torch.float64)[:, None]
        wanted = reference.ppcgrad(m / first / ((s / second).sqrt() + 1e-8))
        assert relative_error(update, wanted) <= 1e-10


def test_separate_moments_of_missing_gradients(backend: str) -> None:
    """Both moments decay as by zeros."""
    operator = SeparateMomentumOperator(2, 0.9, 0.99, PPCGradOperator(), dtype=torch.float64)
    m, s = torch.zeros(2, 2, 30).double(), torch.zeros(2, 2, 30).double()
    for t in range(1, 12):
        rows = conflicting(2, 60).double().view(2, 2, 30)
        there = torch.rand(2, 2) < (2 if t == 1 else 0.6)
        there[0, 0] = True
        given = [
            [row if has else None for row, has in zip(*pair, strict=True)]
            for pair in zip(rows, there, strict=True)
        ]
        update = operator.calculate_gradient([0, 1], given)
        rows = rows * there[..., None]
        m, s = 0.9 * m + 0.1 * rows, 0.99 * s + 0.01 * rows**2
        rescaled = m / (1 - 0.9**t) / ((s / (1 - 0.99**t)).sqrt() + 1e-8)
        wanted = reference.ppcgrad(rescaled.view(2, 60))
        assert relative_error(torch.cat(update), wanted) <= 1e-10  # type: ignore[arg-type]
