"""``mtl_backward(..., gram="features")``: merged at the features, one pass through the trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inputs import relative_error
from schedules import OPERATORS, Own
from torch import Tensor, nn

from fastconfig import ConFIGOperator, PseudoMomentumOperator, mtl_backward, reference

pytestmark = pytest.mark.usefixtures("backend")


class Counted(torch.autograd.Function):
    """The identity; counts how often it is gone through backward."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Counted.passes += 1
        return gradient


class Tasks(nn.Module):
    """A trunk that counts its passes, and m heads, in float64."""

    def __init__(self, m: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 9), nn.Linear(9, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(m))
        self.double()
        Counted.passes = 0

    def trunk(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(Counted.apply(torch.tanh(self.first(x)))))

    def losses(self, h: Tensor) -> list[Tensor]:
        return [(head(h) - k).square().mean() for k, head in enumerate(self.heads)]

    def shared(self) -> list[Tensor]:
        return [*self.first.parameters(), *self.second.parameters()]


def inputs() -> Tensor:
    return torch.randn(7, 4, dtype=torch.float64)


def written(parameters: list[Tensor]) -> Tensor:
    return torch.cat([par.grad.reshape(-1) for par in parameters if par.grad is not None])


def feature_rows(losses: list[Tensor], h: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(v, h, retain_graph=True)[0].reshape(-1) for v in losses])


def through(net: Tasks, h: Tensor, at_h: Tensor) -> Tensor:
    """The trunk's gradients, of one at the features."""
    pieces = torch.autograd.grad(h, net.shared(), at_h.view(h.shape), retain_graph=True)
    return torch.cat([piece.reshape(-1) for piece in pieces])


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "own"])
def test_the_merged_gradient_of_the_features_goes_through_the_trunk(name: str) -> None:
    operator, oracle = OPERATORS[name]
    net = Tasks()
    h = net.trunk(inputs())
    losses = net.losses(h)
    exact = through(net, h, oracle(feature_rows(losses, h)))
    pairs = zip(losses, net.heads, strict=True)
    own = [torch.autograd.grad(v, list(head.parameters()), retain_graph=True) for v, head in pairs]
    mtl_backward(losses, h, operator=operator, gram="features")
    assert relative_error(written(net.shared()), exact) <= 1e-9
    for head, gradients in zip(net.heads, own, strict=True):
        for par, gradient in zip(head.parameters(), gradients, strict=True):
            torch.testing.assert_close(par.grad, gradient)


@pytest.mark.parametrize("m", [1, 3, 8])
def test_the_trunk_is_gone_through_once(m: int) -> None:
    for gram, passes in (("features", 1), ("parameters", m)):
        net = Tasks(m)
        h = net.trunk(inputs())
        mtl_backward(net.losses(h), h, gram=gram)  # type: ignore[arg-type]
        assert Counted.passes == passes


def test_several_features_of_which_losses_reach_some() -> None:
    net = Tasks()
    h = net.trunk(inputs())
    a, b, unused = h.split(2, 1)
    zero = torch.zeros_like(a)
    last = net.heads[2](torch.cat([a, zero, zero], 1)).mean()
    losses = [*net.losses(torch.cat([a, b, zero], 1))[:2], last]
    exact = through(net, h, reference.config(feature_rows(losses, h)))
    own = torch.autograd.grad(losses[2], net.heads[2].weight, retain_graph=True)[0]
    mtl_backward(losses, [a, b, unused], gram="features")
    assert relative_error(written(net.shared()), exact) <= 1e-9
    torch.testing.assert_close(net.heads[2].weight.grad, own)


def test_accumulation_and_graphs_that_are_kept() -> None:
    net = Tasks()
    h = net.trunk(inputs())
    losses = net.losses(h)
    mtl_backward(losses, h, gram="features", retain_graph=True)
    first = written(list(net.parameters()))
    mtl_backward(losses, h, net.shared(), net.heads, gram="features", accumulate=True)
    torch.testing.assert_close(written(list(net.parameters())), 2 * first)
    with pytest.raises(ValueError, match="its graph is freed already"):
        mtl_backward(losses, h, gram="features")


def test_gradients_share_no_memory() -> None:
    """The engine may give one gradient to two parameters."""
    a, b = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    h = a + b
    mtl_backward([(h * h).sum(), h.sum()], h, gram="features")
    assert a.grad is not None
    assert b.grad is not None
    a.grad.zero_()
    assert b.grad.all()


def test_not_a_number_is_not_hidden() -> None:
    net = Tasks()
    h = net.trunk(inputs())
    losses = net.losses(h)
    losses[1] = losses[1] * torch.nan
    mtl_backward(losses, h, gram="features")
    assert written(net.shared()).isnan().all()


class Chosen(ConFIGOperator):
    def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
        return grads.sum(0)


def test_what_is_refused() -> None:
    net = Tasks()
    h = net.trunk(inputs())
    losses = net.losses(h)
    operator: Any
    for operator in (Own(), Chosen(), PseudoMomentumOperator(3)):
        name = type(operator).__name__
        with pytest.raises(TypeError, match=f"operator: got a {name} that must see the gradients, want"):
            mtl_backward(losses, h, operator=operator, gram="features")
    with pytest.raises(ValueError, match="gram: got 'trunk', want 'parameters' or 'features'"):
        mtl_backward(losses, h, gram="trunk")  # type: ignore[arg-type]
    assert all(par.grad is None for par in net.parameters())
    mtl_backward(losses, h, gram="features")
