"""``mtl_backward``: whose parameters are whose, found from the graph or given; no loss's pull gets lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error, rows_of
from torch import Tensor, nn

from fastconfig import mtl_backward, reference

pytestmark = pytest.mark.usefixtures("backend")


class Tasks(nn.Module):
    """A trunk, and two heads of different sizes, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6))
        self.heads = nn.ModuleList(
            [nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1))]
        )
        self.double()

    def losses(self, h: Tensor) -> list[Tensor]:
        return [(head(h) - k).square().mean() for k, head in enumerate(self.heads)]


def inputs() -> Tensor:
    return torch.randn(7, 4, dtype=torch.float64)


GIVEN: dict[str, Callable[[Tasks], tuple[Any, ...]]] = {
    "nothing": lambda net: (),
    "modules": lambda net: (net.trunk, net.heads),
    "a module and lists": lambda net: (net.trunk, [list(head.parameters()) for head in net.heads]),
    "iterators": lambda net: (net.trunk.parameters(), [head.parameters() for head in net.heads]),
    "values of a dict": lambda net: (net.trunk, dict(enumerate(net.heads)).values()),
    "the trunk alone": lambda net: (net.trunk,),
    "the heads alone": lambda net: (None, net.heads),
}


@pytest.mark.parametrize("given", GIVEN)
def test_every_way_to_give_the_parts(given: str) -> None:
    net, x = Tasks(), inputs()
    trunk = list(net.trunk.parameters())
    exact = reference.config(rows_of(net.losses(net.trunk(x)), trunk))
    values = net.losses(net.trunk(x))
    own = [torch.autograd.grad(v, list(h.parameters())) for v, h in zip(values, net.heads, strict=True)]
    for _ in range(2):
        h = net.trunk(x)
        losses = {"a": net.losses(h)[0], "b": net.losses(h)[1]}
        mtl_backward(losses.values(), h, *GIVEN[given](net))
        assert relative_error(torch.cat([p.grad.reshape(-1) for p in trunk]), exact) <= 1e-9  # type: ignore[union-attr]
        for head, gradients in zip(net.heads, own, strict=True):
            for par, gradient in zip(head.parameters(), gradients, strict=True):
                torch.testing.assert_close(par.grad, gradient)


def test_frozen_parts_and_inputs_are_left_out() -> None:
    net, x = Tasks(), inputs()
    net.trunk[0].requires_grad_(False)
    net.heads[1].requires_grad_(False)
    h = net.trunk(x)
    mtl_backward(net.losses(h), h)
    assert all(par.grad is None for par in net.trunk[0].parameters())
    assert all(par.grad is None for par in net.heads[1].parameters())
    assert net.trunk[2].weight.grad is not None
    assert net.heads[0].weight.grad is not None


def test_a_part_of_a_tensor_may_be_a_feature() -> None:
    """Both outputs of one operation are features, or one is missing."""
    net, x = Tasks(), inputs()
    exact = reference.config(rows_of(net.losses(net.trunk(x)), list(net.trunk.parameters())))
    a, b = net.trunk(x).split(3, 1)
    mtl_backward(net.losses(torch.cat([a, b], 1)), [a, b], net.trunk, net.heads)
    found = torch.cat([par.grad.reshape(-1) for par in net.trunk.parameters()])  # type: ignore[union-attr]
    assert relative_error(found, exact) <= 1e-9
    a, b = net.trunk(x).split(3, 1)
    with pytest.raises(
        ValueError, match=r"shared_parameters\[\d\]: .* losses\[0\] reaches past the features"
    ):
        mtl_backward(net.losses(torch.cat([a, b], 1)), [a], net.trunk, net.heads)


def swapped(net: Tasks, h: Tensor) -> tuple[Any, ...]:
    return net.losses(h), h, net.trunk, [net.heads[1], net.heads[0]]


def tied_and_in_both(net: Tasks, h: Tensor) -> tuple[Any, ...]:
    weight = net.trunk[2].weight
    losses = net.losses(h)
    losses[0] = losses[0] + (h @ weight).square().mean()
    return losses, h, net.trunk, [[weight, *net.heads[0].parameters()], net.heads[1]]


def tied_and_in_the_trunk(net: Tasks, h: Tensor) -> tuple[Any, ...]:
    losses, _, trunk, _ = tied_and_in_both(net, h)
    return losses, h, trunk, net.heads


def tied_and_in_a_head(net: Tasks, h: Tensor) -> tuple[Any, ...]:
    losses, _, _, heads = tied_and_in_both(net, h)
    return losses, h, net.trunk[0], heads


def tied_and_found(net: Tasks, h: Tensor) -> tuple[Any, ...]:
    return tied_and_in_both(net, h)[:2]


def of_one_head_only(net: Tasks, h: Tensor) -> tuple[Any, ...]:
    losses = net.losses(h)
    losses[1] = losses[1] + net.heads[0](h).mean()
    return losses, h, net.trunk, net.heads


def a_feature_of_a_feature(net: Tasks, h: Tensor) -> tuple[Any, ...]:
    later = torch.tanh(h)
    return net.losses(later + h), [h, later], net.trunk, net.heads


REFUSED: dict[str, tuple[Callable[[Tasks, Tensor], tuple[Any, ...]], str]] = {
    "swapped heads": (swapped, r"task_parameters\[0\]: got parameters that losses\[0\] does not reach"),
    "tied, in both": (tied_and_in_both, r"task_parameters\[0\]\[0\]: .* in shared_parameters\[2\] too"),
    "tied, in the trunk": (tied_and_in_the_trunk, r"shared_parameters\[2\]: .* losses\[0\] reaches past"),
    "tied, in a head": (
        tied_and_in_a_head,
        r"task_parameters\[0\]\[0\]: .* in the trunk behind the features",
    ),
    "tied, found": (tied_and_found, r"task_parameters\[0\]\[\d+\]: .* in shared_parameters\[\d+\] too"),
    "in one head of two": (of_one_head_only, r"task_parameters\[0\]: .* losses\[1\] reaches too"),
    "a feature of another": (
        a_feature_of_a_feature,
        r"features\[1\]: got one that is computed from features\[0\]",
    ),
    "a feature twice": (
        lambda net, h: (net.losses(h), [h, h], net.trunk, net.heads),
        r"features\[1\]: got features\[0\] again",
    ),
    "no feature": (lambda net, h: (net.losses(h), [], net.trunk, net.heads), "features: got none"),
    "a detached feature": (
        lambda net, h: (net.losses(h), h.detach(), net.trunk, net.heads),
        r"features\[0\]: got a tensor without a graph",
    ),
    "a loss past the features": (
        lambda net, h: (net.losses(net.trunk(inputs())), h, net.trunk, net.heads),
        r"losses\[0\]: got a loss that depends on none of the features",
    ),
    "a generator of heads": (
        lambda net, h: (net.losses(h), h, net.trunk, (head for head in net.heads)),
        "task_parameters: got a generator, want a list of 2",
    ),
    "one head for all": (
        lambda net, h: (net.losses(h), h, net.trunk, net.heads[0]),
        "task_parameters: got a Linear, want a list of 2",
    ),
    "too few heads": (
        lambda net, h: (net.losses(h), h, net.trunk, net.heads[:1]),
        "task_parameters: got 1, want 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, message = REFUSED[case]
    net, x = Tasks(), inputs()
    for par in net.parameters():
        par.grad = torch.full_like(par, 7.0)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=message):
            mtl_backward(*make(net, net.trunk(x)))
    assert all((par.grad == 7).all() for par in net.parameters())  # type: ignore[union-attr]


def test_a_weight_of_both_heads_gets_the_sum() -> None:
    net, x = Tasks(), inputs()
    net.heads[1] = net.heads[0]
    h = net.trunk(x)
    exact = rows_of(net.losses(h), list(net.heads[0].parameters())).sum(0)
    mtl_backward(net.losses(h), h)
    found = torch.cat([par.grad.reshape(-1) for par in net.heads[0].parameters()])  # type: ignore[union-attr]
    assert relative_error(found, exact) <= 1e-12


def test_heads_that_add_two_tables_do_not_share_their_gradients() -> None:
    """The engine gives one tensor for both sides of a sum."""
    net, x = Tasks(), inputs()
    tables = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2)]
    h = net.trunk(x)
    values = [(net.heads[0](h) + (tables[0] + tables[1])).square().mean(), net.heads[1](h).mean()]
    mtl_backward(values, h)
    first, second = (table.grad for table in tables)
    assert first is not None
    assert second is not None
    before = second.clone()
    first.mul_(7)
    assert torch.equal(second, before)


LATER: dict[str, Callable[[Tasks, Tensor], tuple[Any, ...]]] = {
    "a penalty on the trunk": lambda net, h: (
        [value + net.trunk[0].weight.square().sum() for value in net.losses(h)],
        h,
        net.trunk,
        net.heads,
    ),
    "a tied weight": tied_and_in_the_trunk,
    "a feature twice": lambda net, h: (net.losses(h), [h, h], net.trunk, net.heads),
    "losses in another order": lambda net, h: (net.losses(h)[::-1], h, net.trunk, net.heads),
}


@pytest.mark.parametrize("later", LATER)
def test_what_changes_after_the_first_step_is_seen(later: str) -> None:
    net, x = Tasks(), inputs()
    for _ in range(2):
        h = net.trunk(x)
        mtl_backward(net.losses(h), h, net.trunk, net.heads)
    with pytest.raises(ValueError, match=r"past the features|again|reaches too|does not reach"):
        mtl_backward(*LATER[later](net, net.trunk(x)))


def test_inputs_that_require_a_gradient_are_not_taken_for_parameters() -> None:
    net, x = Tasks(), inputs().requires_grad_()
    h = net.trunk(x)
    with pytest.raises(
        ValueError, match=r"shared_parameters: got none, and found a tensor of shape \(7, 4\)"
    ):
        mtl_backward(net.losses(h), h)
    mtl_backward(net.losses(h), h, net.trunk)
    assert x.grad is None
    with pytest.raises(ValueError, match=r"features\[0\]: got a leaf"):
        mtl_backward(net.losses(leaf := h.detach().requires_grad_()), leaf)


@pytest.mark.parametrize("there", [False, True])
def test_a_sparse_embedding_of_a_head_gets_a_dense_gradient(there: bool) -> None:
    net, tables = Tasks(), [nn.Embedding(11, 6, sparse=True).double() for _ in range(2)]
    h = net.trunk(inputs())
    places = torch.tensor([1, 4, 4, 7, 0, 2, 2])
    losses = [(h * table(places)).square().mean() for table in tables]
    exact = [
        torch.autograd.grad(v, t.weight, retain_graph=True)[0].to_dense()
        for v, t in zip(losses, tables, strict=True)
    ]
    if there:
        for table in tables:
            table.weight.grad = torch.full_like(table.weight, torch.nan)
    mtl_backward(losses, h, net.trunk, tables)
    for table, wanted in zip(tables, exact, strict=True):
        assert table.weight.grad is not None
        assert table.weight.grad.layout is torch.strided
        torch.testing.assert_close(table.weight.grad, wanted)


class WithoutWeight(torch.autograd.Function):
    """A function of two tensors that gives a gradient of the first only."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
        return h * weight.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def test_a_head_in_the_graph_that_gets_no_gradient() -> None:
    net, weight = Tasks(), nn.Parameter(torch.ones(6, dtype=torch.float64))
    h = net.trunk(inputs())
    losses = [WithoutWeight.apply(h, weight).sum(), net.heads[1](h).mean()]
    with pytest.raises(ValueError, match=r"task_parameters\[0\]: got parameters that losses\[0\] does not"):
        mtl_backward(losses, h, net.trunk, [[weight], net.heads[1]])
    assert all(par.grad is None for par in (weight, *net.parameters()))
