"""What conflictfree's momentum objects hold goes on here: from pickles, attributes and ``vars()``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error
from peer import OURS, THEIRS, TheirOnes, conflicting

from fastconfig import accelerate, reference

M, N, STEPS = 3, 12, 9
STATE = ("m", "s", "fake_m", "t", "t_grads", "all_initialized")


def gradients() -> list[torch.Tensor]:
    """One a step: independent rows, so that conflictfree's float64 answers are right too."""
    return [conflicting(M, N, torch.float64)[step % M] for step in range(2 * STEPS)]


def theirs_after(steps: int, grads: list[torch.Tensor]) -> Any:
    inner = THEIRS["grad_operator"].ConFIGOperator(TheirOnes())
    operator = THEIRS["momentum_operator"].PseudoMomentumOperator(M, 0.8, 0.99, inner)
    for step in range(steps):
        operator.calculate_gradient(step % M, grads[step])
    return operator


def unpickled(theirs: Any) -> Any:
    data = pickle.dumps(theirs)
    with accelerate():
        return pickle.loads(data)


def from_attributes(theirs: Any) -> Any:
    ours = OURS["momentum_operator"].PseudoMomentumOperator(M, 0.8, 0.99)
    for name in STATE:
        setattr(ours, name, getattr(theirs, name))
    return ours


def from_updated_vars(theirs: Any) -> Any:
    ours = OURS["momentum_operator"].PseudoMomentumOperator(M, 0.8, 0.99)
    vars(ours).update({name: value for name, value in vars(theirs).items() if name in STATE})
    return ours


def loaded(theirs: Any) -> Any:
    ours = OURS["momentum_operator"].PseudoMomentumOperator(M, 0.8, 0.99)
    ours.load_state_dict(copy.deepcopy(vars(theirs)))
    return ours


@pytest.mark.parametrize("way", [unpickled, from_attributes, from_updated_vars, loaded])
@pytest.mark.parametrize("before", [0, 1, M, STEPS])
def test_goes_on_where_conflictfree_was(way: Callable[[Any], Any], before: int) -> None:
    grads = gradients()
    ours = way(theirs_after(before, grads))
    assert type(ours) is OURS["momentum_operator"].PseudoMomentumOperator
    assert ours.all_initialized == (before >= M)
    exact = reference.Momentum(M, beta_1=0.8, beta_2=0.99)
    for step, grad in enumerate(grads):
        wanted = exact.step([step % M], grad[None])
        if step >= before:
            update = ours.calculate_gradient(step % M, grad)
            assert update.dtype is torch.float64
            if step >= M - 1:
                assert relative_error(update, wanted) <= 1e-8  # what conflictfree's own steps have lost


def test_objects_without_a_state_of_their_own() -> None:
    rows = conflicting(M, N, torch.float64)
    operators = THEIRS["grad_operator"]
    for name in ("ConFIGOperator", "PCGradOperator", "IMTLGOperator"):
        ours = unpickled(getattr(operators, name)())
        assert type(ours) is getattr(OURS["grad_operator"], name)
        wanted = getattr(OURS["grad_operator"], name)().calculate_gradient(rows)
        assert torch.equal(ours.calculate_gradient(rows), wanted)
    recorder = THEIRS["loss_recorder"].LatestLossRecorder(2)
    recorder.record_loss([0, 1], [1.0, 2.0])
    assert unpickled(recorder).record_loss(1, 3.0) == [1.0, 3.0]


def test_a_recorder_comes_along() -> None:
    theirs = theirs_after(M, gradients())
    theirs.loss_recorder = THEIRS["loss_recorder"].LatestLossRecorder(M)
    theirs.loss_recorder.record_loss([0, 2], [1.0, 2.0])
    for ours in (
        unpickled(theirs),
        OURS["momentum_operator"].PseudoMomentumOperator(
            M, 0.8, 0.99, loss_recorder=OURS["loss_recorder"].LatestLossRecorder(M)
        ),
    ):
        if not ours.all_initialized:
            ours.load_state_dict(vars(theirs))
        assert ours.loss_recorder.current_losses == [1.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"t": 0}, r"t = 0, t_grads = \[3, 3, 3\]"),
        ({"all_initialized": False}, "all_initialized = False"),
        ({"s": None}, "a part of m, s and fake_m"),
        ({"t_grads": [3, 3]}, "2 counts, want 3"),
        ({"s": torch.zeros(N + 1)}, "shapes"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], wanted: str) -> None:
    theirs = theirs_after(STEPS, gradients())
    state = vars(theirs) | changes
    ours = OURS["momentum_operator"].PseudoMomentumOperator(M)
    with pytest.raises(ValueError, match=f"state: got .*{wanted}"):
        ours.load_state_dict(state)
    vars(theirs).update(changes)
    with pytest.raises(ValueError, match=f"state: got .*{wanted}"):
        unpickled(theirs)
    for name in STATE:
        setattr(ours, name, state[name])
    with pytest.raises(ValueError, match=f"state: got .*{wanted}"):
        ours.calculate_gradient(0, torch.ones(N))


def test_what_is_missing_is_named() -> None:
    ours = OURS["momentum_operator"].PseudoMomentumOperator(M)
    ours.t_grads = [1, 1, 1]
    with pytest.raises(ValueError, match="state: got conflictfree's without m, s, fake_m, t, want all of"):
        ours.calculate_gradient(0, torch.ones(N))
    with pytest.raises(ValueError, match="state: got conflictfree's without m, s, fake_m, t, want all of"):
        ours.state_dict()
    separate = OURS["momentum_operator"].SeparateMomentumOperator(M)
    with pytest.raises(ValueError, match="state: got that of conflictfree's SeparateMomentumOperator"):
        separate.load_state_dict(vars(theirs_after(M, gradients())))
    recorder = THEIRS["loss_recorder"].MomentumLossRecorder(2, [0.9, 0.8])
    with pytest.raises(ValueError, match="state: got conflictfree's MomentumLossRecorder without betas"):
        unpickled(recorder)


def test_a_users_operator_on_conflictfrees_base_class() -> None:
    ours = OURS["momentum_operator"].MomentumOperator.__new__(OURS["momentum_operator"].MomentumOperator)
    ours.__setstate__(vars(THEIRS["momentum_operator"].MomentumOperator(2)))
    assert ours._preprocess_gradients_losses(1, torch.ones(3))[0] == [1]
