"""``weights``: the weights of the losses; the backward pass of their weighted sum is the caller's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error, rows_of
from schedules import OPERATORS, Own
from torch import Tensor, nn

import fastconfig
from fastconfig import (
    ConFIGOperator,
    GradVacOperator,
    GramOperator,
    LogLossesOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    WeightModel,
    ops,
    reference,
    weights,
)
from fastconfig.methods import MGDA

pytestmark = pytest.mark.usefixtures("backend")


class Tasks(nn.Module):
    """A trunk and three heads, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        self.double()

    def losses(self, h: Tensor) -> list[Tensor]:
        return [(head(h) - k).square().mean() for k, head in enumerate(self.heads)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.losses(self.trunk(x))


def inputs(count: int = 7) -> Tensor:
    return torch.randn(count, 4, dtype=torch.float64)


def written(net: nn.Module) -> Tensor:
    return torch.cat([par.grad.reshape(-1) for par in net.parameters() if par.grad is not None])


def descend(losses: list[Tensor], c: Tensor) -> None:
    (c * torch.stack(losses)).sum().backward()


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "own"])
def test_the_weighted_sum_has_the_merged_gradient(name: str) -> None:
    operator, oracle = OPERATORS[name]
    net = Tasks()
    losses = net(inputs())
    exact = oracle(rows_of(losses, list(net.parameters())))
    given: Any
    for given in (net, net.parameters(), list(net.parameters())):
        c = weights(losses, given, copy.deepcopy(operator))
        assert c.shape == (3,)
        assert c.dtype is torch.float64
        assert not c.requires_grad
        assert all(par.grad is None for par in net.parameters())
    descend(losses, c)
    assert relative_error(written(net), exact) <= 1e-9


def test_losses_in_any_iterable_and_in_one_vector() -> None:
    net = Tasks()
    losses = net(inputs())
    wanted = weights(losses, net)
    values = dict(enumerate(losses)).values()
    for given in (tuple(losses), iter(losses), torch.stack(losses), values):
        assert torch.equal(weights(given, net), wanted)


def test_some_of_the_parameters() -> None:
    net = Tasks()
    last = net.trunk[2]
    losses = net(inputs())
    exact = reference.config(rows_of(losses, list(last.parameters())))
    weight = reference.config(rows_of(losses, [last.weight]))
    c = weights(losses, last.weight)
    assert relative_error(c @ rows_of(losses, [last.weight]), weight) <= 1e-9
    descend(losses, weights(losses, last))
    assert relative_error(written(last), exact) <= 1e-9


@pytest.mark.parametrize("features_gram", ["flatten", "batch_sum"])
def test_features_of_a_trunk(features_gram: Any) -> None:
    net = Tasks()
    h = net.trunk(inputs())
    h.retain_grad()
    a, b = h.split(3, 1)
    passes: list[int] = []
    net.trunk[2].register_full_backward_hook(lambda *_: passes.append(1))
    rows: list[Tensor] = []
    for loss in net.losses(h):
        g = torch.autograd.grad(loss, h, retain_graph=True)[0]
        rows.append(g.reshape(-1) if features_gram == "flatten" else g.sum(0))
    exact = reference.config(torch.stack(rows))
    h.grad = None
    c = weights(net.losses(h), h, features_gram=features_gram)
    assert h.grad is None
    assert relative_error(c @ torch.stack(rows), exact) <= 1e-9
    again = torch.cat([a, b], 1)
    by_parts = weights(net.losses(again), (a, b), features_gram=features_gram)
    torch.testing.assert_close(by_parts, c, rtol=1e-10, atol=0)
    assert not passes
    descend(net.losses(h), c)
    assert h.grad is not None


def test_hooks_do_not_run() -> None:
    net = Tasks()
    seen: list[Tensor] = []
    for par in net.parameters():
        par.register_hook(lambda g: seen.append(g))
        par.register_post_accumulate_grad_hook(lambda par: seen.append(par))
    h = net.trunk(inputs())
    h.register_hook(lambda g: seen.append(g))
    losses = net.losses(h)
    weights(losses, net.trunk[0])
    assert len(seen) == 3  # the hook of h, which is only passed
    seen.clear()
    weights(net.losses(h), h)
    c = weights(net(inputs()), net)
    assert not seen
    descend(losses, c)
    assert len(seen) == 2 * len(list(net.parameters())) + 1


def test_the_graph_is_kept_as_asked() -> None:
    net = Tasks()
    losses = net(inputs())
    weights(losses, net, retain_graph=False)
    with pytest.raises(ValueError, match=r"losses\[0\]: its graph is freed already"):
        weights(losses, net)
    h = net.trunk(inputs())
    losses = net.losses(h.exp())
    weights(losses, h, retain_graph=False)
    with pytest.raises(RuntimeError, match="second time"):
        torch.stack(losses).sum().backward()


def test_the_dtype_is_that_of_the_losses_and_float32_at_least() -> None:
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
        net = Tasks().to(dtype)
        assert weights(net(inputs().to(dtype)), net).dtype is wanted
    net = Tasks()
    losses = net(inputs())
    losses[0] = losses[0].float()
    assert weights(losses, net).dtype is torch.float64


def test_not_a_number_is_not_hidden() -> None:
    net = Tasks()
    losses = net(inputs())
    losses[1] = losses[1] * torch.nan
    assert weights(losses, net).isnan().all()


def test_rules_that_use_the_losses_and_rules_with_state() -> None:
    net = Tasks()
    losses = net(inputs())
    values = [float(loss.detach()) for loss in losses]
    rows = rows_of(losses, list(net.parameters()))
    logarithms = rows / torch.tensor(values, dtype=torch.float64)[:, None]
    c = weights(losses, net, LogLossesOperator(MGDA()))
    assert relative_error(c @ rows, MGDA.oracle(logarithms)) <= 1e-9
    one, other = GradVacOperator(shuffle=False), GradVacOperator(shuffle=False)
    for _ in range(3):
        losses = net(inputs())
        update = other.calculate_gradient(rows_of(losses, list(net.parameters())))
        descend(losses, weights(losses, net, one))
        assert relative_error(written(net), update) <= 1e-9  # type: ignore[arg-type]
        net.zero_grad()


def test_a_scaler() -> None:
    net, twin = Tasks().float(), None
    twin = copy.deepcopy(net)
    x = inputs().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    fastconfig.backward([scaler.scale(loss) for loss in twin(x)], twin)
    losses = net(x)
    scaler.scale((weights(losses, net) * torch.stack(losses)).sum()).backward()
    assert relative_error(written(net), written(twin).double()) <= 1e-4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler.unscale_(optimizer)
    exact = reference.config(rows_of(net(x), list(net.parameters())))
    assert relative_error(written(net), exact) <= 1e-4


def test_accumulation() -> None:
    net = Tasks()
    twin = copy.deepcopy(net)
    for step in range(3):
        x = inputs()
        losses = net(x)
        descend(losses, weights(losses, net))
        fastconfig.backward(twin(x), twin, accumulate=step > 0)
    assert relative_error(written(net), written(twin)) <= 1e-9


def test_a_compiled_model() -> None:
    torch.compiler.reset()
    net = Tasks()
    x = inputs()
    exact = reference.config(rows_of(net(x), list(net.parameters())))
    with torch._functorch.config.patch(donated_buffer=False):  # type: ignore[attr-defined]
        losses = torch.compile(net, backend="aot_eager")(x)
        descend(losses, weights(losses, net))
    assert relative_error(written(net), exact) <= 1e-9


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler looks at it
def test_a_compiled_step() -> None:
    torch.compiler.reset()
    net = Tasks()
    x = inputs()

    def step(x: Tensor) -> Tensor:
        losses = net(x)
        return weights(losses, net) * 2

    torch.testing.assert_close(torch.compile(step, backend="eager")(x), step(x))


class Chosen(WeightModel):
    def get_weights(self, gradients: Any = None, losses: Any = None) -> Any:
        return [1.0, 2.0, 3.0]


def of_shape_one(net: Tasks) -> Any:
    return weights([loss.reshape(1) for loss in net(inputs())], net)


REFUSED: dict[str, tuple[Callable[[Tasks], Any], type[Exception], str]] = {
    "one element": (of_shape_one, ValueError, r"losses\[0\]: got \(1,\), want a scalar of shape \(\)"),
    "momentum": (
        lambda net: weights(net(inputs()), net, PseudoMomentumOperator(3)),  # type: ignore[arg-type]
        TypeError,
        "operator: got .*PseudoMomentumOperator.*, want an operator without momentum",
    ),
    "own operator": (
        lambda net: weights(net(inputs()), net, Own()),
        TypeError,
        "operator: got a Own that must see the gradients, want",
    ),
    "own model": (
        lambda net: weights(net(inputs()), net, ConFIGOperator(Chosen())),
        TypeError,
        "operator: got a ConFIGOperator that must see the gradients, want",
    ),
    "unconnected": (
        lambda net: weights(net(inputs()), net.heads[0]),
        ValueError,
        r"losses\[1\]: got a loss that depends on none of the parameters",
    ),
    "no feature": (
        lambda net: weights(net(inputs()), net.trunk(inputs())),
        ValueError,
        r"losses\[0\]: got a loss that depends on none of the features",
    ),
    "both": (
        lambda net: weights(net(inputs()), [net.trunk(inputs()), net.trunk[0].weight]),
        ValueError,
        r"with_respect_to\[1\]: got a leaf, want an output of the trunk",
    ),
    "no batch": (
        lambda net: weights([s := net.trunk(inputs()).sum() * 1, 2 * s], s, features_gram="batch_sum"),
        ValueError,
        r"with_respect_to\[0\]: got shape \(\), want \(batch, ...\)",
    ),
    "no such gram": (
        lambda net: weights(net(inputs()), net, features_gram="sum"),  # type: ignore[arg-type]
        ValueError,
        "features_gram: got 'sum', want 'flatten' or 'batch_sum'",
    ),
    "nothing": (lambda net: weights(net(inputs()), []), ValueError, "with_respect_to: got 0 tensors"),
    "a frozen model": (
        lambda net: weights(net(inputs()), copy.deepcopy(net).requires_grad_(False)),
        ValueError,
        "with_respect_to: got 10 tensors and none that requires a gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, error, message = REFUSED[case]
    net = Tasks()
    with pytest.raises(error, match=message):
        make(net)
    assert all(par.grad is None for par in net.parameters())


def test_a_feature_that_depends_on_another() -> None:
    net = Tasks()
    h = net.trunk(inputs())
    later = torch.tanh(h)
    with pytest.raises(ValueError, match=r"with_respect_to\[1\]: .* computed from with_respect_to\[0\]"):
        weights(net.losses(h + later), [h, later])


def test_a_function_and_a_random_order() -> None:
    net = Tasks()
    losses = net(inputs())
    rows = rows_of(losses, list(net.parameters()))
    c = weights(losses, net, GramOperator(lambda gram: 1 / gram.diagonal().sqrt()))
    torch.testing.assert_close(c, 1 / rows.norm(dim=1), rtol=1e-12, atol=0)
    generator = torch.Generator().manual_seed(3)
    c = weights(losses, net, PCGradOperator(shuffle=True, generator=generator))
    order = torch.rand(3, 3, generator=torch.Generator().manual_seed(3)).argsort(-1)
    exact = reference.pcgrad(rows, order=order.tolist())
    assert relative_error(c @ rows, exact) <= 1e-9
    torch.testing.assert_close(c, ops.coefficients(ops.gram(rows), "pcgrad", order=order))
