"""``EveryOperator`` in training: m passes in every k-th step, one in the others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error, rows_of
from schedules import Own
from test_features import Counted, Tasks, feature_rows, inputs, through, written
from torch import Tensor

from fastconfig import (
    ConFIGOperator,
    EveryOperator,
    GradVacOperator,
    IMTLGOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    TrackMinimum,
    WeightModel,
    backward,
    mtl_backward,
    reference,
    weights,
)

pytestmark = pytest.mark.usefixtures("backend")


def by_backward(net: Tasks, losses: list[Tensor], operator: EveryOperator) -> None:
    backward(losses, net, operator)


def by_weights(net: Tasks, losses: list[Tensor], operator: EveryOperator) -> None:
    net.zero_grad()
    (weights(losses, net, operator) * torch.stack(losses)).sum().backward()


def by_merging(net: Tasks, losses: list[Tensor], operator: EveryOperator) -> None:
    """Whose gradients are there already."""
    parameters = list(net.parameters())
    rows = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True) for v in losses]
    operator.update_gradient(net, rows)


MAKERS: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor]]] = {
    "config": (ConFIGOperator, reference.config),
    "a length": (
        lambda: ConFIGOperator(length_model=TrackMinimum()),
        lambda rows: reference.config(rows, length="minimum"),
    ),
    "pcgrad": (PCGradOperator, reference.pcgrad),
    "imtlg": (IMTLGOperator, reference.imtlg),
}


@pytest.mark.parametrize("way", [by_backward, by_weights, by_merging])
@pytest.mark.parametrize("name", MAKERS)
def test_coefficients_are_kept(name: str, way: Callable[..., None]) -> None:
    make, oracle = MAKERS[name]
    net, operator = Tasks(), EveryOperator(make(), 3)
    parameters = list(net.parameters())
    for step in range(5):
        Counted.passes = 0
        losses = net.losses(net.trunk(inputs()))
        rows = rows_of(losses, parameters)
        Counted.passes = 0
        if step % 3 == 0:
            update = oracle(rows)
            c = torch.linalg.lstsq(rows.T, update).solution
        way(net, losses, operator)
        if way is not by_merging:
            full = 3 if way is by_backward else 4  # and the caller's own
            assert Counted.passes == (1 if step % 3 else full)
        assert relative_error(written(parameters), c @ rows) <= 1e-9


@pytest.mark.parametrize("gram", ["parameters", "features"])
def test_a_trunk_is_gone_through_once(gram: Any) -> None:
    net, operator = Tasks(), EveryOperator(ConFIGOperator(), 2)
    for step in range(4):
        h = net.trunk(inputs())
        losses = net.losses(h)
        features = feature_rows(losses, h)
        rows = rows_of(losses, net.shared())
        if step % 2 == 0:
            given = rows if gram == "parameters" else features
            c = torch.linalg.lstsq(given.T, reference.config(given)).solution
        exact, own = through(net, h, c @ features), rows_of(losses, list(net.heads.parameters())).sum(0)
        Counted.passes = 0
        mtl_backward(losses, h, operator=operator, gram=gram)
        assert Counted.passes == (3 if gram == "parameters" and step % 2 == 0 else 1)
        assert relative_error(written(net.shared()), exact) <= 1e-9
        assert relative_error(written(list(net.heads.parameters())), own) <= 1e-12


def test_accumulation_missing_gradients_and_graphs() -> None:
    net, operator = Tasks(), EveryOperator(ConFIGOperator(), 9)
    backward(net.losses(net.trunk(inputs())), net, operator)
    x = inputs()
    losses = net.losses(net.trunk(x))
    backward(losses, net, operator, retain_graph=True)
    first = written(list(net.parameters()))
    backward(losses, net, operator, accumulate=True)
    torch.testing.assert_close(written(list(net.parameters())), 2 * first)
    with pytest.raises(ValueError, match="losses: its graph is freed already, want retain_graph=True"):
        backward(losses, net, operator)
    alone = torch.nn.Parameter(torch.ones(2))
    backward(net.losses(net.trunk(x)), [*net.parameters(), alone], operator)
    assert alone.grad is None
    backward(net.losses(net.trunk(x)), [*net.parameters(), alone], operator, none_grad="zero")
    assert alone.grad is not None
    with pytest.raises(ValueError, match="indexes: got indexes for a EveryOperator"):
        backward(losses, net, operator, indexes=[0, 1, 2])


def passes_of(net: Tasks, operator: EveryOperator, m: int = 3, factor: float = 1.0) -> int:
    losses = net.losses(net.trunk(inputs()))[:m]
    losses[0] = losses[0] * factor
    Counted.passes = 0
    backward(losses, net, operator)
    return Counted.passes


def test_another_m_and_not_a_number_renew_at_once() -> None:
    net, operator = Tasks(), EveryOperator(ConFIGOperator(), 4)
    assert [passes_of(net, operator, m) for m in (3, 3, 2, 2, 3)] == [3, 1, 2, 1, 3]
    operator.reset()
    assert [passes_of(net, operator, 3, f) for f in (torch.nan, torch.nan, 1, 1)] == [3, 3, 3, 1]
    assert torch.isfinite(written(list(net.parameters()))).all()


def test_state_copies_and_pickles() -> None:
    net, operator = Tasks(), EveryOperator(GradVacOperator(shuffle=False), 3)
    assert [passes_of(net, operator) for _ in range(5)] == [3, 1, 1, 3, 1]
    other = EveryOperator(GradVacOperator(shuffle=False), 3)
    other.load_state_dict(operator.state_dict())
    twins = [copy.copy(operator), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator)), other]
    before = operator.state_dict()
    assert "operator.targets" in before
    for twin in twins:
        assert [passes_of(net, twin) for _ in range(3)] == [1, 3, 1]
        assert not torch.equal(twin.state_dict()["operator.targets"], before["operator.targets"])
    assert all(torch.equal(before[name], value) for name, value in operator.state_dict().items())


def test_a_momentum_operator_keeps_them_too() -> None:
    net = Tasks()
    operator = PseudoMomentumOperator(3, gradient_operator=EveryOperator(ConFIGOperator(), 2))
    for _ in range(3):
        backward(net.losses(net.trunk(inputs())), net, operator)
        assert torch.isfinite(written(list(net.parameters()))).all()


class Chosen(WeightModel):
    def get_weights(self, gradients: Any = None, losses: Any = None) -> Any:
        return [1.0, 2.0, 3.0]


def test_what_is_refused() -> None:
    for operator in (Own(), PseudoMomentumOperator(3)):
        with pytest.raises(TypeError):
            EveryOperator(operator, 2)
    with pytest.raises(TypeError, match="operator: got a ConFIGOperator that must see the gradients"):
        passes_of(Tasks(), EveryOperator(ConFIGOperator(Chosen()), 2))
    with pytest.raises(ValueError, match="calls: got 0, want at least 1"):
        EveryOperator(ConFIGOperator(), 0)
