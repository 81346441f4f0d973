"""Whole loops: one path for every way to write them, and beside scalers, accumulation and clipping."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error
from torch import Tensor, nn

import fastconfig
from fastconfig import ConFIG_update, ConFIGOperator, apply_gradient_vector, get_gradient_vector, use_backend

STEPS, RATE = 50, 0.05


class Job:
    """Three losses that pull one network in different directions; the same for every way to train it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.network = nn.Sequential(
            nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)
        )
        self.network.to(dtype)
        self.x = torch.randn(64, 3, dtype=dtype)
        self.start = {name: par.detach().clone() for name, par in self.network.named_parameters()}

    def loss(self, i: int, outputs: Tensor, x: Tensor) -> Tensor:
        return (outputs[:, i] - torch.sin(x.roll(i, 1)[:, 0])).square().mean()

    def losses(self, x: Tensor) -> list[Tensor]:
        outputs = self.network(x)
        return [self.loss(i, outputs, x) for i in range(3)]

    def train(self, step: Callable[[Job], None], x: Tensor | None = None) -> Tensor:
        """All parameters after STEPS steps from the start."""
        with torch.no_grad():
            for name, par in self.network.named_parameters():
                par.copy_(self.start[name])
                par.grad = None
        given, self.x = self.x, self.x if x is None else x
        for _ in range(STEPS):
            step(self)
        self.x = given
        return torch.cat([par.detach().reshape(-1) for par in self.network.parameters()])

    @torch.no_grad()
    def descend(self) -> None:
        for par in self.network.parameters():
            assert par.grad is not None
            par -= RATE * par.grad


def flat(job: Job) -> None:
    """conflictfree's documented loop on this package."""
    grads = []
    for value in job.losses(job.x):
        job.network.zero_grad()
        value.backward(retain_graph=True)
        grads.append(get_gradient_vector(job.network))
    apply_gradient_vector(job.network, ConFIG_update(grads))
    job.descend()


def accelerated(job: Job) -> None:
    """The same, written for conflictfree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from conflictfree.grad_operator import ConFIGOperator as Theirs
        from conflictfree.utils import get_gradient_vector as their_vector
    assert Theirs is ConFIGOperator
    grads = []
    for value in job.losses(job.x):
        job.network.zero_grad()
        value.backward(retain_graph=True)
        grads.append(their_vector(job.network))
    Theirs().update_gradient(job.network, grads)
    job.descend()


def per_parameter(job: Job) -> None:
    parameters = list(job.network.parameters())
    grads = [torch.autograd.grad(v, parameters, retain_graph=True) for v in job.losses(job.x)]
    ConFIGOperator().update_gradient(job.network, grads)
    job.descend()


def direct(job: Job) -> None:
    fastconfig.backward(job.losses(job.x), job.network)
    job.descend()


def compiled(job: Job) -> Callable[[Job], None]:
    """Losses, their gradients, merging and the step of the weights as one graph."""

    def moved(weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        def loss(weights: dict[str, Tensor], i: int) -> Tensor:
            return job.loss(i, torch.func.functional_call(job.network, weights, (x,)), x)

        rows = [list(torch.func.grad(loss)(weights, i).values()) for i in range(3)]
        update: Any = ConFIG_update(rows)
        return {name: par - RATE * g for (name, par), g in zip(weights.items(), update, strict=True)}

    torch.compiler.reset()
    run = torch.compile(moved, fullgraph=True, backend="aot_eager")

    def step(job: Job) -> None:
        weights = {name: par.detach() for name, par in job.network.named_parameters()}
        with torch.no_grad():
            for par, value in zip(job.network.parameters(), run(weights, job.x).values(), strict=True):
                par.copy_(value)

    return step


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_way_takes_the_same_path(dtype: torch.dtype, backend: str) -> None:
    job = Job(dtype)
    wanted = job.train(flat)
    moved = (wanted - torch.cat([par.reshape(-1) for par in job.start.values()])).norm()
    assert moved > 1e-2 * wanted.norm()
    if dtype is torch.float64:
        bound = 1e-10
    else:  # the same sums in another order: what differs from run to run where torch is not deterministic
        bound = 10 * relative_error(job.train(flat, job.x[torch.randperm(len(job.x))]), wanted.double())
        assert bound > 0
    ways: dict[str, Callable[[Job], None]] = {"per parameter": per_parameter, "backward": direct}
    found = {name: job.train(step) for name, step in ways.items()}
    found["compiled"] = job.train(compiled(job))
    with fastconfig.accelerate():
        found["accelerated"] = job.train(accelerated)
    for name, parameters in found.items():
        assert torch.isfinite(parameters).all(), name
        assert relative_error(parameters, wanted.double()) <= bound, name


def autocast_losses(job: Job) -> list[Tensor]:
    with torch.autocast("cpu", torch.float16):
        outputs = job.network(job.x)
    return [job.loss(i, outputs.float(), job.x) for i in range(3)]


def test_scaled_gradients_give_the_scaled_update(backend: str) -> None:
    """A power of two, as the scaler's are: unscaled, the update has the same bits as without."""
    job = Job(torch.float32)
    fastconfig.backward(job.losses(job.x), job.network)
    wanted = get_gradient_vector(job.network)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(job.network.parameters(), lr=RATE)
    fastconfig.backward([scaler.scale(value) for value in job.losses(job.x)], job.network)
    scaled = get_gradient_vector(job.network)
    assert relative_error(scaled / 2**12, wanted.double()) <= 1e-6
    assert torch.equal(scaled / 2**12, wanted)
    scaler.unscale_(optimizer)
    assert torch.equal(get_gradient_vector(job.network), scaled / 2**12)


def test_training_in_float16_with_a_scaler(backend: str) -> None:
    job = Job(torch.float32)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(job.network.parameters(), lr=RATE)
    first = [float(value.detach()) for value in job.losses(job.x)]
    for _ in range(STEPS):
        fastconfig.backward([scaler.scale(value) for value in autocast_losses(job)], job.network)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(job.network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    for before, after in zip(first, job.losses(job.x), strict=True):
        assert float(after.detach()) < before


@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_a_broken_loss_makes_the_scaler_skip_the_step(backend: str, broken: float) -> None:
    job = Job(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = torch.optim.SGD(job.network.parameters(), lr=RATE)
    before = {name: par.detach().clone() for name, par in job.network.named_parameters()}
    losses = job.losses(job.x)
    losses[1] = losses[1] * broken
    fastconfig.backward([scaler.scale(value) for value in losses], job.network)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**7
    for name, par in job.network.named_parameters():
        assert torch.equal(par.detach(), before[name])


def test_clipping_and_accumulation(backend: str) -> None:
    job = Job(torch.float64)
    parts = job.x.split(16)
    total = torch.zeros_like(get_gradient_vector(job.network, none_grad_mode="zero"))
    for part in parts:
        fastconfig.backward(job.losses(part), job.network)
        total += get_gradient_vector(job.network)
    for k, part in enumerate(parts):
        fastconfig.backward(job.losses(part), job.network, accumulate=k > 0)
    norm = torch.nn.utils.clip_grad_norm_(job.network.parameters(), 1e-3)
    assert relative_error(norm, total.norm()) <= 1e-12
    clipped = get_gradient_vector(job.network)
    assert relative_error(clipped, total * 1e-3 / (total.norm() + 1e-6)) <= 1e-9


def test_tied_and_frozen_parameters(backend: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net[2].weight = net[0].weight
    net[4].bias.requires_grad_(False)
    x = torch.randn(8, 4, dtype=torch.float64)

    def losses() -> list[Tensor]:
        outputs = net(x)
        return [(outputs[:, i] - i).square().mean() for i in range(2)]

    grads = []
    for value in losses():
        net.zero_grad()
        value.backward(retain_graph=True)
        grads.append(get_gradient_vector(net))
    wanted = fastconfig.reference.config(torch.stack(grads))
    net.zero_grad()
    fastconfig.backward(losses(), net)
    assert net[4].bias.grad is None
    assert relative_error(get_gradient_vector(net), wanted) <= 1e-9


#: docs/training.md names those whose update does not grow with the losses; unscale_ would shrink it
NOT_SCALED: dict[str, Callable[[], Any]] = {
    "FairGradOperator": fastconfig.FairGradOperator,
    "NashMTLOperator": fastconfig.NashMTLOperator,
    "LogLossesOperator": lambda: fastconfig.LogLossesOperator(fastconfig.methods.MGDA()),
    "PseudoMomentumOperator": lambda: fastconfig.PseudoMomentumOperator(3),
    "SeparateMomentumOperator": lambda: fastconfig.SeparateMomentumOperator(3),
}
SCALED: dict[str, Callable[[], Any]] = {
    f"{kind}Operator": getattr(fastconfig, f"{kind}Operator")
    for kind in fastconfig.methods.METHODS.values()
    if kind not in ("FairGrad", "NashMTL", "Constant")
}


@pytest.mark.parametrize("name", [*SCALED, *NOT_SCALED])
def test_which_updates_grow_with_a_scaler(name: str, seed: int) -> None:
    job = Job(torch.float64)
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(seed)  # for random orders
        operator = (SCALED | NOT_SCALED)[name]()
        fastconfig.backward([scale * loss for loss in job.losses(job.x)], job.network, operator)
        found.append(get_gradient_vector(job.network))
    # Adam's epsilon counts against short gradients
    assert relative_error(found[1], (1024 if name in SCALED else 1) * found[0]) <= 1e-2


def test_hundreds_of_tensors_of_mixed_sizes() -> None:
    """Tiny, odd and large ones, some missing, in one call; the same answer as their vector has."""
    sizes = [(1,), (3,), (2, 5), (64, 3, 3), (1001,), (), (7, 1, 5), (40_000,)] * 40
    missing = torch.rand(3, len(sizes)) < 0.1
    rows = [[torch.randn(size) for size in sizes] for _ in range(3)]
    given = [
        [None if gone else piece for piece, gone in zip(row, absent, strict=True)]
        for row, absent in zip(rows, missing, strict=True)
    ]
    filled = [
        torch.cat([(piece * ~gone).reshape(-1) for piece, gone in zip(row, absent, strict=True)])
        for row, absent in zip(rows, missing, strict=True)
    ]
    kept = torch.cat(
        [torch.full((piece.numel(),), not bool(missing[:, p].all())) for p, piece in enumerate(rows[0])]
    )
    with use_backend("numba"):
        update = ConFIG_update(given)
    assert isinstance(update, list)
    found = torch.cat([piece.reshape(-1) for piece in update if piece is not None])
    wanted = fastconfig.reference.config(torch.stack(filled))[kept]
    assert relative_error(found, wanted) <= 2e-7
