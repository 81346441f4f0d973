"""Every argument with everything that should not be there: an error with a name, or an answer; all pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd import JUNK, NAMED, outcome
from torch import Tensor, nn

from fastconfig import (
    ConFIG_update,
    ConFIG_update_double,
    ConFIGOperator,
    GramOperator,
    IMTLGOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    Rule,
    SeparateMomentumOperator,
    TrackSpecific,
    backward,
    distributed,
    mtl_backward,
    ops,
    utils,
    weights,
)
from fastconfig.pcgrad import PCGrad, PPCGrad

pytestmark = pytest.mark.filterwarnings("ignore")  # torch tells of what it supports in part only
Make = Callable[[], Any]


class Weighted(Rule):
    """Each gradient times its loss."""

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        return norms if losses is None else norms * losses


def network() -> nn.Module:
    net = nn.Linear(3, 2)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    return net


def loss_of(net: nn.Module) -> Tensor:
    return sum([p.square().sum() for p in net.parameters()], torch.zeros(()))


def rows(batch: int | None = None) -> Tensor:
    return torch.eye(3) if batch is None else torch.eye(3).expand(batch, 3, 3).clone()


def among_losses(call: Callable[[list[Any], nn.Module], Any]) -> Callable[[Make], Any]:
    """One of three losses is junk."""

    def run(make: Make) -> Any:
        net = network()
        return call([loss_of(net), make(), loss_of(net)], net)

    return run


#: errors of a user's own function, and one of conflictfree's own name: no parameter has a gradient
ALLOWED = {("rule", "module"): (RuntimeError,), ("network", "module"): (RuntimeError,)}
#: calls with junk in the place of an argument, or in it
PLACES: dict[str, Callable[[Make], Any]] = {
    "grads": lambda make: ConFIG_update(make()),
    "grads of one": lambda make: ConFIG_update([make()]),
    "grads of two": lambda make: ConFIG_update([make(), make()]),
    "a gradient": lambda make: ConFIG_update([torch.ones(3), make(), torch.ones(3)]),
    "a piece": lambda make: PCGradOperator().calculate_gradient([[torch.ones(3), make()], [None, make()]]),
    "grad_1": lambda make: ConFIG_update_double(make(), torch.ones(3)),
    "grad_2": lambda make: ConFIG_update_double(torch.ones(3), make()),
    "losses": lambda make: ConFIG_update(rows(), losses=make()),
    "losses of a rule": lambda make: GramOperator(Weighted()).calculate_gradient(rows(), make()),
    "a loss of a rule": lambda make: GramOperator(Weighted()).calculate_gradient(rows(), [1, make(), 2]),
    "a loss, batched": lambda make: GramOperator(Weighted()).calculate_gradient(rows(2), [1, make(), 2]),
    "rule": lambda make: GramOperator(make()).calculate_gradient(rows()),
    "what a rule returns": lambda make: GramOperator(lambda gram: make()).calculate_gradient(rows()),
    "rcond": lambda make: ConFIG_update(rows(), rcond=make()),
    "weight_model": lambda make: ConFIG_update(rows(), weight_model=make()),
    "length_model": lambda make: ConFIGOperator(length_model=make()).calculate_gradient(rows()),
    "track_id": lambda make: ConFIG_update(rows(), length_model=TrackSpecific(make())),
    "process_group": lambda make: ConFIG_update(rows(), process_group=make()),
    "order": lambda make: PCGradOperator().calculate_gradient(rows(), order=make()),
    "generator": lambda make: PCGradOperator(generator=make()).calculate_gradient(rows()),
    "momentum's indexes": lambda make: PseudoMomentumOperator(3).calculate_gradient(make(), rows()),
    "momentum's index": lambda make: SeparateMomentumOperator(3).calculate_gradient([0, make(), 2], rows()),
    "momentum's grads": lambda make: PseudoMomentumOperator(3).calculate_gradient([0, 1, 2], make()),
    "momentum's losses": lambda make: PseudoMomentumOperator(3).calculate_gradient([0, 1, 2], rows(), make()),
    "momentum's memory": lambda make: PseudoMomentumOperator(3).allocate(make()),
    "momentum's number": lambda make: SeparateMomentumOperator(make()),
    "momentum's state": lambda make: PseudoMomentumOperator(3).load_state_dict(make()),
    "masks": lambda make: PCGrad().project_conflicting(rows(), make()),
    "a mask": lambda make: PPCGrad().project_conflicting(rows(), [torch.ones(3), make(), torch.ones(3)]),
    "projected": lambda make: PCGrad().project_conflicting(make()),
    "gram": lambda make: ops.gram(make()),
    "combined": lambda make: ops.combine(make(), [1.0, 2.0, 3.0]),
    "c": lambda make: ops.combine(rows(), make()),
    "c, batched": lambda make: ops.combine(rows(2), make()),
    "mask of": lambda make: ops.conflict_mask(make()),
    "G": lambda make: ops.coefficients(make()),
    "weights": lambda make: ops.coefficients(torch.eye(3).double(), weights=make()),
    "order of G": lambda make: ops.coefficients(torch.eye(3).double(), "pcgrad", order=make()),
    "method": lambda make: ops.coefficients(torch.eye(3).double(), make()),
    "dtype": lambda make: ops.coefficients(torch.eye(3).double(), dtype=make()),
    "vector": lambda make: utils.apply_gradient_vector(network(), make()),
    "vector by parameters": lambda make: utils.apply_gradient_vector_para_based(network(), make()),
    "parameters' vector": lambda make: utils.apply_para_vector(network(), make()),
    "network": lambda make: utils.get_gradient_vector(make()),
    "network of parameters": lambda make: utils.get_para_vector(make()),
    "network to write": lambda make: IMTLGOperator().update_gradient(make(), rows()),
    "network's grads": lambda make: IMTLGOperator().update_gradient(network(), make()),
    "backward's losses": lambda make: backward(make(), network()),
    "backward's loss": among_losses(backward),
    "backward's parameters": lambda make: backward([loss_of(network())], make()),
    "backward's operator": lambda make: backward([loss_of(net := network())], net, make()),
    "distributed's losses": lambda make: distributed.backward(make(), network()),
    "heads' losses": lambda make: mtl_backward(make(), [torch.ones(3)]),
    "weights' losses": lambda make: weights(make(), network()),
    "weights' loss": among_losses(weights),
    "weights' targets": lambda make: weights([loss_of(network())], make()),
    "a weights' target": lambda make: weights([loss_of(net := network())], [net.weight, make()]),
    "a weights' feature": lambda make: weights([(f := network().weight * 2).sum()], [f, make()]),
    "weights' operator": lambda make: weights([loss_of(net := network())], net, make()),
    "approximate": lambda make: weights([loss_of(net := network())], net, approximate=make()),
    "features_gram": lambda make: weights([loss_of(net := network())], net, features_gram=make()),
    "heads' gram": lambda make: mtl_backward([(h := network().weight * 2).sum()], h, gram=make()),
    "heads' operator": lambda make: mtl_backward(
        [(h := network().weight * 2).sum()], h, operator=make(), gram="features"
    ),
    "pcgrad's losses": lambda make: PCGrad().pc_backward(make(), network().parameters()),
    "pcgrad's loss": among_losses(lambda losses, net: PPCGrad().pc_backward(losses, net.parameters())),
    "packed loss": among_losses(lambda losses, net: PPCGrad().pack_grad(losses, net.parameters())),
    "pcgrad's parameters": lambda make: PCGrad().pc_backward([loss_of(network())], make()),
    "optimizer": lambda make: PCGrad(make()),
}


@pytest.mark.parametrize("place", PLACES)
def test_junk(place: str) -> None:
    wrong = []
    for kind, make in JUNK.items():
        try:
            outcome(lambda make=make: PLACES[place](make), (*NAMED, *ALLOWED.get((place, kind), ())))
        except Exception as error:
            wrong.append(f"{kind}: {type(error).__name__}: {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)
