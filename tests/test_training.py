"""``backward`` and ``mtl_backward``: the gradients of flat vectors, written without any."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error, rows_of
from schedules import OPERATORS
from torch import Tensor, nn

from fastconfig import (
    ConFIGOperator,
    LatestLossRecorder,
    PseudoMomentumOperator,
    backward,
    get_gradient_vector,
    mtl_backward,
    reference,
)
from fastconfig.training import passes

pytestmark = pytest.mark.usefixtures("backend")


class Trunk(nn.Module):
    """A shared trunk and two heads, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(2))
        self.double()

    def losses(self, x: Tensor) -> list[Tensor]:
        h = self.trunk(x)
        return [(head(h) - k).square().mean() for k, head in enumerate(self.heads)]


def images() -> Tensor:
    return torch.randn(7, 2, 4, 4, dtype=torch.float64)


def written(net: nn.Module) -> Tensor:
    return get_gradient_vector(net, none_grad_mode="zero")


@pytest.mark.parametrize("name", ["config", "pcgrad", "ppcgrad", "imtlg"])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_merged_gradient_is_written(name: str, stacked: bool) -> None:
    operator, merge = OPERATORS[name]
    net = Trunk()
    losses = net.losses(images())
    exact = merge(rows_of(losses, list(net.parameters())))
    backward(torch.stack(losses) if stacked else losses, net, operator)
    assert relative_error(written(net), exact) <= 1e-9


def test_channels_last_parameters() -> None:
    twin = Trunk()
    net = copy.deepcopy(twin).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = images()
    exact = reference.config(rows_of(twin.losses(x), list(twin.parameters())))
    backward(net.losses(x.to(memory_format=torch.channels_last)), net)
    assert relative_error(written(net), exact) <= 1e-9


def test_a_users_own_operator_sees_the_stacked_tensor() -> None:
    class Own(ConFIGOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            assert isinstance(grads, Tensor)
            assert [float(value) for value in losses] == values
            return grads.sum(0)

    net = Trunk()
    losses = net.losses(images())
    values = [float(value.detach()) for value in losses]
    exact = rows_of(losses, list(net.parameters())).sum(0)
    backward(losses, net, Own())
    assert relative_error(written(net), exact) <= 1e-12


def test_an_operator_of_another_package() -> None:
    """It need not be of our base class."""

    class Other:
        def calculate_gradient(self, grads: Tensor, losses: Any = None) -> Tensor:
            return grads.sum(0)

    net = Trunk()
    losses = net.losses(images())
    exact = rows_of(losses, list(net.parameters())).sum(0)
    backward(losses, net, Other())  # type: ignore[arg-type]
    assert relative_error(written(net), exact) <= 1e-12


def test_accumulation_adds_and_a_new_call_replaces() -> None:
    net = Trunk()
    total = torch.zeros_like(written(net))
    for _ in range(3):
        losses = net.losses(images())
        last = reference.config(rows_of(losses, list(net.parameters())))
        total += last
        backward(losses, net, accumulate=True)
    assert relative_error(written(net), total) <= 1e-9
    losses = net.losses(images())
    last = reference.config(rows_of(losses, list(net.parameters())))
    backward(losses, net)
    assert relative_error(written(net), last) <= 1e-9


def test_frozen_tied_and_unused_parameters() -> None:
    net = Trunk()
    net.heads[1].weight = net.heads[0].weight  # type: ignore[union-attr]
    frozen = net.trunk[0].weight
    frozen.requires_grad_(False)
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    net.register_parameter("unused", unused)
    losses = net.losses(images())
    trained = [par for par in net.parameters() if par.requires_grad]
    exact = reference.config(rows_of(losses, trained))
    backward(losses, net, retain_graph=True)
    assert frozen.grad is None
    assert unused.grad is None
    for none_grad in ("skip", "zero"):
        backward(losses, [*trained, frozen], none_grad=none_grad, retain_graph=True)  # type: ignore[arg-type]
        given = [torch.zeros_like(par) if par.grad is None else par.grad for par in trained]
        assert relative_error(torch.cat([grad.reshape(-1) for grad in given]), exact) <= 1e-9
        assert (unused.grad is None) == (none_grad == "skip")


def test_sparse_embedding_gradients_arrive_dense() -> None:
    table = nn.Embedding(11, 3, sparse=True).double()
    losses = [table(torch.tensor([1, 4, 4])).square().sum(), (table(torch.tensor([4, 7])) - 1).square().sum()]
    rows = torch.stack(
        [torch.autograd.grad(v, table.weight, retain_graph=True)[0].to_dense().reshape(-1) for v in losses]
    )
    backward(losses, table)
    assert table.weight.grad is not None
    assert relative_error(table.weight.grad.reshape(-1), reference.config(rows)) <= 1e-9


def test_a_momentum_operator_takes_them_in() -> None:
    net = Trunk()
    operator = PseudoMomentumOperator(2, loss_recorder=LatestLossRecorder(2))
    exact = reference.Momentum(2)
    for step in range(6):
        losses = net.losses(images())
        chosen = [0, 1] if step == 3 else [step % 2]
        wanted = exact.step(chosen, rows_of([losses[i] for i in chosen], list(net.parameters())))
        backward([losses[i] for i in chosen], net, operator, indexes=chosen)
        if step:
            assert relative_error(written(net), wanted) <= 1e-7


@pytest.mark.parametrize("several", [False, True])
def test_heads_get_their_own_and_the_trunk_the_merged(several: bool) -> None:
    net = Trunk()
    x = images()
    trunk = list(net.trunk.parameters())
    rows = rows_of(net.losses(x), trunk)
    values = zip(net.losses(x), net.heads, strict=True)
    own = [torch.autograd.grad(value, list(head.parameters())) for value, head in values]
    h = net.trunk(x)
    features = [h[:, :2], h[:, 2:]] if several else h
    used = torch.cat(features, 1) if several else h
    losses = [(head(used) - k).square().mean() for k, head in enumerate(net.heads)]
    mtl_backward(losses, features, trunk, [list(head.parameters()) for head in net.heads])
    got = torch.cat([par.grad.reshape(-1) for par in trunk if par.grad is not None])
    assert relative_error(got, reference.config(rows)) <= 1e-9
    for head, gradients in zip(net.heads, own, strict=True):
        for par, gradient in zip(head.parameters(), gradients, strict=True):
            assert par.grad is not None
            torch.testing.assert_close(par.grad, gradient)


def test_a_parameter_of_both_heads_gets_the_sum() -> None:
    net = Trunk()
    h = net.trunk(images())
    head = net.heads[0]
    losses = [head(h).square().mean(), (head(h) - 1).square().mean()]
    exact = rows_of(losses, list(head.parameters())).sum(0)
    mtl_backward(losses, h, net.trunk.parameters(), [list(head.parameters())] * 2)
    assert relative_error(written(head), exact) <= 1e-12


def is_freed(node: Any) -> bool:
    """Whether a node of a graph has lost what it had saved."""
    try:
        node._saved_result
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_graph_is_freed_as_soon_as_nobody_needs_it(
    shared: bool, retain_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_LARGE", 1)
    net = Trunk()
    x = images()
    trunk = net.trunk(x)
    nodes, seen = [], []
    losses = []
    for head in net.heads:
        out = head(trunk if shared else net.trunk(x)).exp()
        out.register_hook(lambda g: seen.append([is_freed(node) for node in nodes]))
        nodes.append(out.grad_fn)
        losses.append(out.mean())
    exact = reference.config(rows_of(losses, list(net.parameters())))
    seen.clear()
    backward(losses, net, retain_graph=retain_graph)
    assert relative_error(written(net), exact) <= 1e-9
    assert seen[1] == [not shared and not retain_graph, False]  # as the second pass begins
    assert [is_freed(node) for node in nodes] == [not retain_graph and not shared, not retain_graph]
    if retain_graph:
        backward(losses, net)
        assert relative_error(written(net), exact) <= 1e-9


def test_a_graph_that_is_shared_past_a_loss_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By losses 0 and 2, but not by 1."""
    monkeypatch.setattr(passes, "_LARGE", 1)
    net = Trunk()
    first, second = net.heads
    h, other = net.trunk(images()), net.trunk(images())
    losses = [first(h).exp().mean(), second(other).exp().mean(), second(h).exp().mean()]
    exact = reference.config(rows_of(losses, list(net.parameters())))
    backward(losses, net)
    assert relative_error(written(net), exact) <= 1e-9


def unreduced(net: Trunk) -> Any:
    return [net.heads[0](net.trunk(images()))]


def freed(net: Trunk) -> Any:
    losses = net.losses(images())
    losses[0].backward()
    net.zero_grad()
    return losses[:1]


REFUSED: dict[str, tuple[Callable[[Trunk], Any], type[Exception], str]] = {
    "none": (lambda net: [], ValueError, "losses: got none"),
    "number": (lambda net: 0.5, TypeError, "losses: got a float"),
    "matrix": (lambda net: torch.ones(2, 2), ValueError, r"losses: got shape \(2, 2\), want a vector"),
    "no tensor": (lambda net: [0.5], TypeError, r"losses\[0\]: got a float"),
    "not reduced": (unreduced, ValueError, r"losses\[0\]: got shape \(7, 1\), want one element"),
    "no graph": (lambda net: [torch.ones(())], ValueError, r"losses\[0\]: got a loss without a graph"),
    "unconnected": (
        lambda net: [*net.losses(images()), torch.ones((), requires_grad=True) * 2],
        ValueError,
        r"losses\[2\]: got a loss that depends on none of the parameters",
    ),
    "freed": (freed, ValueError, r"losses\[0\]: its graph is freed already, want retain_graph=True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_losses_leave_grad_alone(case: str) -> None:
    make, error, message = REFUSED[case]
    net = Trunk()
    losses = make(net)
    for par in net.parameters():
        par.grad = torch.full_like(par, 7)
    with pytest.raises(error, match=message):
        backward(losses, net)
    assert (written(net) == 7).all()


def test_refused_parameters() -> None:
    net = Trunk()
    losses = net.losses(images())
    derived = next(net.parameters()) * 2
    for given, error, message in (
        ([], ValueError, "model_or_parameters: got 0 tensors and none that requires"),
        ([derived], ValueError, r"model_or_parameters\[0\]: got a computed tensor"),
        (["weight"], TypeError, r"model_or_parameters\[0\]: got a str"),
    ):
        with pytest.raises(error, match=message):
            backward(losses, given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none_grad: got 'keep'"):
        backward(losses, net, none_grad="keep")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="indexes: got indexes for a ConFIGOperator"):
        backward(losses, net, indexes=[0, 1])
    with pytest.raises(ValueError, match="task_parameters: got 1, want 2: one a loss"):
        mtl_backward(losses, net.trunk(images()), net.trunk.parameters(), [[]])
    with pytest.raises(ValueError, match=r"losses\[0\]: got a loss that depends on none of the features"):
        mtl_backward(losses, net.trunk(images()), net.trunk.parameters(), [[], []])
    assert all(par.grad is None for par in net.parameters())


@pytest.mark.parametrize("result", [None, "update", 3.0, torch.ones(3), [torch.ones(3)]])
def test_an_operator_of_ones_own_that_gives_something_else(result: Any) -> None:
    class Own(ConFIGOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            return result

    net = Trunk()
    with pytest.raises((TypeError, ValueError), match=r"operator: got .* from Own.calculate_gradient, want"):
        backward(net.losses(images()), net, Own())
    assert all(par.grad is None for par in net.parameters())


def test_some_losses_of_a_momentum_operator_are_not_taken_for_the_first() -> None:
    net, operator = Trunk(), PseudoMomentumOperator(2)
    backward(net.losses(images()), net, operator)
    state, before = copy.deepcopy(operator.state_dict()), written(net)
    losses = net.losses(images())
    h = net.trunk(images())
    alone = net.heads[1](h).square().mean()
    for call in (
        lambda: backward(losses[1:], net, operator),
        lambda: mtl_backward([alone], h, net.trunk, net.heads[1:], operator),
    ):
        with pytest.raises(ValueError, match=r"losses: got 1, want all 2 of the operator's, or in backward"):
            call()
    assert torch.equal(written(net), before)
    assert str(operator.state_dict()) == str(state)
