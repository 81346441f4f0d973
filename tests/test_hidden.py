"""Functions that go backward on their own hide parameters from a pass: refused, and nothing else is."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fastconfig
from fastconfig.pcgrad import PPCGrad
from fastconfig.training import graphs

BLOCK = nn.Linear(8, 8)  # also as a global of a function that is checkpointed


class Reversible(torch.autograd.Function):
    """Computes its inside again in its backward pass, and accumulates there."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, inside: nn.Module) -> Tensor:  # type: ignore[override]
        ctx.inside = inside
        ctx.save_for_backward(h)
        return inside(h.detach()).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (h,) = ctx.saved_tensors
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            ctx.inside(h).backward(grad)
        return h.grad, None


class Scaled(torch.autograd.Function):
    """A function of a user's own that hides nothing."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, options: dict[str, Any]) -> Tensor:  # type: ignore[override]
        ctx.options = options
        return h * options["factor"]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad * ctx.options["factor"], None


def by_closure(block: nn.Module, h: Tensor) -> Tensor:
    def inside(value: Tensor) -> Tensor:
        return block(value)

    return checkpoint(inside, h, use_reentrant=True)


def by_partial(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint(functools.partial(lambda b, value: b(value), block), h, use_reentrant=True)


def by_sequence(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint_sequential([block, nn.Tanh()], 2, h, use_reentrant=True)


def of_a_global(value: Tensor) -> Tensor:
    return BLOCK(value)


HIDING: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "checkpoint of a module": lambda block, h: checkpoint(block, h, use_reentrant=True),
    "of a method": lambda block, h: checkpoint(block.forward, h, use_reentrant=True),
    "of a closure": by_closure,
    "of a partial": by_partial,
    "checkpoint_sequential": by_sequence,
    "a function of one's own": lambda block, h: Reversible.apply(h, block),
    "of a global": lambda block, h: checkpoint(of_a_global, h, use_reentrant=True),
}


class Net(nn.Module):
    """A frozen embedding, a block that may be hidden, and a head."""

    def __init__(
        self, through: Callable[[nn.Module, Tensor], Tensor], block: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 8).requires_grad_(False)
        self.block = nn.Linear(8, 8) if block is None else block
        self.head = nn.Linear(8, 2)
        self.through = through

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.through(self.block, self.embedding(x).requires_grad_()))

    def losses(self, x: Tensor) -> list[Tensor]:
        y = self.head(self.features(x))
        return [y[:, 0].square().mean(), (y[:, 1] - 1).square().mean()]


def into_features(net: Net, x: Tensor) -> None:
    h = net.features(x)
    y = net.head(h)
    fastconfig.mtl_backward([y[:, 0].sum(), y[:, 1].sum()], h, net.block, [net.head, net.head])


WAYS: dict[str, Callable[[Net, Tensor], None]] = {
    "backward": lambda net, x: fastconfig.backward(net.losses(x), net),
    "of the block alone": lambda net, x: fastconfig.backward(net.losses(x), net.block),
    "mtl_backward": into_features,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hiding", HIDING)
def test_a_parameter_without_gradient_that_a_function_holds(hiding: str, way: str) -> None:
    net, x = Net(HIDING[hiding], BLOCK if "global" in hiding else None), torch.randn(6, 4)
    for par in net.parameters():
        par.grad = torch.full_like(par, 7.0)
    for _ in range(2):  # the second time as well
        with pytest.raises(ValueError, match=r"goes backward on its own|use_reentrant=False|no parameter"):
            WAYS[way](net, x)
    if hiding != "a function of one's own":  # which has written by itself
        assert all((par.grad == 7).all() for par in net.parameters())  # type: ignore[union-attr]


def test_the_error_names_the_function_and_the_way_out() -> None:
    net = Net(HIDING["checkpoint of a module"])
    with pytest.raises(ValueError, match=re.escape("(8, 8), which CheckpointFunction hides")) as raised:
        fastconfig.backward(net.losses(torch.randn(6, 4)), net)
    assert "use_reentrant=False" in str(raised.value)


def test_checkpoints_that_are_part_of_the_graph_train() -> None:
    net = Net(lambda block, h: checkpoint(block, h, use_reentrant=False))
    twin = Net(lambda block, h: block(h))
    twin.load_state_dict(net.state_dict())
    x = torch.randn(6, 4)
    for one in (net, twin):
        fastconfig.backward(one.losses(x), one)
    for par, like in zip(net.parameters(), twin.parameters(), strict=True):
        if par.requires_grad:
            assert par.grad is not None
            torch.testing.assert_close(par.grad, like.grad)


@pytest.mark.parametrize("hiding", HIDING)
def test_torchs_own_passes_see_all(hiding: str) -> None:
    """Around an optimizer losses go backward by themselves."""
    net = Net(HIDING[hiding], copy.deepcopy(BLOCK))
    if "global" in hiding:
        net.block = BLOCK
    twin = Net(lambda block, h: torch.tanh(block(h)) if "sequential" in hiding else block(h))
    twin.load_state_dict(net.state_dict())
    x = torch.randn(6, 4)
    for one in (net, twin):
        PPCGrad(torch.optim.SGD(one.parameters())).pc_backward(one.losses(x))
    for par, like in zip(net.parameters(), twin.parameters(), strict=True):
        assert (par.grad is None) == (like.grad is None)
        if par.grad is not None:
            assert like.grad is not None
            torch.testing.assert_close(par.grad, like.grad)


def test_checkpointing_that_is_turned_on_later_and_for_one_loss() -> None:
    net, x = Net(lambda block, h: block(h)), torch.randn(6, 4)
    for _ in range(3):
        fastconfig.backward(net.losses(x), net)
    net.through = HIDING["checkpoint of a module"]
    hidden = net.losses(x)[1]
    net.through = lambda block, h: block(h)
    with pytest.raises(ValueError, match=r"losses\[1\]: got no gradient of a parameter"):
        fastconfig.backward([net.losses(x)[0], hidden], net)


def test_checkpointing_of_a_block_that_was_not_used_before() -> None:
    """The same gradients are missing as in the steps before."""
    net, x = Net(lambda block, h: h), torch.randn(6, 4)
    for _ in range(3):
        fastconfig.backward(net.losses(x), net)
    net.through = HIDING["checkpoint of a module"]
    with pytest.raises(ValueError, match="goes backward on its own"):
        fastconfig.backward(net.losses(x), net)


def test_a_parameter_within_a_checkpoint_and_outside() -> None:
    net, x = Net(HIDING["checkpoint of a module"]), torch.randn(6, 4)
    values = net.losses(x)
    with pytest.raises(ValueError, match="goes backward on its own"):
        fastconfig.backward([value + net.block.weight.square().sum() for value in values], net)


class Owned(torch.autograd.Function):
    """Reverses gradients; knows the whole model, and goes backward through none of it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, owner: list[nn.Module]) -> Tensor:  # type: ignore[override]
        ctx.owner = owner
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return -grad, None


def test_functions_that_hold_a_model_without_going_through_it() -> None:
    net, x = Net(lambda block, h: Owned.apply(block(h), [block])), torch.randn(6, 4)
    net.through = lambda block, h: Owned.apply(block(h), [net])
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    other = nn.Linear(8, 1)
    net.add_module("other", other)
    h = net.features(x)
    fastconfig.backward([net.head(h).square().mean(), other(h).square().mean()], net)
    assert net.block.weight.grad is not None
    assert net.unused.grad is None


def test_a_function_that_writes_within_the_pass() -> None:
    net, x = Net(HIDING["a function of one's own"]), torch.randn(6, 4)
    net.embedding.requires_grad_(True)
    net.through = lambda block, h: Reversible.apply(h, block)

    def losses() -> list[Tensor]:
        y = net.head(torch.tanh(net.through(net.block, net.embedding(x))))
        return [y[:, 0].square().mean(), (y[:, 1] - 1).square().mean()]

    with pytest.raises(ValueError, match="goes backward on its own"):
        fastconfig.backward(losses(), net)
    assert all(par.grad is None for par in net.parameters())


def test_unused_parameters_beside_functions_that_hide_none() -> None:
    net, x = (
        Net(lambda block, h: Scaled.apply(block(h), {"factor": 2.0, "names": ["a"] * 1000})),
        torch.randn(6, 4),
    )
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    fastconfig.backward(net.losses(x), net)
    assert net.unused.grad is None
    assert net.block.weight.grad is not None


def test_a_step_that_misses_no_gradient_walks_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Any] = []
    monkeypatch.setattr(
        "fastconfig.training.hidden.nodes_of", lambda ends: walks.append(ends) or graphs.nodes_of(ends)
    )
    net, x = Net(lambda block, h: block(h)), torch.randn(6, 4)
    for _ in range(4):
        fastconfig.backward(net.losses(x), net)
    assert len(walks) == 2  # the first step's, one a loss
