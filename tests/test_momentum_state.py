"""The momentum operators' state: saved, resumed, copied, and untouched by what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import BACKENDS, conflicting, relative_error
from pairs import cases
from processes import with_torch
from schedules import momentum_error, several
from torch import Tensor

from fastconfig import ConFIGOperator, reference, use_backend
from fastconfig.momentum_operator import (
    LatestLossRecorder,
    MomentumLossRecorder,
    MomentumOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
)

KINDS = [PseudoMomentumOperator, SeparateMomentumOperator]
Step = tuple[list[int], Tensor]


def steps_of(m: int, n: int, count: int, dtype: torch.dtype = torch.float32) -> list[Step]:
    mean = conflicting(m, n)
    return [
        (indexes, (mean[indexes] * (1 + torch.randn(len(indexes), n))).to(dtype))
        for indexes in several(m, count)
    ]


def run(operator: MomentumOperator, steps: list[Step]) -> list[Tensor]:
    return [operator.calculate_gradient(indexes, rows) for indexes, rows in steps]  # type: ignore[misc]


RESUME = """
import os, torch
from fastconfig import use_backend
from fastconfig.momentum_operator import PseudoMomentumOperator, SeparateMomentumOperator
kind, backend, state, steps, out = (os.environ[name] for name in ("KIND", "BACKEND", "STATE", "STEPS", "OUT"))
use_backend(backend)
operator = globals()[kind](int(os.environ["M"]))
operator.load_state_dict(torch.load(state, weights_only=True))
steps = torch.load(steps, weights_only=True)
torch.save([operator.calculate_gradient(indexes, rows) for indexes, rows in steps], out)
"""


RESUMED = [(PseudoMomentumOperator, 9), (PseudoMomentumOperator, 3), (SeparateMomentumOperator, 3)]


@pytest.mark.parametrize(("backend", "resumed"), cases(BACKENDS, RESUMED, together=1), indirect=["backend"])
def test_resumed_in_a_new_process_to_the_same_bits(backend: str, resumed: Any, tmp_path: Path) -> None:
    kind, m = resumed
    steps = steps_of(m, 1003, 200)
    operator = kind(m)
    whole = run(operator, steps)
    operator = kind(m)
    run(operator, steps[:77])
    files = [tmp_path / name for name in ("state.pt", "steps.pt", "updates.pt")]
    torch.save(operator.state_dict(), files[0])
    torch.save(steps[77:], files[1])
    names = zip(("STATE", "STEPS", "OUT"), map(str, files), strict=True)
    done = with_torch(RESUME, KIND=kind.__name__, M=str(m), BACKEND=backend, **dict(names))
    assert done.returncode == 0, done.stderr
    resumed = torch.load(files[2], weights_only=True)
    assert len(resumed) == 123
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole[77:], strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_goes_its_own_way(kind: Any, duplicate: Callable[[Any], Any]) -> None:
    steps = steps_of(3, 301, 30)
    operator = kind(3)
    run(operator, steps[:20])
    twin = duplicate(operator)
    first = run(operator, steps[20:])
    assert all(torch.equal(a, b) for a, b in zip(first, run(twin, steps[20:]), strict=True))


@pytest.mark.parametrize("given", ["vector", "parameters"])
def test_a_loaded_state_is_a_copy(given: str) -> None:
    def gradient() -> Any:
        return torch.randn(6) if given == "vector" else [torch.randn(2, 3), None]

    operator, other = PseudoMomentumOperator(2), PseudoMomentumOperator(2)
    for k in range(5):
        operator.calculate_gradient(k % 2, gradient())
    state = operator.state_dict()
    before = copy.deepcopy(state)
    other.load_state_dict(state)
    other.calculate_gradient(0, gradient())
    assert str(before) == str(operator.state_dict())


@pytest.mark.parametrize("m", [3, 9])
def test_between_dtypes(m: int) -> None:
    steps = steps_of(m, 501, 80)
    wide = PseudoMomentumOperator(m, dtype=torch.float64)
    run(wide, steps[:40])
    kept, cast = PseudoMomentumOperator(m), PseudoMomentumOperator(m, dtype=torch.float32)
    for operator in (kept, cast):
        operator.load_state_dict(wide.state_dict())
    exact = run(wide, steps[40:])
    assert all(torch.equal(a, b) for a, b in zip(run(kept, steps[40:]), exact, strict=True))
    for a, b in zip(run(cast, steps[40:]), exact, strict=True):
        assert relative_error(a, b.double()) <= 1e-5
    assert cast.state_dict()["second"][0].dtype == torch.float32


def test_losses_are_saved_too() -> None:
    def fresh() -> PseudoMomentumOperator:
        return PseudoMomentumOperator(2, loss_recorder=MomentumLossRecorder(2))

    operator, twin = fresh(), fresh()
    for k in range(5):
        operator.calculate_gradient(k % 2, torch.randn(5), losses=float(k))
    twin.load_state_dict(operator.state_dict())
    assert twin.loss_recorder is not None
    assert operator.loss_recorder is not None
    assert twin.loss_recorder.state_dict() == operator.loss_recorder.state_dict()


def test_a_state_before_the_first_gradient() -> None:
    operator, other = PseudoMomentumOperator(2), PseudoMomentumOperator(2)
    other.load_state_dict(operator.state_dict())
    rows = torch.randn(2, 9)
    assert torch.equal(other.calculate_gradient([0, 1], rows), operator.calculate_gradient([0, 1], rows))


def started(kind: Any = PseudoMomentumOperator, **keywords: Any) -> Any:
    operator = kind(3, **keywords)
    run(operator, [([0, 1, 2], torch.randn(3, 10)), ([1], torch.randn(1, 10))])
    return operator


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "index above": (((3,), torch.randn(1, 10)), ValueError, r"indexes: got 3, want 0\.\.2"),
    "index below": ((-1, torch.randn(10)), ValueError, r"indexes: got -1, want 0\.\.2"),
    "index twice": (
        ([1, 1], torch.randn(2, 10)),
        ValueError,
        r"indexes: got \[1, 1\], want every index once",
    ),
    "no index": (([], torch.randn(1, 10)), ValueError, "indexes: got no index"),
    "no integer": ((0.5, torch.randn(10)), TypeError, "indexes: got 0.5, want an integer"),
    "length": ((0, torch.randn(11)), ValueError, r"grads: got shape \(11,\), want \(10,\), the state's"),
    "device": ((0, torch.randn(10, device="meta")), ValueError, "grads: got device meta, want cpu"),
    "count": (([0, 1], torch.randn(3, 10)), ValueError, "grads: got 3 gradients, want 2"),
    "batch": (([0, 1], torch.randn(4, 2, 10)), ValueError, r"grads: got shape \(4, 2, 10\), want \(N,\) or"),
    "form": ((0, [torch.randn(5), torch.randn(5)]), ValueError, "grads: got sequences of per-parameter"),
    "losses": (
        (0, torch.randn(10), 0.5),
        ValueError,
        "losses: got losses, but the operator has no loss_recorder",
    ),
    "dtype": ((0, torch.ones(10, dtype=torch.int32)), TypeError, "grads.*int32"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(case: str, kind: Any) -> None:
    arguments, error, message = REFUSED[case]
    operator = started(kind)
    before = copy.deepcopy(operator.state_dict())
    with pytest.raises(error, match=message):
        operator.calculate_gradient(*arguments)
    assert str(before) == str(operator.state_dict())


def test_shapes_of_parameters_are_the_states() -> None:
    operator = PseudoMomentumOperator(2)
    operator.calculate_gradient([0, 1], [[torch.randn(2, 3), torch.randn(4)] for _ in range(2)])
    with pytest.raises(ValueError, match=r"grads: got shape \(3, 2\) for parameter 0, want \(2, 3\)"):
        operator.calculate_gradient(0, [torch.randn(3, 2), torch.randn(4)])
    with pytest.raises(ValueError, match="grads: got 3 parameters, want 2"):
        operator.calculate_gradient(0, [torch.randn(2, 3), torch.randn(4), None])


def test_losses_that_do_not_fit_change_nothing() -> None:
    operator = started(loss_recorder=LatestLossRecorder(3))
    before = copy.deepcopy(operator.state_dict())
    with pytest.raises(ValueError, match="losses: got 2, want 1"):
        operator.calculate_gradient(0, torch.randn(10), losses=[1.0, 2.0])
    with pytest.raises(ValueError, match="grads: got shape"):
        operator.calculate_gradient(0, torch.randn(11), losses=[7.0])
    assert str(before) == str(operator.state_dict())


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


STATES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "length": (lambda s: started_state(11), r"state: got shapes \[\(11,\)\], want \[\(10,\)\]"),
    "number": (lambda s: s | {"counts": [1, 2]}, "state: got 2 counts, want 3"),
    "momenta": (lambda s: s | {"momenta": s["momenta"][:2]}, "state: got 2 momenta, want 3"),
    "inside": (lambda s: s | {"fake": [torch.zeros(9)]}, r"state: got shapes \[\(9,\)\] for fake"),
    "missing": (_without("second"), "state: got no second"),
    "form": (lambda s: s | {"form": "parameters"}, "state: got form 'parameters', want 'vector'"),
    "gram": (lambda s: s | {"gram": torch.zeros(2, 2)}, r"state: got \(2, 2\) torch.float32 for gram, want"),
    "recorder": (lambda s: s | {"loss_recorder": {}}, "state: got one for loss_recorder, want none"),
}


def started_state(n: int) -> dict[str, Any]:
    operator = PseudoMomentumOperator(3)
    operator.calculate_gradient([0, 1, 2], torch.randn(3, n))
    return operator.state_dict()


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_does_not_fit_changes_nothing(case: str) -> None:
    change, message = STATES[case]
    operator = started()
    before = copy.deepcopy(operator.state_dict())
    with pytest.raises(ValueError, match=message):
        operator.load_state_dict(change(dict(operator.state_dict())))
    assert str(before) == str(operator.state_dict())


@pytest.mark.parametrize("kind", [*KINDS, MomentumOperator])
def test_arguments_of_the_constructors(kind: Any) -> None:
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"num_vectors": 0}, ValueError, "num_vectors: got 0"),
        ({}, TypeError, "num_vectors: got none"),
        ({"num_vectors": 2, "num_vector": 2}, TypeError, "num_vectors: got num_vectors and num_vector"),
        ({"num_vectors": 2, "beta_1": 1.0}, ValueError, "beta_1: got 1.0"),
        ({"num_vectors": 2, "beta_2": -0.1}, ValueError, "beta_2: got -0.1"),
        ({"num_vectors": 2, "dtype": torch.bfloat16}, TypeError, "dtype: got torch.bfloat16"),
        (
            {"num_vectors": 2, "loss_recorder": LatestLossRecorder(3)},
            ValueError,
            "loss_recorder: got a recorder of 3 losses",
        ),
    ]
    for keywords, error, message in refused:
        with pytest.raises(error, match=message):
            kind(**keywords)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_update_gradient_writes_either_form(kind: Any) -> None:
    net = network()
    flat, listed = kind(2), kind(2)
    for k in range(6):
        net.zero_grad()
        net(torch.randn(5, 4)).square().sum().backward()
        pieces = [par.grad.clone() for par in net.parameters() if par.grad is not None]
        flat.update_gradient(net, k % 2, torch.cat([piece.reshape(-1) for piece in pieces]))
        written = [par.grad.clone() for par in net.parameters() if par.grad is not None]
        listed.update_gradient(net, k % 2, pieces)
        for par, value in zip(net.parameters(), written, strict=True):
            assert par.grad is not None
            # the sums of products run in another order
            torch.testing.assert_close(par.grad, value, rtol=1e-4, atol=1e-4)


def test_a_user_defined_momentum_operator() -> None:
    class Mean(MomentumOperator):
        def calculate_gradient(self, indexes: Any, grads: Any, losses: Any = None) -> Tensor:
            chosen, rows, seen = self._preprocess_gradients_losses(indexes, grads, losses)
            assert chosen == [1]
            assert seen == [0.0, 3.0]
            return self.gradient_operator.calculate_gradient(rows)  # type: ignore[return-value]

    row = torch.randn(7)
    update = Mean(2, loss_recorder=LatestLossRecorder(2)).calculate_gradient(1, row, 3.0)
    torch.testing.assert_close(update, row)


def test_the_base_class_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="calculate_gradient"):
        MomentumOperator(2).calculate_gradient(0, torch.randn(3))


@pytest.mark.parametrize("m", [3, 9])
def test_backends_may_change_between_steps(m: int) -> None:
    steps = steps_of(m, 777, 60)
    operator, exact = PseudoMomentumOperator(m), reference.Momentum(m)
    for k, (indexes, rows) in enumerate(steps):
        with use_backend("numba" if k % 2 else "pytorch"):
            update = operator.calculate_gradient(indexes, rows)
        wanted = exact.step(indexes, rows)
        if operator.all_initialized:
            assert momentum_error(update, wanted, exact) <= 1e-5


def test_a_subclass_of_ours_sees_the_corrected_momenta() -> None:
    class First(ConFIGOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            assert isinstance(grads, Tensor)
            return grads[0].clone()

    operator = PseudoMomentumOperator(2, gradient_operator=First())
    rows = torch.randn(2, 50)
    update = operator.calculate_gradient([0, 1], rows)
    torch.testing.assert_close(update, rows[0] / (rows[0].abs() + 1e-8))
