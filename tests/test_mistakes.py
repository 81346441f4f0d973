"""Arguments that people mistake for each other: an error that names the argument and shows the right form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fastconfig
from fastconfig import (
    ConFIG_update,
    ConFIG_update_double,
    ConFIGOperator,
    EqualWeight,
    IMTLGOperator,
    LatestLossRecorder,
    MomentumLossRecorder,
    PCGradOperator,
    PPCGradOperator,
    ProjectionLength,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    TrackMinimum,
    TrackSpecific,
    ops,
)
from fastconfig.pcgrad import PCGrad

M, N = 3, 7
G = torch.eye(M, dtype=torch.float64)
LINEAR = torch.nn.Linear(2, 2)
ADAM = torch.optim.Adam(LINEAR.parameters())


def rows(m: int = M) -> torch.Tensor:
    return torch.randn(m, N)


def merged(**given: Any) -> Any:
    return ConFIG_update(rows(), **given)


def ordered(order: Any) -> Any:
    return PCGradOperator().calculate_gradient(rows(), order=order)


def step(indexes: Any, grads: Any, losses: Any = None, recorder: Any = None) -> Any:
    return PseudoMomentumOperator(2, loss_recorder=recorder).calculate_gradient(indexes, grads, losses)


def solved(method: str = "config", **given: Any) -> Any:
    return ops.coefficients(G, method, **given)


WANTED = {
    "weight_model: got the class EqualWeight, want an object of it: EqualWeight()": (
        lambda: merged(weight_model=EqualWeight),
        lambda: ConFIGOperator(EqualWeight),
    ),
    "weight_model: got a ProjectionLength, want it as the other argument: length_model=ProjectionLength()": (
        lambda: merged(weight_model=ProjectionLength()),
        lambda: ConFIGOperator(ProjectionLength()),
    ),
    "weight_model: got a TrackSpecific, want it as the other": (lambda: ConFIGOperator(TrackSpecific(1)),),
    "weight_model: got 'equal', want an object with get_weights, such as EqualWeight()": (
        lambda: merged(weight_model="equal"),
    ),
    "weight_model: got None, want": (lambda: ConFIGOperator(None),),
    "length_model: got the class TrackMinimum, want an object of it: TrackMinimum()": (
        lambda: merged(length_model=TrackMinimum),
        lambda: ConFIG_update_double(rows(2), None, EqualWeight(), TrackMinimum),
    ),
    "length_model: got the class TrackSpecific, want an object of it: TrackSpecific(track_id)": (
        lambda: ConFIGOperator(length_model=TrackSpecific),
    ),
    "length_model: got a EqualWeight, want it as the other argument: weight_model=EqualWeight()": (
        lambda: ConFIGOperator(EqualWeight(), EqualWeight()),
    ),
    "length_model: got 'projection', want an object with rescale_length": (
        lambda: merged(length_model="projection"),
    ),
    "use_least_square: got a list, want True or False": (
        lambda: ConFIG_update(rows(), EqualWeight(), ProjectionLength(), [1.0, 2.0, 3.0]),
    ),
    "use_least_square: got 'no', want": (lambda: ConFIGOperator(use_least_square="no"),),
    "allow_simplified_model: got None, want": (lambda: ConFIGOperator(allow_simplified_model=None),),
    "losses: got a dict, want a sequence of 3 losses: list(its.values())": (
        lambda: merged(losses={"a": 1, "b": 2, "c": 3}),
    ),
    "losses: got a set, want a sequence of 3": (lambda: merged(losses={1, 2, 3}),),
    "losses: got 'abc', want a sequence of 3": (lambda: PPCGradOperator().calculate_gradient(rows(), "abc"),),
    "rcond: got 'auto', want None or a number from 0 to 1 (1 excluded)": (
        lambda: merged(rcond="auto"),
        lambda: ConFIGOperator(rcond="auto"),
        lambda: IMTLGOperator(rcond="auto"),
        lambda: solved(rcond="auto"),
    ),
    "rcond: got True, want": (lambda: merged(rcond=True), lambda: ConFIGOperator(rcond=True)),
    "rcond: got a list, want": (lambda: merged(rcond=[0.1]),),
    "rcond: got 1.5, want": (lambda: merged(rcond=1.5), lambda: ConFIGOperator(rcond=1.5)),
    "process_group: got 'world', want None or a torch.distributed.ProcessGroup": (
        lambda: merged(process_group="world"),
        lambda: ConFIGOperator(process_group="world"),
        lambda: PCGradOperator(process_group="world"),
        lambda: PseudoMomentumOperator(2, process_group="world"),
        lambda: ops.gram(rows(), process_group="world"),
    ),
    "reduction: got None, want one of 'sum', 'mean'": (lambda: PCGradOperator(reduction=None),),
    "shuffle: got 'no', want True or False": (lambda: PCGradOperator(shuffle="no"),),
    "generator: got 3, want None or a torch.Generator on the CPU": (
        lambda: PCGradOperator(shuffle=True, generator=3),
    ),
    "generator: got the class Generator, want": (lambda: PCGradOperator(generator=torch.Generator),),
    "order: got dtype torch.float32, want (m, m) or (B, m, m) integers": (
        lambda: ordered(torch.zeros(M, M)),
        lambda: ordered([[0.0, 1.0, 2.0]] * M),
        lambda: solved("pcgrad", order=[[0.0, 1.0, 2.0]] * M),
    ),
    "order: got 'abc', want": (lambda: ordered("abc"),),
    "order: got dtype torch.bool, want": (lambda: ordered([[True] * M] * M),),
    "order: got shape (2, 2), want (3, 3)": (lambda: ordered([[0, 1], [1, 0]]),),
    "order: got [[0, 1, 1], [0, 1, 1], [0, 1, 1]], want permutations of 0..2": (
        lambda: ordered([[0, 1, 1]] * M),
    ),
    "order: got a list, want": (lambda: ordered([[0, 1], [1]]),),
    "weights: got 'abc', want (m,) or (B, m) real numbers": (lambda: solved(weights="abc"),),
    "track_id: got 1.5, want an integer": (
        lambda: TrackSpecific(1.5),
        lambda: solved(length="specific", track_id=1.5),
    ),
    "track_id: got True, want an integer": (lambda: TrackSpecific(True),),
    "dtype: got 'float32', want one of": (lambda: solved(dtype="float32"),),
    "c: got None, want (3,) real numbers": (lambda: ops.combine(rows(), None),),
    "c: got dtype torch.complex64, want (3,) real numbers": (
        lambda: ops.combine(rows(), torch.ones(M, dtype=torch.complex64)),
    ),
    "num_vectors: got 2.0, want an integer": (
        lambda: PseudoMomentumOperator(2.0),
        lambda: SeparateMomentumOperator(2.0),
    ),
    "num_vectors: got a Linear, want an integer": (lambda: PseudoMomentumOperator(LINEAR),),
    "beta_1: got '0.9', want a number from 0 to 1": (lambda: PseudoMomentumOperator(2, "0.9"),),
    "beta_1: got a ConFIGOperator, want": (lambda: PseudoMomentumOperator(2, ConFIGOperator()),),
    "beta_2: got None, want": (lambda: PseudoMomentumOperator(2, beta_2=None),),
    "gradient_operator: got the class PCGradOperator, want an object of it: PCGradOperator()": (
        lambda: PseudoMomentumOperator(2, gradient_operator=PCGradOperator),
    ),
    "gradient_operator: got 'pcgrad', want an operator, such as PCGradOperator()": (
        lambda: PseudoMomentumOperator(2, gradient_operator="pcgrad"),
    ),
    "gradient_operator: got a PCGrad, want an operator, such as PCGradOperator()": (
        lambda: PseudoMomentumOperator(2, gradient_operator=PCGrad()),
    ),
    "gradient_operator: got the function ConFIG_update, want an operator, such as ConFIGOperator()": (
        lambda: PseudoMomentumOperator(2, gradient_operator=ConFIG_update),
    ),
    "gradient_operator: got a PseudoMomentumOperator, want an operator without momentum": (
        lambda: PseudoMomentumOperator(2, gradient_operator=PseudoMomentumOperator(2)),
    ),
    "loss_recorder: got the class LatestLossRecorder, want an object of it: LatestLossRecorder(num_losses)": (
        lambda: PseudoMomentumOperator(2, loss_recorder=LatestLossRecorder),
    ),
    "loss_recorder: got True, want None or a recorder": (
        lambda: PseudoMomentumOperator(2, loss_recorder=True),
    ),
    "dtype: got 'float32', want torch.float32": (lambda: PseudoMomentumOperator(2, dtype="float32"),),
    "indexes: got True, want an integer or a sequence": (lambda: step(True, rows(1)),),
    "indexes: got tensor([ True, False]), want": (lambda: step(torch.tensor([True, False]), rows(2)),),
    "indexes: got [True, False], want": (lambda: step([True, False], rows(2)),),
    "indexes: got {0, 1}, want": (lambda: step({0, 1}, rows(2)),),
    "losses: got a dict, want a number, a tensor of one element, or a sequence of them: list(its.values())": (
        lambda: step([0, 1], rows(2), {"a": 1.0, "b": 2.0}, LatestLossRecorder(2)),
        lambda: LatestLossRecorder(2).record_loss([0, 1], {"a": 1.0, "b": 2.0}),
    ),
    "losses[1]: got 'b', want a number or a tensor of one element": (
        lambda: LatestLossRecorder(2).record_loss([0, 1], [1.0, "b"]),
    ),
    "losses[0]: got shape (2,), want one element": (
        lambda: LatestLossRecorder(2).record_loss([0], [torch.ones(2)]),
    ),
    "losses: got a generator without length, want a sequence of 2": (
        lambda: LatestLossRecorder(2).record_all_losses(x for x in (1, 2)),
    ),
    "num_losses: got '2', want an integer": (lambda: LatestLossRecorder("2"),),
    "betas: got 'ab', want a number, or one a loss": (lambda: MomentumLossRecorder(2, "ab"),),
    "betas: got None, want a number from 0 to 1": (lambda: MomentumLossRecorder(2, None),),
    "state: got a NoneType, want what state_dict() gave": (
        lambda: PseudoMomentumOperator(2).load_state_dict(None),
    ),
    "like[0]: got a Adam, want a tensor": (lambda: PseudoMomentumOperator(2).allocate(ADAM),),
    "device: got 'gpu', want 'cpu', 'cuda', 'cuda:0', ... or a torch.device": (
        lambda: fastconfig.explain("gpu"),
    ),
    "device: got None, want": (lambda: fastconfig.explain(None),),
}
CALLS = [(wanted, call) for wanted, calls in WANTED.items() for call in calls]


@pytest.mark.parametrize(("wanted", "call"), CALLS)
def test_the_error_names_the_argument(wanted: str, call: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value).startswith(wanted)


class Weights:
    """A weight model without a base class."""

    def get_weights(self, gradients: Any, losses: Any = None) -> Any:
        return [1.0] * len(gradients)


class Length:
    """A length model without a base class."""

    def rescale_length(self, target_vector: Any, gradients: Any = None, losses: Any = None) -> Any:
        return None if losses == "none" else target_vector


def test_what_has_the_methods_is_a_model() -> None:
    given = rows()
    exact = ConFIG_update(given)
    assert torch.equal(ConFIG_update(given, Weights()), ConFIGOperator(Weights()).calculate_gradient(given))
    assert torch.allclose(ConFIG_update(given, Weights()), exact)
    along = ConFIGOperator(Weights(), Length()).calculate_gradient(given)
    assert torch.allclose(along / along.norm(), exact / exact.norm(), atol=1e-5)


def test_what_a_model_gives_is_named() -> None:
    class NoWeights(Weights):
        def get_weights(self, gradients: Any, losses: Any = None) -> Any:
            return None

    class NoLength(Length):
        def rescale_length(self, target_vector: Any, gradients: Any = None, losses: Any = None) -> Any:
            return None

    with pytest.raises(TypeError, match=r"weights: got None, want \(3,\) numbers from NoWeights.get_weights"):
        merged(weight_model=NoWeights())
    with pytest.raises(TypeError, match=r"length_model: got None from NoLength.rescale_length"):
        merged(length_model=NoLength())


def test_numbers_of_numpy_and_nested_lists_are_taken() -> None:
    given, order = rows(), [[1, 2, 0], [0, 2, 1], [1, 0, 2]]
    wanted = PCGradOperator().calculate_gradient(given, order=torch.tensor(order))
    for form in (order, tuple(map(tuple, order)), np.array(order)):
        assert torch.equal(PCGradOperator().calculate_gradient(given, order=form), wanted)
        assert torch.equal(solved("pcgrad", order=form), solved("pcgrad", order=torch.tensor(order)))
    assert torch.equal(solved(weights=[1, 2, 3]), solved(weights=torch.tensor([1.0, 2.0, 3.0])))
    assert torch.equal(ops.combine(given, [1, 2, 3]), ops.combine(given, torch.tensor([1.0, 2.0, 3.0])))
    assert TrackSpecific(np.int64(1)).track_id == 1
    assert torch.equal(merged(rcond=np.float32(0.1)).isfinite(), torch.ones(N, dtype=torch.bool))
    assert MomentumLossRecorder(np.int64(2), np.array([0.5, 0.25])).betas == [0.5, 0.25]
    assert PCGradOperator(shuffle=np.bool_(True)).calculate_gradient(given).shape == (N,)


@pytest.mark.parametrize(
    ("owner", "method", "arguments"),
    [
        (fastconfig.GradientOperator(), "calculate_gradient", (rows(),)),
        (fastconfig.MomentumOperator(2), "calculate_gradient", (0, rows())),
        (fastconfig.LossRecorder(2), "record_loss", (0, 1.0)),
        (fastconfig.WeightModel(), "get_weights", ()),
        (fastconfig.LengthModel(), "get_length", ()),
        (type("Mine", (fastconfig.WeightModel,), {})(), "get_weights", ()),
    ],
)
def test_what_a_subclass_must_have_is_named(owner: Any, method: str, arguments: tuple[Any, ...]) -> None:
    name = type(owner).__name__
    with pytest.raises(NotImplementedError, match=rf"^{name}\.{method} must be implemented by the subclass"):
        getattr(owner, method)(*arguments)
