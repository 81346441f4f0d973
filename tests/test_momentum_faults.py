"""What conflictfree 0.1.8 answers wrongly, or not at all, in its momentum operators: here it is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peer import THEIRS
from torch import Tensor

from fastconfig.loss_recorder import MomentumLossRecorder
from fastconfig.momentum_operator import PseudoMomentumOperator, SeparateMomentumOperator
from fastconfig.utils import OrderedSliceSelector, RandomSliceSelector

THEIR_PSEUDO = THEIRS["momentum_operator"].PseudoMomentumOperator


def two_ways(pick: Any) -> tuple[PseudoMomentumOperator, Tensor, Tensor]:
    """An operator of two, and its update from both gradients as ``pick`` gives them."""
    rows = torch.randn(2, 50)
    operator = PseudoMomentumOperator(2)
    return operator, operator.calculate_gradient(*pick(rows)), rows  # type: ignore[return-value]


def test_a_zero_gradient_of_one_loss() -> None:
    rows = torch.stack([torch.randn(50), torch.zeros(50)])
    assert THEIR_PSEUDO(2).calculate_gradient([0, 1], list(rows)).isnan().any()
    assert torch.isfinite(PseudoMomentumOperator(2).calculate_gradient([0, 1], rows)).all()  # type: ignore[arg-type]


def test_float64_from_the_first_step() -> None:
    row = torch.randn(50, dtype=torch.float64)
    assert THEIR_PSEUDO(2).calculate_gradient(0, row).dtype == torch.float32
    operator = PseudoMomentumOperator(2)
    for index in (0, 1):
        update = operator.calculate_gradient(index, row)
        assert isinstance(update, Tensor)
        assert update.dtype == torch.float64


def test_a_stacked_tensor_for_several_indexes() -> None:
    with pytest.raises(RuntimeError, match="must match the size"):
        THEIR_PSEUDO(2).calculate_gradient([0, 1], torch.randn(2, 50))
    _, update, rows = two_ways(lambda rows: ([0, 1], rows))
    again = PseudoMomentumOperator(2).calculate_gradient([1, 0], [rows[1], rows[0]])
    assert torch.equal(update, again)  # type: ignore[arg-type]


@pytest.mark.parametrize("selector", [RandomSliceSelector(), OrderedSliceSelector()])
@pytest.mark.parametrize("n", [1, 2])
def test_indexes_of_the_selectors(selector: Any, n: int) -> None:
    rows = list(torch.randn(3, 50))
    operator = PseudoMomentumOperator(3)
    for _ in range(20):
        indexes, chosen = selector.select(n, rows)
        operator.calculate_gradient(indexes, chosen)
    assert operator.all_initialized


@pytest.mark.parametrize("indexes", [np.array([0, 1]), torch.tensor([0, 1]), (0, 1), range(2), np.arange(2)])
def test_indexes_of_any_kind(indexes: Any) -> None:
    _, update, rows = two_ways(lambda rows: (indexes, rows))
    wanted = PseudoMomentumOperator(2).calculate_gradient([0, 1], rows)
    assert torch.equal(update, wanted)  # type: ignore[arg-type]


def test_the_documented_keyword() -> None:
    with pytest.raises(TypeError):
        THEIR_PSEUDO(num_vector=3)
    assert PseudoMomentumOperator(num_vector=3).num_vectors == 3


def test_separate_moments_run() -> None:
    with pytest.raises(TypeError):
        THEIRS["momentum_operator"].SeparateMomentumOperator(2)
    operator = SeparateMomentumOperator(2)
    assert not operator.calculate_gradient(0, torch.randn(50)).any()  # type: ignore[union-attr]
    update = operator.calculate_gradient(1, torch.randn(50))
    assert isinstance(update, Tensor)
    assert update.shape == (50,)
    assert update.any()


def test_recorded_losses_reach_the_operator() -> None:
    with pytest.raises(TypeError):
        THEIRS["loss_recorder"].MomentumLossRecorder(2).record_loss(0, 1.0)
    with pytest.raises(AttributeError):
        THEIRS["loss_recorder"].MomentumLossRecorder(2, [0.9, 0.9]).record_loss(0, 1.0)
    seen = []

    class Weighs(THEIRS["grad_operator"].GradientOperator):  # type: ignore[misc,name-defined]
        def calculate_gradient(self, grads: Tensor, losses: Any = None) -> Tensor:
            seen.append(losses)
            return grads.sum(0)

    recorder = MomentumLossRecorder(2, [0.5, 0.9])
    operator = PseudoMomentumOperator(2, gradient_operator=Weighs(), loss_recorder=recorder)
    operator.calculate_gradient(0, torch.randn(50), losses=torch.tensor(2.0))
    operator.calculate_gradient(1, torch.randn(50), losses=[4.0])
    assert [float(value) for value in seen[0]] == pytest.approx([2.0, 4.0])
