"""What people do with a network, on a CUDA device and on the CPU, in float64: the same answers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from inputs import relative_error
from torch import Tensor, nn
from watching import by_hand, check, some

import fastconfig
from fastconfig import aggregation, methods, pcgrad, reference
from fastconfig.methods import GramOperator
from fastconfig.momentum_operator import PseudoMomentumOperator, SeparateMomentumOperator
from fastconfig.monitor import Monitor
from fastconfig.utils import apply_gradient_vector, get_gradient_vector, get_para_vector

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
pytestmark = [] if ON_GPU else pytest.mark.slow
LOSSES, RATE, STEPS = 4, 0.05, 4
Flow = Callable[[nn.ModuleDict, Tensor], Iterator[Tensor]]


def network() -> nn.ModuleDict:
    """A convolutional trunk, channels last, and a head a loss."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten(), nn.Tanh()
    )
    heads = nn.ModuleList(nn.Linear(64, 2) for _ in range(LOSSES))
    net = nn.ModuleDict({"trunk": trunk, "heads": heads}).double()
    return net.to(memory_format=torch.channels_last)


def outputs(net: nn.ModuleDict, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    features = net["trunk"](x)
    wanted = [torch.sin((i + 1) * x.mean((1, 2, 3))) for i in range(LOSSES)]
    return features, [
        (head(features)[:, 0] - y).square().mean()
        for head, y in zip(net["heads"], wanted, strict=True)  # type: ignore[arg-type]
    ]


def losses_of(net: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    return outputs(net, x)[1]


def moved(net: nn.Module) -> Tensor:
    """A step of gradient descent, and where the parameters are then."""
    with torch.no_grad():
        for par in net.parameters():
            if par.grad is not None:
                par.sub_(RATE * par.grad)
                par.grad = None
    return get_para_vector(net)


def by_backward(operator: Callable[[], Any]) -> Flow:
    def flow(net: nn.ModuleDict, x: Tensor) -> Iterator[Tensor]:
        made = operator()
        for _ in range(STEPS):
            fastconfig.backward(losses_of(net, x), net, made)
            yield moved(net)

    return flow


def by_vectors(net: nn.ModuleDict, x: Tensor) -> Iterator[Tensor]:
    """conflictfree's loop."""
    for _ in range(STEPS):
        rows = []
        for loss in losses_of(net, x):
            net.zero_grad()
            loss.backward(retain_graph=True)
            rows.append(get_gradient_vector(net, none_grad_mode="zero"))
        apply_gradient_vector(net, fastconfig.ConFIG_update(rows), none_grad_mode="zero")
        yield moved(net)


def by_momentum(make: Callable[[int], Any]) -> Flow:
    def flow(net: nn.ModuleDict, x: Tensor) -> Iterator[Tensor]:
        operator = make(LOSSES)
        for step in range(3 * LOSSES):
            i = step % LOSSES
            net.zero_grad()
            losses_of(net, x)[i].backward()
            operator.update_gradient(
                net, i, get_gradient_vector(net, none_grad_mode="zero"), none_grad_mode="zero"
            )
            if step == LOSSES + 1:  # to a file, and back
                state, operator = copy.deepcopy(operator.state_dict()), make(LOSSES)
                operator.load_state_dict(state)
            yield moved(net)

    return flow


def by_pcgrad(kind: type, reduction: str) -> Flow:
    def flow(net: nn.ModuleDict, x: Tensor) -> Iterator[Tensor]:
        optimizer = kind(torch.optim.Adam(net.parameters(), lr=RATE), reduction=reduction)
        for _ in range(STEPS):
            torch.manual_seed(7)  # of PCGrad's order
            optimizer.zero_grad()
            optimizer.pc_backward(losses_of(net, x))
            optimizer.step()
            yield get_para_vector(net)

    return flow


def by_weights(what: Callable[[nn.ModuleDict, Tensor], Any]) -> Flow:
    def flow(net: nn.ModuleDict, x: Tensor) -> Iterator[Tensor]:
        for _ in range(STEPS):
            features, losses = outputs(net, x)
            c = fastconfig.weights(losses, what(net, features))
            (c * torch.stack(losses)).sum().backward()
            yield c
            yield moved(net)

    return flow


def by_trunk(gram: str) -> Flow:
    def flow(net: nn.ModuleDict, x: Tensor) -> Iterator[Tensor]:
        for _ in range(STEPS):
            features, losses = outputs(net, x)
            fastconfig.mtl_backward(losses, features, gram=gram)
            yield moved(net)

    return flow


def by_aggregators(net: nn.ModuleDict, x: Tensor) -> Iterator[Tensor]:
    jacobian = x.reshape(LOSSES, -1)
    for name in aggregation.__all__:
        if name in (
            "UPGrad",
            "MGDA",
            "DualProj",
            "CAGrad",
            "NashMTL",
            "AlignedMTL",
            "ConFIG",
            "IMTLG",
            "Mean",
            "Sum",
        ):
            more: dict[str, Any] = {"c": 0.4} if name == "CAGrad" else {}
            more |= {"n_tasks": LOSSES} if name == "NashMTL" else {}
            yield getattr(aggregation, name)(**more)(jacobian)


def by_groups(make: Callable[[], Any], groups: Any) -> Flow:
    def grouped() -> Any:
        operator = make()
        operator.groups = groups
        return operator

    return by_backward(grouped)


FLOWS: dict[str, Flow] = {
    "vectors": by_vectors,
    "groups of ConFIG": by_groups(fastconfig.ConFIGOperator, "module"),
    "groups of UPGrad": by_groups(fastconfig.UPGradOperator, "parameter"),
    "groups of GradVac": by_groups(lambda: fastconfig.GradVacOperator(shuffle=False), "module"),
    "every": by_backward(lambda: fastconfig.EveryOperator(methods.UPGrad(), 2)),
    "log losses": by_backward(lambda: fastconfig.LogLossesOperator(methods.MGDA())),
    "weights of the model": by_weights(lambda net, features: net),
    "weights of a layer": by_weights(lambda net, features: list(net["trunk"][2].parameters())),  # type: ignore[index]
    "weights of the features": by_weights(lambda net, features: features),
    "trunk": by_trunk("parameters"),
    "trunk by features": by_trunk("features"),
    "momentum": by_momentum(PseudoMomentumOperator),
    "separate momentum": by_momentum(SeparateMomentumOperator),
    "momentum of UPGrad": by_momentum(
        lambda m: PseudoMomentumOperator(m, gradient_operator=fastconfig.UPGradOperator())
    ),
    "PCGrad": by_pcgrad(pcgrad.PCGrad, "mean"),
    "PPCGrad": by_pcgrad(pcgrad.PPCGrad, "sum"),
    "aggregators": by_aggregators,
    **{
        f"backward by {name}": by_backward(lambda rule=rule: GramOperator(rule()))
        for name, rule in methods.RULES.items()
        if name not in ("random", "constant")
    },
}


def followed(flow: Flow, device: torch.device, net: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    own = copy.deepcopy(net).to(device)
    return [tensor.detach().cpu() for tensor in flow(own, x.to(device))]


@pytest.mark.parametrize("name", FLOWS)
def test_the_same_as_on_the_cpu(name: str) -> None:
    net, x = network(), torch.randn(LOSSES * 4, 3, 11, 11, dtype=torch.float64)
    with fastconfig.use_backend("pytorch"):
        wanted = followed(FLOWS[name], torch.device("cpu"), net, x)
    found = followed(FLOWS[name], DEVICE, net, x)
    assert len(found) == len(wanted)
    for step, (ours, exact) in enumerate(zip(found, wanted, strict=True)):
        assert relative_error(ours, exact) <= 1e-8, step


@pytest.mark.parametrize("groups", [None, "parameter"])
@pytest.mark.skipif(not ON_GPU, reason="no CUDA device")
def test_a_monitor_within_a_cuda_graph(groups: str | None) -> None:
    """Each replay is a step of the gradients of then; the capture is none."""
    operator = fastconfig.ConFIGOperator()
    operator.groups = groups
    operator.monitor = monitor = Monitor()
    given = [[torch.empty(n, dtype=torch.float64, device=DEVICE) for n in (70, 25)] for _ in range(3)]
    wanted: list[list[dict[str, Any]]] = []

    def refill() -> None:
        drawn = [some(n).to(DEVICE) for n in (70, 25)]
        for i, row in enumerate(given):
            for tensor, rows in zip(row, drawn, strict=True):
                tensor.copy_(rows[i])
        pieces = drawn if groups else [torch.cat(drawn, 1)]
        wanted.append([by_hand(rows.cpu(), reference.config(rows.cpu())) for rows in pieces])

    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            refill()
            operator.calculate_gradient(given)
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            operator.calculate_gradient(given)
        for _ in range(4):
            refill()
            graph.replay()
        refill()
        operator.calculate_gradient(given)
    monitors = monitor.groups.values() if groups else [monitor]
    for monitored, steps in zip(monitors, zip(*wanted, strict=True), strict=True):
        check(monitored, list(steps))


def test_streams_and_threads_do_not_meet() -> None:
    """Each thread, on a stream of its own where there are some, gets the update of its own gradients."""
    wrong: list[int] = []

    def work(k: int) -> None:
        rows = torch.randn(3 + k, 2000, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        wanted = fastconfig.reference.config(rows)
        given, stream = rows.to(DEVICE), torch.cuda.Stream() if ON_GPU and k % 2 else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        for _ in range(50):
            with torch.cuda.stream(stream):
                update = fastconfig.ConFIG_update(given)
                if relative_error(update.cpu(), wanted) > 1e-9:
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
