"""A whole training step on a CUDA device: captured, compiled, and in mixed precision."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import synchronisation
import torch
from inputs import relative_error
from torch import Tensor, nn

import fastconfig
from fastconfig import ConFIG_update
from fastconfig.utils import get_gradient_vector, get_para_vector

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

RATE = 0.05


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 3)).cuda()


def losses_of(outputs: Tensor, x: Tensor) -> list[Tensor]:
    return [(outputs[:, i] - torch.sin(x[:, i])).square().mean() for i in range(3)]


def test_a_whole_step_is_captured() -> None:
    net, x = network(), torch.randn(64, 3, device="cuda")
    twin = copy.deepcopy(net)

    def step(net: nn.Module) -> None:
        fastconfig.backward(losses_of(net(x), x), net)
        with torch.no_grad():
            for par in net.parameters():
                par.sub_(RATE * par.grad)

    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(net)
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            step(net)
    for _ in range(3):
        step(twin)
    for _ in range(20):
        x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        step(twin)
    moved, wanted = get_para_vector(net).cpu(), get_para_vector(twin).cpu()
    assert torch.isfinite(moved).all()
    assert relative_error(moved, wanted.double()) <= 1e-4


def test_backward_does_not_wait_for_the_device() -> None:
    net, x = network(), torch.randn(64, 3, device="cuda")
    fastconfig.backward(losses_of(net(x), x), net)
    losses = losses_of(net(x), x)
    with synchronisation.none():
        fastconfig.backward(losses, net)


def test_weights_do_not_wait_for_the_device() -> None:
    net, x = network(), torch.randn(64, 3, device="cuda")
    for within in (nullcontext, synchronisation.none):  # the first call loads and compiles
        losses = losses_of(net(x), x)
        with within():
            c = fastconfig.weights(losses, net)
            (c * torch.stack(losses)).sum().backward()
    found = get_gradient_vector(net)
    assert c.device == x.device
    fastconfig.backward(losses_of(net(x), x), net)
    assert relative_error(found / 2, get_gradient_vector(net).double()) <= 1e-4  # added up in two steps


@pytest.mark.filterwarnings("ignore")  # of inductor's own imports
def test_a_compiled_step() -> None:
    net, x = network(), torch.randn(64, 3, device="cuda")

    def moved(weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        def loss(weights: dict[str, Tensor], i: int) -> Tensor:
            return losses_of(torch.func.functional_call(net, weights, (x,)), x)[i]

        rows = [list(torch.func.grad(loss)(weights, i).values()) for i in range(3)]
        update = ConFIG_update(rows)
        return {name: par - RATE * g for (name, par), g in zip(weights.items(), update, strict=True)}

    torch.compiler.reset()
    run = torch.compile(moved, fullgraph=True)
    weights = eager = {name: par.detach() for name, par in net.named_parameters()}
    for _ in range(10):
        weights, eager = run(weights, x), moved(eager, x)
    for name, value in weights.items():
        assert relative_error(value.cpu(), eager[name].double().cpu()) <= 1e-4, name


@pytest.mark.parametrize("broken", [False, True])
def test_a_scaler(broken: bool) -> None:
    net, x = network(), torch.randn(64, 3, device="cuda")
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    before = get_para_vector(net)
    with torch.autocast("cuda", torch.float16):
        outputs = net(x)
    losses = losses_of(outputs.float(), x)
    if broken:
        losses[1] = losses[1] * torch.inf
    fastconfig.backward([scaler.scale(value) for value in losses], net)
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0 ** (9 if broken else 10)
    assert torch.equal(get_para_vector(net), before) == broken


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_parameters_on_two_devices_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 5).to("cuda:0"), nn.Linear(5, 1).to("cuda:1"))
    loss = net[1](net[0](torch.randn(4, 3, device="cuda:0")).to("cuda:1")).square().mean()
    with pytest.raises(ValueError, match="device"):
        fastconfig.backward([loss], net)
    assert all(par.grad is None for par in net.parameters())
