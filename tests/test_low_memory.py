"""``memory="low"``: G from some of the parameters at a time, then one weighted pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from inputs import relative_error, rows_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastconfig import (
    ConFIGOperator,
    EveryOperator,
    GradientOperator,
    GradVacOperator,
    LogLossesOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    TrackMinimum,
    backward,
    mtl_backward,
    reference,
)
from fastconfig.methods import MGDA
from fastconfig.training import low_memory, step

pytestmark = pytest.mark.usefixtures("backend")


class Net(nn.Module):
    """With what depends on the batch, on chance, and on a second forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))
        self.second = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.last = nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h: Any = checkpoint(self.second, self.first(x), use_reentrant=False)
        return self.last(h)  # type: ignore[no-any-return]


def losses_of(y: Tensor) -> list[Tensor]:
    return [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean(), y[:, 2].exp().mean()]


OPERATORS: dict[str, tuple[Any, Any]] = {
    "config": (ConFIGOperator, reference.config),
    "a length": (
        lambda: ConFIGOperator(length_model=TrackMinimum()),
        lambda r: reference.config(r, length="minimum"),
    ),
    "pcgrad": (PCGradOperator, reference.pcgrad),
    "gradvac": (
        lambda: GradVacOperator(shuffle=False),
        lambda rows: GradVacOperator(shuffle=False)._rule.oracle(rows),
    ),
    "every": (lambda: EveryOperator(ConFIGOperator(), 3), reference.config),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_merged_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With BatchNorm, dropout and a checkpoint; no more than a third of the parameters at a time."""
    make, oracle = OPERATORS[name]
    net = Net()
    counts: list[int] = []
    passes = low_memory.passes

    def counted(values: Any, chunk: list[Tensor], keep: Any) -> Any:
        counts.append(sum(par.numel() for par in chunk))
        return passes(values, chunk, keep)

    monkeypatch.setattr(low_memory, "passes", counted)
    losses = losses_of(net(torch.randn(16, 4, dtype=torch.float64)))
    statistics = [value.clone() for value in net.buffers()]
    parameters = list(net.parameters())
    exact = oracle(rows_of(losses, parameters))
    backward(losses, net, make(), memory="low")
    grads = [torch.zeros_like(par) if par.grad is None else par.grad for par in parameters]
    assert net.unused.grad is None
    assert relative_error(torch.cat([g.reshape(-1) for g in grads]), exact) <= 1e-9
    assert all(torch.equal(a, b) for a, b in zip(statistics, net.buffers(), strict=True))
    n = sum(par.numel() for par in parameters)
    assert sum(counts) == n
    assert max(counts) <= max(n // 3, *(par.numel() for par in parameters))


@pytest.fixture
def _kept_buffers() -> Iterator[None]:
    """Compiled graphs may be gone through several times."""
    with torch._functorch.config.patch(donated_buffer=False):  # type: ignore[attr-defined]
        torch.compiler.reset()
        yield


@pytest.mark.usefixtures("_kept_buffers")
def test_compiled_parts_and_accumulation() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    compiled: Any = torch.compile(net, backend="aot_eager")
    x = torch.randn(5, 4, dtype=torch.float64)
    exact = reference.config(rows_of(losses_of(net(x)), list(net.parameters())))
    for accumulate in (False, True):
        losses = losses_of(compiled(x))
        backward(losses, compiled, memory="low", accumulate=accumulate, retain_graph=True)
        found = torch.cat([par.grad.reshape(-1) for par in net.parameters()])  # type: ignore[union-attr]
        assert relative_error(found, (1 + accumulate) * exact) <= 1e-9
    logs = losses_of(net(x))
    rows = rows_of(logs, list(net.parameters())) / torch.stack(logs).detach()[:, None]
    backward(logs, net, LogLossesOperator(MGDA()), memory="low")
    found = torch.cat([par.grad.reshape(-1) for par in net.parameters()])  # type: ignore[union-attr]
    assert relative_error(found, MGDA.oracle(rows)) <= 1e-9


def test_mixed_precision() -> None:
    """Under autocast the weighted pass rounds as each loss's own pass does."""
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(32, 8))
    losses = [1024 * loss for loss in losses_of(y.float())]
    parameters = list(net.parameters())
    exact = reference.config(rows_of(losses, parameters))
    backward(losses, net, memory="low")
    found = torch.cat([par.grad.reshape(-1) for par in parameters])  # type: ignore[union-attr]
    assert relative_error(found, exact) <= 32 * torch.finfo(torch.bfloat16).eps


def test_what_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    losses = losses_of(net(torch.randn(5, 4)))

    class Own(GradientOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            return grads.sum(0)

    grouped = ConFIGOperator()
    grouped.groups = "parameter"
    for operator, error, message in (
        (Own(), TypeError, "operator: got a Own that must see the gradients"),
        (PseudoMomentumOperator(3), TypeError, "operator: got a PseudoMomentumOperator that must see"),
        (grouped, ValueError, "operator: got one with groups, want groups = None: memory='low'"),
    ):
        with pytest.raises(error, match=message):
            backward(losses, net, operator, memory="low")
    with pytest.raises(ValueError, match="memory: got 'none', want None or 'low'"):
        backward(losses, net, memory="none")  # type: ignore[arg-type]
    other: Any = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=r"losses\[1\]: got a loss that depends on none of the parameters"):
        backward([losses[0], other.sum()], net, memory="low", retain_graph=True)
    handle = net[0].weight.register_hook(lambda gradient: gradient.clamp(max=1))
    with pytest.raises(ValueError, match="memory: got 'low' and a hook on parameter 0 of shape"):
        backward(losses, net, memory="low")
    handle.remove()
    assert all(par.grad is None for par in net.parameters())
    backward(losses, net, memory="low")


class Tasks(nn.Module):
    """A trunk with two outputs, of which the first head reads one and the others both."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8))
        self.heads = nn.ModuleList([nn.Linear(n, 1) for n in (3, 8, 8)])
        self.double()

    def losses(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        first, second = self.trunk(x).tanh().split([3, 5], 1)
        both = torch.cat([first, second], 1)
        outputs = [self.heads[0](first), self.heads[1](both), self.heads[2](both)]
        return [first, second], [(y - k).square().mean() for k, y in enumerate(outputs)]


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_trunk(name: str, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged as ever, a third of its parameters at a time; heads have their own; one more step adds."""
    make, oracle = OPERATORS[name]
    net = Tasks()
    trunk, heads = list(net.trunk.parameters()), list(net.heads.parameters())
    counts: list[int] = []
    rows_behind = step.rows_behind

    def counted(features: Any, ends: Any, chunk: list[Tensor]) -> Any:
        counts.append(sum(par.numel() for par in chunk))
        return rows_behind(features, ends, chunk)

    monkeypatch.setattr(step, "rows_behind", counted)
    x = torch.randn(16, 4, dtype=torch.float64)
    losses = net.losses(x)[1]
    exact, own = oracle(rows_of(losses, trunk)), rows_of(losses, heads).sum(0)
    features, losses = net.losses(x)
    parts = (net.trunk, net.heads) if given else ()
    operator = make()
    mtl_backward(losses, features, *parts, operator=operator, memory="low", retain_graph=True)
    n = sum(par.numel() for par in trunk)
    assert sum(counts) == n
    assert max(counts) <= max(n // 3, *(par.numel() for par in trunk))
    for accumulate in (False, True):
        if accumulate:
            mtl_backward(losses, features, *parts, operator=make(), memory="low", accumulate=True)
        for parameters, wanted in ((trunk, exact), (heads, own)):
            found = torch.cat([par.grad.reshape(-1) for par in parameters])  # type: ignore[union-attr]
            assert relative_error(found, (1 + accumulate) * wanted) <= 1e-9


def test_a_trunk_merged_at_its_features_is_as_ever() -> None:
    net, x = Tasks(), torch.randn(16, 4, dtype=torch.float64)
    found = []
    for memory in (None, "low"):
        features, losses = net.losses(x)
        mtl_backward(losses, features, gram="features", memory=memory)  # type: ignore[arg-type]
        found.append(torch.cat([par.grad.reshape(-1).clone() for par in net.parameters()]))  # type: ignore[union-attr]
    assert torch.equal(*found)


def test_what_is_refused_of_a_trunk() -> None:
    net = Tasks()
    features, losses = net.losses(torch.randn(16, 4, dtype=torch.float64))
    for memory, operator, error, message in (
        ("low", PseudoMomentumOperator(3), TypeError, "operator: got a PseudoMomentumOperator that must see"),
        ("small", ConFIGOperator(), ValueError, "memory: got 'small', want None or 'low'"),
    ):
        with pytest.raises(error, match=message):
            mtl_backward(losses, features, operator=operator, memory=memory)  # type: ignore[arg-type]
    handle = net.trunk[0].weight.register_hook(lambda gradient: gradient.clamp(max=1))
    with pytest.raises(ValueError, match="memory: got 'low' and a hook on parameter"):
        mtl_backward(losses, features, memory="low")
    handle.remove()
    elsewhere = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"losses\[0\]: got a loss that depends on none of the parameters"):
        mtl_backward(losses, features, elsewhere, net.heads, memory="low", retain_graph=True)
    assert all(par.grad is None for par in net.parameters())
    mtl_backward(losses, features, memory="low")


def test_a_monitor_sees_the_step() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    losses = losses_of(net(torch.randn(5, 4, dtype=torch.float64)))
    rows = rows_of(losses, list(net.parameters()))

    class Monitor:
        def record(self, gram: Tensor, c: Tensor, values: Any) -> None:
            self.step = gram, c, values

    operator = ConFIGOperator()
    operator.monitor = monitor = Monitor()
    backward(losses, net, operator, memory="low")
    gram, c, values = monitor.step
    assert relative_error(gram, reference.gram(rows)) <= 1e-12
    assert relative_error(c @ rows, reference.config(rows)) <= 1e-9
    assert [value.item() for value in values] == [loss.item() for loss in losses]
