"""Operators with groups, ways to group the parameters of a network, and the oracle's update of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from inputs import relative_error, rows_of
from torch import Tensor, nn

import fastconfig
from fastconfig import (
    CAGradOperator,
    ConFIGOperator,
    EveryOperator,
    GradVacOperator,
    GramOperator,
    IMTLGOperator,
    LogLossesOperator,
    MGDAOperator,
    PCDOperator,
    PCGradOperator,
    PPCGradOperator,
    RandomOperator,
    TrackMinimum,
    UPGradOperator,
    WeightModel,
    aggregation,
    backward,
    reference,
)
from fastconfig.methods import MGDA

M = 3


class Inverse(WeightModel):
    """A user's own: it sees the rows."""

    def get_weights(self, gradients: Tensor, losses: Any = None, device: Any = None) -> Tensor:
        return 1 / gradients.norm(dim=1)


def source() -> torch.Generator:
    return torch.Generator().manual_seed(3)


#: an operator, made with a source of random numbers
MAKERS: dict[str, Callable[[torch.Generator], Any]] = {
    "config": lambda _: ConFIGOperator(),
    "a length": lambda _: ConFIGOperator(length_model=TrackMinimum()),
    "a user's weights": lambda _: ConFIGOperator(Inverse()),
    "pcgrad": lambda _: PCGradOperator(),
    "pcgrad, random": lambda generator: PCGradOperator(shuffle=True, generator=generator),
    "ppcgrad": lambda _: PPCGradOperator(),
    "imtlg": lambda _: IMTLGOperator(),
    "upgrad": lambda _: UPGradOperator(),
    "cagrad": lambda _: CAGradOperator(),
    "a function": lambda _: GramOperator(lambda gram: 1 / gram.diagonal().sqrt()),
    "log losses": lambda _: LogLossesOperator(MGDA()),
    "random": lambda generator: RandomOperator(generator=generator),
    "gradvac": lambda generator: GradVacOperator(generator=generator),
    "pcd": lambda _: PCDOperator(),
    "every": lambda _: EveryOperator(MGDAOperator(), 2),
    "every gradvac": lambda generator: EveryOperator(GradVacOperator(generator=generator), 2),
    "an aggregator": lambda _: aggregation.UPGrad(),
    "a stateful aggregator": lambda _: aggregation.GradVac(),
}


SHAPES = [(4, 5), (7,), (), (3, 2, 2), (6,), (1, 8)]


def drawn(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[list[Any]]:
    return [[torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(M)]


def grouped(operator: Any, groups: Any = "parameter") -> Any:
    operator.groups = groups
    return operator


def assert_bits(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        self.decoder = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x))) * self.scale  # type: ignore[no-any-return]


def losses_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = net(x)
    return [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean(), y[:, 2].exp().mean()]


def network() -> Net:
    return Net().double()


BY_PART = {
    "encoder": ["encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias"],
    "decoder": ["decoder.weight", "decoder.bias"],
    "rest": ["scale", "unused", "frozen"],
}


BY_MODULE = {
    "encoder.0": ["encoder.0.weight", "encoder.0.bias"],
    "encoder.2": ["encoder.2.weight", "encoder.2.bias"],
    "decoder": ["decoder.weight", "decoder.bias"],
    "": ["scale", "unused"],
}


#: groups of a network, and the names in each
WAYS: dict[str, tuple[Callable[[Net], Any], dict[str, list[str]]]] = {
    "parameter": (lambda net: "parameter", {name: [name] for name, _ in Net().named_parameters()}),
    "module": (lambda net: "module", BY_MODULE),
    "names": (lambda net: BY_PART, BY_PART),
    "modules by name": (
        lambda net: {"encoder": ["encoder"], "decoder": "decoder", "rest": ["scale", "unused", "frozen"]},
        BY_PART,
    ),
    "parameters": (
        lambda net: {
            "encoder": net.encoder.parameters(),
            "decoder": net.decoder,
            "rest": [net.scale, "unused", net.frozen],
        },
        BY_PART,
    ),
    "function": (
        lambda net: lambda name: name.partition(".")[0] if "coder" in name else "rest",
        BY_PART,
    ),
}


def exact(net: Net, x: Tensor, groups: dict[str, list[str]]) -> dict[str, Tensor]:
    """The oracle's update by names."""
    named, found = dict(net.named_parameters()), {}
    for names in groups.values():
        reached = [name for name in names if name not in ("unused", "frozen")]
        if reached:
            parameters = [named[name] for name in reached]
            update = reference.config(rows_of(losses_of(net, x), parameters))
            sizes = [par.numel() for par in parameters]
            for name, piece in zip(reached, update.split(sizes), strict=True):
                found[name] = piece.view(named[name].shape)
    return found


def assert_written(net: Net, wanted: dict[str, Tensor], factor: float = 1) -> None:
    grads = {name: par.grad for name, par in net.named_parameters() if par.grad is not None}
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        assert relative_error(grad, factor * wanted[name]) <= 1e-9, name


def by_backward(net: Net, x: Tensor, operator: Any) -> None:
    backward(losses_of(net, x), net, operator)


def by_lists(net: Net, x: Tensor, operator: Any) -> None:
    parameters = list(net.parameters())
    rows = []
    for loss in losses_of(net, x):
        asked = [par for par in parameters if par.requires_grad]
        grads = iter(torch.autograd.grad(loss, asked, retain_graph=True, allow_unused=True))
        rows.append([next(grads) if par.requires_grad else None for par in parameters])
    operator.update_gradient(net, rows)


def by_vectors(net: Net, x: Tensor, operator: Any) -> None:
    rows = []
    for loss in losses_of(net, x):
        net.zero_grad()
        loss.backward(retain_graph=True)
        rows.append(fastconfig.get_gradient_vector(net))
    operator.update_gradient(net, rows)
