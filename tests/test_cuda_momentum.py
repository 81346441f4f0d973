"""Momentum steps by the CUDA kernels, on a GPU or emulated, beside the float64 transcription and PyTorch."""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import pytest
import torch
from inputs import METHODS, conflicting
from pairs import some
from schedules import (
    OPERATORS,
    count_on_every_device,
    cyclic,
    errors,
    odd_addresses,
    several,
    strided,
)
from torch import Tensor

from fastconfig import (
    ConFIGOperator,
    backends,
    use_backend,
)
from fastconfig.backends.base import BackendUnavailable
from fastconfig.momentum_operator import PseudoMomentumOperator

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
FEW = (1, 2, 3, 5, 8)  # gradients that every device takes
# of four chunks of float32 columns: below, at, above; and more than the four multiprocessors take at a time
LENGTHS = (1, 7, 1024, 1025, 9001)


@pytest.fixture(params=some([True, False], quick=[True]), ids=["float64", "little float64"])
def float64(request: pytest.FixtureRequest) -> bool:
    """Whether the device computes float64 at a usable rate."""
    if ON_GPU and not request.param:
        pytest.skip("this device's kernels decided when they were compiled")
    return request.param


@pytest.fixture(autouse=True)
def _served(float64: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the CUDA backend; also when it is emulated, the device counts the steps."""
    emulated.serve_here(monkeypatch, float64)
    if not ON_GPU:
        count_on_every_device(monkeypatch)
    with use_backend("cuda"):
        yield


def on_device(rows: Tensor) -> Tensor:
    return rows.to(DEVICE)


def schedule(m: int, steps: int) -> Iterator[list[int]]:
    """Some first, which may leave others out; then all in some order; then some again."""
    yield from several(m, 2)
    yield torch.randperm(m).tolist()
    yield from several(m, steps - 3)


def found(operator: PseudoMomentumOperator, steps: Iterator[list[int]], n: int, **settings: Any) -> float:
    """The largest error of a run."""
    return max(errors(operator, steps, n, device=DEVICE, **settings))


def bound(float64: bool, dtype: torch.dtype = torch.float32, held: torch.dtype = torch.float32) -> float:
    """Of a relative error: rounding to the state's and the result's dtype, and float32 products."""
    chains = 1e-3 if not float64 and held == torch.float32 else 0
    state = 1e-5 if held == torch.float32 else 1e-9
    return max(chains, state, torch.finfo(dtype).eps)


@pytest.mark.parametrize("n", LENGTHS)
def test_every_number_of_gradients(n: int, float64: bool) -> None:
    for m in (*FEW, 12, 20, 40) if float64 else FEW:
        if n == 1 and m > 1:
            continue  # no two directions
        # of dependent momenta rounding to float32 counts as often as their condition says
        held = torch.float32 if m <= n else torch.float64
        momentum = PseudoMomentumOperator(m, dtype=held)
        assert found(momentum, schedule(m, 6), n, dtype=held) <= bound(float64, held, held), m


@pytest.mark.parametrize("held", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, held: torch.dtype, float64: bool) -> None:
    for m in (3, 12) if float64 else (3,):
        momentum = PseudoMomentumOperator(m, dtype=held)
        assert found(momentum, schedule(m, 6), 1543, dtype=dtype) <= bound(float64, dtype, held)


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.3, 0.2), (0.5, 0.99), (0.99, 0.9999)])
def test_betas(betas: tuple[float, float], float64: bool) -> None:
    momentum = PseudoMomentumOperator(3, *betas)
    assert found(momentum, schedule(3, 12), 1100) <= max(bound(float64), 2e-6 / (1 - betas[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("give", [list, strided, odd_addresses], ids=["list", "strided", "odd addresses"])
def test_layouts(give: Callable[[Tensor], Any], dtype: torch.dtype, float64: bool) -> None:
    for m in (3, 12) if float64 else (3,):
        momentum = PseudoMomentumOperator(m)
        assert found(momentum, schedule(m, 6), 1100, dtype=dtype, give=give) <= bound(float64, dtype)


@pytest.mark.parametrize("count", [5, 300])
def test_per_parameter_lists(count: int, float64: bool) -> None:
    """Also more of them than the parameters of a launch hold."""
    sizes = torch.randint(0, 40, (count - 1,)).tolist()
    sizes.append(1500)
    give = lambda rows: [list(row.split(sizes)) for row in rows]
    momentum = PseudoMomentumOperator(3)
    assert found(momentum, schedule(3, 6), sum(sizes), give=give, take=torch.cat) <= bound(float64)


@pytest.mark.parametrize("name", ["pcgrad", "ppcgrad", "imtlg", "own"])
def test_inner_operators_in_float64(name: str) -> None:
    operator, merge = OPERATORS[name]
    for m in (2, 5):
        momentum = PseudoMomentumOperator(m, 0.8, 0.99, operator)
        assert found(momentum, schedule(m, 8), 517, dtype=torch.float64, merge=merge) <= 1e-9


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_gradient_gives_nan(broken: float, float64: bool) -> None:
    for m in (2, 12) if float64 else (2,):
        momentum = PseudoMomentumOperator(m)
        momentum.calculate_gradient(range(m), on_device(torch.randn(m, 1050)))
        row = torch.randn(1050)
        row[1040] = broken
        assert momentum.calculate_gradient(1, on_device(row)).isnan().all()


@pytest.mark.parametrize("name", METHODS)
def test_zero_gradients_give_finite_updates(name: str) -> None:
    momentum = PseudoMomentumOperator(3)
    rows = conflicting(3, 100)
    rows[1] = 0
    for step in range(6):
        update = momentum.calculate_gradient(step % 3, on_device(rows[step % 3]))
        assert torch.isfinite(update).all()
    assert update.any()


def parameters(row: Tensor, missing: int) -> list[Tensor | None]:
    pieces: list[Tensor | None] = list(on_device(row).split([500, 1100, 3, 37]))
    pieces[missing] = None
    return pieces


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_is_that_of_plain_pytorch(dtype: torch.dtype, float64: bool) -> None:
    """A parameter that a step does not have counts as zeros; momenta that are not updated keep their bits."""
    for m in (3, 12) if float64 else (3,):
        momentum, plain = PseudoMomentumOperator(m, dtype=dtype), PseudoMomentumOperator(m, dtype=dtype)
        for step, indexes in enumerate([list(range(m)), *several(m, 5)]):
            given = [parameters(row, (step + i) % 5 - 1) for i, row in enumerate(conflicting(m, 1640))]
            rows = [given[i] for i in indexes]
            before = [[t.clone() for t in flat(row)] for row in momentum.state_dict()["momenta"]]
            momentum.calculate_gradient(indexes, rows)
            with use_backend("pytorch"):
                plain.calculate_gradient(indexes, rows)
            state, wanted = momentum.state_dict(), plain.state_dict()
            assert state["counts"] == wanted["counts"]
            for name in ("momenta", "second", "fake"):
                for ours, theirs in zip(flat(state[name]), flat(wanted[name]), strict=True):
                    # second: an error of u is 10 times as large in the gradient it stands for
                    few = 400 if name == "second" else 40
                    eps = few * torch.finfo(dtype).eps if float64 or name == "momenta" else 1e-3
                    assert (ours - theirs).norm() <= eps * theirs.norm() + 1e-30, name
            for i in set(range(m)) - set(indexes):
                assert all(map(torch.equal, flat(state["momenta"][i]), before[i]))


def flat(state: Any) -> Iterator[Tensor]:
    for item in state:
        if isinstance(item, list):
            yield from flat(item)
        elif item is not None:
            yield item


@pytest.mark.parametrize("give", [Tensor.clone, list], ids=["tensor", "list"])
@pytest.mark.parametrize("n", [0, 1050])
def test_a_device_that_runs_behind_the_host_counts_for_itself(
    n: int, give: Callable[[Tensor], Any], float64: bool
) -> None:
    for m in (3, 20) if float64 else (3,):
        momentum = PseudoMomentumOperator(m, 0.8, 0.99)
        if n:
            assert found(momentum, schedule(m, 6), n, give=give) <= bound(float64)
        else:
            for indexes in schedule(m, 6):
                momentum.calculate_gradient(indexes, give(torch.empty(len(indexes), 0, device=DEVICE)))
        clock = momentum._momenta.clock
        counts, updates = list(clock.counts), clock.updates
        steps = clock.counted_steps()
        assert steps is not None
        assert steps.tolist() == [*counts, updates, updates]
    operator, merge = OPERATORS["own"]
    momentum = PseudoMomentumOperator(2, gradient_operator=operator)
    assert found(momentum, schedule(2, 8), 100, merge=merge) <= 1e-5


def test_a_step_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module("fastconfig._cuda")
    calls: list[int] = []
    momentum = PseudoMomentumOperator(2)
    momentum.calculate_gradient([0, 1], on_device(torch.randn(2, 3000)))  # makes room for what a step needs
    ours = kernels.momentum
    monkeypatch.setattr(kernels, "momentum", lambda *given: calls.append(ours(*given)) or calls[-1])
    for indexes in cyclic(2, 3):
        momentum.calculate_gradient(indexes, on_device(torch.randn(1, 3000)))
    assert calls == [0, 0, 0]


def test_the_module_checks_what_it_is_told(float64: bool) -> None:
    kernels = importlib.import_module("fastconfig._cuda")
    backends.load("cuda")
    words = array("q", [5])
    with pytest.raises(TypeError, match="momentum takes 18 arguments"):
        kernels.momentum(words, words)
    with pytest.raises(ValueError, match="another number of words"):
        kernels.momentum(words, words, 1, 2, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.9, 0.999)
    most = 64 if float64 else 8
    with pytest.raises(ValueError, match=rf"got {most + 1} gradients, want 1\.\.{most}"):
        kernels.momentum(words, words, 1, most + 1, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.9, 0.999)
    momentum = PseudoMomentumOperator(most + 1, gradient_operator=ConFIGOperator())
    with pytest.raises(BackendUnavailable, match=f"up to {most} gradients"):
        momentum.calculate_gradient(0, on_device(torch.randn(3)))
