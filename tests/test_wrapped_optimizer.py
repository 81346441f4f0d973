"""``PCGrad(optimizer)`` and ``PPCGrad(optimizer)`` wherever an optimizer is expected."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error, rows_of
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fastconfig import reference
from fastconfig.pcgrad import PCGrad, PPCGrad

pytestmark = pytest.mark.parametrize("kind", [PCGrad, PPCGrad])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


X = torch.randn(8, 4, dtype=torch.float64)


def losses_of(net: nn.Module, x: Tensor = X) -> list[Tensor]:
    y = net(x)
    return [y[:, 0].square().mean(), (y[:, 1] - 1).square().mean()]


def flat(net: nn.Module) -> Tensor:
    return torch.cat([par.detach().reshape(-1) for par in net.parameters()])


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_the_rate(kind: Any, name: str) -> None:
    def rates(wrap: Callable[[Any], Any]) -> list[float]:
        net = network()
        optimizer = wrap(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
        scheduler = SCHEDULERS[name](optimizer)
        found = []
        for _ in range(6):
            for par in net.parameters():
                par.grad = torch.zeros_like(par)
            optimizer.step()
            scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    assert rates(kind) == rates(lambda optimizer: optimizer)
    assert len(set(rates(kind))) > 1


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_skips_broken_steps_and_takes_the_others(kind: Any, fused: bool) -> None:
    net = network().float()
    optimizer = kind(torch.optim.Adam(net.parameters(), lr=0.01, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = flat(net)
    for broken, unscaled in ((False, False), (False, True), (True, False)):
        losses = losses_of(net, X.float())
        if broken:
            losses[0] = losses[0] * torch.inf
            before = flat(net)
        optimizer.zero_grad()
        optimizer.pc_backward([scaler.scale(value) for value in losses])
        if unscaled:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(flat(net), before) == broken
    assert scaler.get_scale() == 2.0**9


def test_states_go_there_and_back(kind: Any) -> None:
    net = network()
    optimizer = kind(torch.optim.Adam(net.parameters(), lr=0.1))
    optimizer.pc_backward(losses_of(net))
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other = kind(torch.optim.Adam(copy.deepcopy(net).parameters(), lr=0.7))
    other.load_state_dict(torch.load(buffer))
    assert other.param_groups[0]["lr"] == 0.1
    assert [int(state["step"]) for state in other.state.values()] == [1] * 4
    assert other.defaults["lr"] == 0.7


def test_the_wrapped_one_and_its_hooks_are_reached(kind: Any) -> None:
    net = network()
    plain = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer = kind(plain)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.optimizer is optimizer._optim is plain
    assert optimizer.param_groups is plain.param_groups
    seen: list[Any] = []
    optimizer.register_step_post_hook(lambda *given: seen.append(given[0]))
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.grad = torch.ones_like(extra)
    optimizer.zero_grad(set_to_none=False)
    assert extra.grad is not None
    assert not extra.grad.any()
    values = losses_of(net)
    optimizer.pc_backward([values[0] + extra.sum(), values[1]])
    optimizer.step()
    assert seen == [plain]
    assert extra.grad is not None
    assert torch.equal(extra.detach(), 1 - 0.5 * extra.grad)
    assert "SGD" in repr(optimizer)
    with pytest.raises(AttributeError, match="no attribute 'rate'"):
        kind().rate


def test_a_closure(kind: Any) -> None:
    net = network()
    optimizer = kind(torch.optim.LBFGS(net.parameters(), max_iter=3))

    def closure() -> Tensor:
        optimizer.zero_grad()
        values = losses_of(net)
        optimizer.pc_backward(values)
        return sum(values).detach()  # type: ignore[union-attr]

    before = float(closure())
    optimizer.step(closure)
    assert float(closure()) < before


def test_without_an_optimizer(kind: Any) -> None:
    for use in (
        lambda pcgrad: pcgrad.param_groups,
        lambda pcgrad: pcgrad.state_dict(),
        lambda pcgrad: pcgrad.step(),
        lambda pcgrad: pcgrad.pack_grad([torch.ones((), requires_grad=True)]),
    ):
        with pytest.raises(TypeError, match=rf"optimizer: got none, want {kind.__name__}\(optimizer\)"):
            use(kind())
    for wrong, got in ((torch.optim.SGD, "the class SGD"), (network(), "a Sequential")):
        with pytest.raises(TypeError, match=f"optimizer: got {got}, want a torch.optim.Optimizer"):
            kind(wrong)


def test_heads_in_an_optimizer_of_their_own(kind: Any, backend: str) -> None:
    """Parameters beside the wrapped optimizer's get the sum of their gradients, added to what is there."""
    encoder, heads = nn.Linear(4, 6).double(), nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)]).double()
    optimizer = kind(
        torch.optim.SGD(encoder.parameters(), lr=0.1),
        "sum",
        **({} if kind is PPCGrad else {"shuffle": False}),
    )

    def losses() -> list[Tensor]:
        z = torch.tanh(encoder(X))
        return [heads[0](z).square().mean(), (heads[1](z) - 1).square().mean() + heads[0](z).mean()]

    of_heads = rows_of(losses(), list(heads.parameters())).sum(0)
    oracle = reference.ppcgrad if kind is PPCGrad else reference.pcgrad
    merged = oracle(rows_of(losses(), list(encoder.parameters())))
    for step in range(1, 3):
        optimizer.zero_grad()
        optimizer.pc_backward(losses())
        found = torch.cat([par.grad.reshape(-1) for par in heads.parameters()])  # type: ignore[union-attr]
        assert relative_error(found, step * of_heads) <= 1e-12
        found = torch.cat([par.grad.reshape(-1) for par in encoder.parameters()])  # type: ignore[union-attr]
        assert relative_error(found, merged) <= 1e-9


def test_pack_grad_of_the_optimizers_parameters(kind: Any) -> None:
    net = network()
    optimizer = kind(torch.optim.SGD(net.parameters(), lr=0.1))
    grads, shapes, masks = optimizer.pack_grad(losses_of(net))
    assert torch.equal(torch.stack(grads), rows_of(losses_of(net), list(net.parameters())))
    assert shapes == [par.shape for par in net.parameters()]
    assert all(mask.all() for mask in masks)


def test_copies_belong_to_the_copied_network(kind: Any) -> None:
    net = network()
    optimizer = kind(torch.optim.Adam(net.parameters(), lr=0.1))
    lr_scheduler.StepLR(optimizer, 1)
    twin, copied = copy.deepcopy((net, optimizer))
    for one, opt in ((net, optimizer), (twin, copied)):
        torch.manual_seed(0)  # the order
        opt.pc_backward(losses_of(one))
        opt.step()
    assert torch.equal(flat(net), flat(twin))
    assert copied.param_groups[0]["params"][0] is next(twin.parameters())
