"""Momentum steps by GPU kernels, interpreted without one: beside the float64 transcription and PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from inputs import conflicting, relative_error
from pairs import cases, some
from schedules import (
    ELEMENTS,
    OPERATORS,
    count_on_every_device,
    errors,
    joined,
    momentum_error,
    odd_addresses,
    per_parameter,
    strided,
)
from torch import Tensor

from fastconfig import (
    PCGradOperator,
    backends,
    reference,
    use_backend,
)
from fastconfig.momentum_operator import PseudoMomentumOperator

# as in test_gpu_kernels.py
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton"),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["triton"])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that can serve here."""
    monkeypatch.setattr(backends, "registry", backends.Registry())  # a failure withdraws the backend
    pytest.importorskip("triton")
    return request.param


@pytest.fixture
def float32_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device with little float64."""
    monkeypatch.setenv("FASTCONFIG_TRITON_FLOAT64", "0")


@pytest.fixture(autouse=True)
def served(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the backend; also when it is interpreted, the device counts the steps."""
    if DEVICE.type == "cpu":
        count_on_every_device(monkeypatch)
    with use_backend(name):
        yield


def steps(m: int, count: int = 3) -> Iterator[list[int]]:
    """One of them, then all in any order, then some: an interpreter takes a second for each."""
    yield [int(torch.randint(m, ()))]
    yield torch.randperm(m).tolist()
    for _ in range(count - 2):
        yield torch.randperm(m)[: int(torch.randint(1, m + 1, ()))].tolist()


def found(operator: PseudoMomentumOperator, n: int, count: int = 3, **settings: Any) -> float:
    """The largest error of a run on the device."""
    return max(errors(operator, steps(operator.num_vectors, count), n, device=DEVICE, **settings))


# of chunks of 1024 columns: below one, at its end, above, and several for a program
@pytest.mark.parametrize(
    "size",
    some([(1, 1), (2, 1024), (3, 2051), (5, 1025), (8, 301), (12, 1031)], [(1, 1), (3, 2051), (12, 1031)]),
)
def test_every_number_of_gradients(size: tuple[int, int]) -> None:
    m, n = size
    assert found(PseudoMomentumOperator(m), n) <= 1e-5


def test_float32_products(float32_products: None) -> None:
    for m in (3, 9):
        assert found(PseudoMomentumOperator(m), 301) <= 1e-3
    assert found(PseudoMomentumOperator(2, dtype=torch.float64), 301, dtype=torch.float64) <= 1e-9


def test_products_that_float32_cannot_hold_are_taken_again(float32_products: None) -> None:
    # 1e-8 beside the root would be all that is left of such an update: its direction is compared
    rows = conflicting(3, 1025) * 1e-25
    operator, exact = PseudoMomentumOperator(3), reference.Momentum(3)
    update = operator.calculate_gradient([0, 1, 2], rows.to(DEVICE)).cpu()
    assert relative_error(update, exact.step([0, 1, 2], rows)) <= 1e-5


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize(("dtype", "held"), cases(DTYPES, DTYPES[:2], together=1))
def test_dtypes(dtype: torch.dtype, held: torch.dtype) -> None:
    bound = max(1e-5 if held == torch.float32 else 1e-9, torch.finfo(dtype).eps)
    assert found(PseudoMomentumOperator(2, dtype=held), 515, dtype=dtype) <= bound


@pytest.mark.parametrize("method", ["config-minimum", "pcgrad", "ppcgrad-mean", "imtlg", "own"])
def test_inner_operators_in_float64(method: str) -> None:
    operator, merge = OPERATORS[method]
    for m, beta_1, beta_2 in ((3, 0.8, 0.99), (9, 0, 0.5)):
        momentum = PseudoMomentumOperator(m, beta_1, beta_2, operator)
        assert found(momentum, 131, dtype=torch.float64, merge=merge) <= 1e-9


@pytest.mark.parametrize("m", [3, 9])
def test_an_order_for_pcgrad(m: int) -> None:
    shuffled = PCGradOperator(shuffle=True, generator=torch.Generator().manual_seed(3))
    drawn = torch.Generator().manual_seed(3)
    merge = lambda rows: reference.pcgrad(rows, torch.rand(m, m, generator=drawn).argsort(-1).tolist())
    momentum = PseudoMomentumOperator(m, gradient_operator=shuffled)
    assert found(momentum, 131, dtype=torch.float64, merge=merge) <= 1e-9


@pytest.mark.parametrize(
    ("give", "method"), cases([strided, odd_addresses, per_parameter], ["config-minimum", "own"], together=1)
)
def test_forms(give: Callable[[Tensor], Any], method: str) -> None:
    operator, merge = OPERATORS[method]
    take = joined if give is per_parameter else lambda update: update
    momentum = PseudoMomentumOperator(2, gradient_operator=operator)
    assert found(momentum, ELEMENTS, give=give, take=take, merge=merge) <= 1e-5


def test_half_precision_from_strided_memory() -> None:
    assert found(PseudoMomentumOperator(2), 301, give=strided, dtype=torch.bfloat16) <= 1e-2


@pytest.mark.parametrize("m", [2, 9])
def test_parameters_that_a_loss_never_has(m: int) -> None:
    """Heads of their own: a missing gradient counts as zeros, and a momentum decays with it."""
    momentum, exact = PseudoMomentumOperator(m, dtype=torch.float64), reference.Momentum(m)
    for indexes in ([*range(m)], [0], [m - 1, 0]):
        given, full = [], []
        for i in indexes:
            trunk = torch.randn(30 + i, dtype=torch.float64)[:30]
            heads: list[Tensor | None] = [None, None]
            # the second time, the first loss has none for its own head
            if len(indexes) == m or i:
                heads[i % 2] = torch.randn(3, dtype=torch.float64)
            given.append([None if t is None else t.to(DEVICE) for t in (trunk, *heads)])
            full.append(torch.cat([torch.zeros(3).double() if t is None else t for t in (trunk, *heads)]))
        update = momentum.calculate_gradient(indexes, given)
        wanted = exact.step(indexes, torch.stack(full))
        assert momentum_error(torch.cat(update).cpu(), wanted, exact) <= 1e-9


@pytest.mark.parametrize(("m", "broken"), cases([2, 9], [torch.nan, torch.inf], together=1))
def test_a_broken_gradient_gives_nan(m: int, broken: float) -> None:
    momentum = PseudoMomentumOperator(m)
    rows = torch.randn(m, 50)
    rows[1, 7] = broken
    assert momentum.calculate_gradient([*range(m)], rows.to(DEVICE)).isnan().all()


def state_of(operator: PseudoMomentumOperator) -> list[Tensor]:
    state = operator.state_dict()
    rows = [*state["momenta"], state["fake"], state["second"]]
    return [tensor for row in rows for tensor in row]


@pytest.mark.parametrize(("dtype", "m"), cases(DTYPES[:2], [3, 9], together=1))
def test_the_state_stays_where_it_is_and_is_pytorchs(dtype: torch.dtype, m: int) -> None:
    ours, theirs, exact = PseudoMomentumOperator(m), PseudoMomentumOperator(m), reference.Momentum(m)
    for indexes in ([*range(m)], [1], [2, 0]):
        rows = conflicting(len(indexes), 131).to(DEVICE, dtype)
        held = [] if len(indexes) == m else state_of(ours)
        before = [tensor.clone() for tensor in held]
        update = ours.calculate_gradient(indexes, rows)
        with use_backend("pytorch"):
            other = theirs.calculate_gradient(indexes, rows)
        wanted = exact.step(indexes, rows.cpu())
        # C has a condition of some hundreds
        bound = 1e-5 if dtype == torch.float32 else 1e-11
        assert momentum_error(update.cpu(), wanted, exact) <= bound
        assert momentum_error(other.cpu(), wanted, exact) <= bound
        for tensor, pytorchs in zip(state_of(ours), state_of(theirs), strict=True):
            assert tensor.dtype == dtype
            assert relative_error(tensor, pytorchs.double()) <= bound
        for i, (tensor, old) in enumerate(zip(held, before, strict=True)):
            assert tensor.data_ptr() == state_of(ours)[i].data_ptr()
            assert torch.equal(tensor, old) == (i < m and i not in indexes)


@pytest.mark.parametrize("m", [3, 9])
def test_steps_counted_on_the_device(m: int) -> None:
    """As where a CUDA graph is replayed: the host knows less."""
    momentum, exact = PseudoMomentumOperator(m), reference.Momentum(m)
    clock = momentum._momenta.clock
    for indexes in ([*range(m)], [1], [*range(m)]):
        rows = torch.randn(len(indexes), 50)
        update = momentum.calculate_gradient(indexes, rows.to(DEVICE)).cpu()
        assert momentum_error(update, exact.step(indexes, rows), exact) <= 1e-5
        steps = clock.counted_steps()
        assert steps is not None
        assert steps.tolist() == [*exact.counts, exact.updates, exact.updates]
        clock.counts, clock.updates = [100] * m, 100


def test_the_same_bits_every_time() -> None:
    rows = torch.randn(3, 1025).to(DEVICE)
    runs = [PseudoMomentumOperator(3).calculate_gradient([2, 0, 1], rows) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in pairwise(runs))
