"""Loss recorders, also where conflictfree's raise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastconfig.loss_recorder import LatestLossRecorder, LossRecorder, MomentumLossRecorder


@pytest.mark.parametrize("losses", [2.5, 2, torch.tensor(2.5), torch.tensor([2.5]), [2.5], np.float64(2.5)])
@pytest.mark.parametrize("index", [1, [1], (1,), np.int64(1), np.array([1]), torch.tensor(1)])
def test_one_loss_in_any_form(losses: Any, index: Any) -> None:
    recorder = LatestLossRecorder(3)
    recorded = recorder.record_loss(index, losses)
    assert [float(value) for value in recorded] == [0, 2.5 if losses != 2 else 2, 0]


def test_several_losses_in_their_order() -> None:
    recorder = LatestLossRecorder(3)
    recorder.record_loss([2, 0], [1.0, 3.0])
    assert recorder.record_loss(1, 5.0) == [3.0, 5.0, 1.0]
    assert recorder.record_all_losses([7.0, 8.0, 9.0]) == [7.0, 8.0, 9.0]


def test_what_is_returned_is_not_what_is_kept() -> None:
    recorder = LatestLossRecorder(2)
    recorder.record_loss(0, 1.0)[0] = 99.0
    assert recorder.current_losses == [1.0, 0.0]


@pytest.mark.parametrize("betas", [0.5, [0.5, 0.9]])
def test_moving_averages_are_bias_corrected(betas: Any) -> None:
    recorder = MomentumLossRecorder(2, betas)
    values: list[list[float]] = [[], []]
    for step in range(9):
        i = step % 2
        values[i].append(float(torch.rand(())))
        recorded = recorder.record_loss(i, values[i][-1])
        for k in range(2):
            beta = betas if isinstance(betas, float) else betas[k]
            weights = [beta**j for j in reversed(range(len(values[k])))]
            wanted = (
                sum(w * v for w, v in zip(weights, values[k], strict=True)) / sum(weights) if weights else 0
            )
            assert recorded[k] == pytest.approx(wanted)


def test_no_graph_is_kept() -> None:
    loss = torch.ones((), requires_grad=True) * 2
    for recorder in (LatestLossRecorder(1), MomentumLossRecorder(1)):
        assert not recorder.record_loss(0, loss)[0].requires_grad


@pytest.mark.parametrize("recorder", [LatestLossRecorder(2), MomentumLossRecorder(2)])
def test_what_is_refused_records_nothing(recorder: LossRecorder) -> None:
    recorder.record_all_losses([1.0, 2.0])
    before = recorder.state_dict()
    for indexes, losses, message in (
        (2, 1.0, r"losses_indexes: got 2, want 0\.\.1"),
        ([0, 0], [1.0, 1.0], "losses_indexes: got .* want every index once"),
        ([0, 1], [1.0], "losses: got 1, want 2"),
        (0, [1.0, 2.0], "losses: got 2, want 1"),
    ):
        with pytest.raises(ValueError, match=message):
            recorder.record_loss(indexes, losses)
    with pytest.raises(ValueError, match="losses: got 1, want 2"):
        recorder.record_all_losses([1.0])
    with pytest.raises(ValueError, match="state: got 3 for current_losses, want 2"):
        recorder.load_state_dict(before | {"current_losses": [1.0, 2.0, 3.0]})
    assert recorder.state_dict() == before


def test_constructors_name_what_is_wrong() -> None:
    for make, message in (
        (lambda: LatestLossRecorder(0), "num_losses: got 0"),
        (lambda: MomentumLossRecorder(2, [0.9]), "betas: got 1, want one, or 2"),
        (lambda: MomentumLossRecorder(2, 1.0), "betas: got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(NotImplementedError):
        LossRecorder(1).record_loss(0, 1.0)


def test_a_state_goes_on() -> None:
    first, second = MomentumLossRecorder(2, [0.5, 0.9]), MomentumLossRecorder(2, [0.5, 0.9])
    first.record_all_losses([1.0, 2.0])
    second.load_state_dict(first.state_dict())
    assert first.record_loss(0, 4.0) == second.record_loss(0, 4.0)
