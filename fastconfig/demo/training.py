"""Training of the demo: one network on ConFIG's update, one on the plain sum of gradients, others on choice.

All start from the same weights and see the same points and learning rates. M-ConFIG takes one loss a step, in
turn, and brings its own moments: its optimizer is plain gradient descent, where the others have Adam.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import methods, reference
from ..environment import find_device
from ..grad_operator import ConFIG_update, ConFIGOperator
from ..momentum_operator import PseudoMomentumOperator
from ..monitor import Monitor
from ..utils import apply_gradient_vector, get_gradient_vector
from .burgers import (
    LOSS_NAMES,
    FloatArray,
    Network,
    Points,
    PointSampler,
    exact_solution,
    loss,
    losses,
    relative_error,
)

CONFIG = "ConFIG"
PLAIN_SUM = "plain sum"
MOMENTUM = "M-ConFIG"
#: methods that need no setting, by name, and how tables call them; ConFIG is there in any case
COMPARED = {name: kind for name, kind in methods.METHODS.items() if name not in ("config", "constant")}
TOLERANCE = 0.01
# The network's matrices are too small to share: a second thread waits more than it works.
TORCH_THREADS = 1


@dataclass(frozen=True)
class Settings:
    """What a run is made of; the same for both ways to train.

    Attributes:
        steps: Adam steps, at least 1.
        device: "cpu", "cuda" or "cuda:N".
        seed: of the initial weights and the points, at least 0.
        interior, initial, boundary: fresh points in every step.
        learning_rate: its peak, reached after ``warmup`` steps; a cosine takes it to zero.
        beta2: Adam's; shorter than the usual memory, since the points change in every step.
        measure_every: steps between two looks at angles and at the operators' answers, untimed.
        momentum: train with M-ConFIG, too.
        compare: names of more methods to train with, as in :data:`COMPARED`.
    """

    steps: int = 4000
    device: str = "cpu"
    seed: int = 0
    interior: int = 512
    initial: int = 64
    boundary: int = 32
    learning_rate: float = 3e-3
    warmup: int = 100
    beta2: float = 0.99
    measure_every: int = 4
    momentum: bool = False
    compare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.compare:
            if name not in COMPARED:
                raise ValueError(f"compare: got {name!r}, want some of {', '.join(COMPARED)}")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, want at least 1")

    def rate(self, step: int) -> float:
        """Learning rate of a step, relative to its peak."""
        ramp = min(1.0, (step + 1) / self.warmup)
        return ramp * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass
class Operator:
    """An implementation's seconds and relative errors over the compared steps."""

    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, update: Tensor, exact: Tensor, seconds: float) -> None:
        error = float((update.double() - exact).norm() / exact.norm())
        self.errors.append(error if math.isfinite(error) else math.inf)
        self.seconds.append(seconds)

    def summary(self) -> dict[str, Any]:
        worst = max(self.errors)
        return {
            "compared_steps": len(self.errors),
            "median_ms": median_ms(self.seconds),
            "worst_relative_error": worst if math.isfinite(worst) else None,
            "share_off_by_more_than_1_percent": float(np.mean(np.array(self.errors) > TOLERANCE)),
        }


class Trainer:
    """One network, its optimizer, and the record of its training.

    Args:
        settings: of the run.
        device: of the network.
        adam: Adam, or else plain gradient descent.
        turns: steps until every loss has had its turn; they cost differently, so times are means over them.
    """

    def __init__(
        self, settings: Settings, device: torch.device, *, adam: bool = True, turns: int = 1
    ) -> None:
        self.turns = turns
        generator = torch.Generator("cpu").manual_seed(settings.seed)
        self.network = Network(generator=generator).to(device)
        parameters, rate = self.network.parameters(), settings.learning_rate
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=rate, betas=(0.9, settings.beta2), fused=True)
            if adam
            else torch.optim.SGD(parameters, lr=rate, fused=True)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, settings.rate)
        self.device = device
        self.losses: list[list[float]] = []
        self.known: list[Tensor] = []  # of each loss the last one, where a step has one
        self.monitor = Monitor(LOSS_NAMES)
        self.step_seconds: list[float] = []
        self.operator_seconds: list[float] = []

    def clock(self) -> float:
        """Seconds, once the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def gradients(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Gradient vector of each loss, ``(N,)``."""
        vectors = []
        for value in values:
            self.optimizer.zero_grad()
            value.backward()
            vectors.append(get_gradient_vector(self.network))
        return vectors

    def finish(self, values: Sequence[Tensor], start: float) -> None:
        """The optimizer's step with the gradients now in the network; closes the time of the step."""
        self.optimizer.step()
        self.step_seconds.append(self.clock() - start)
        self.losses.append([float(value.detach()) for value in values])
        self.schedule.step()


def step_merged(
    trainer: Trainer, points: Points, merge: Callable[[list[Tensor]], Any]
) -> tuple[list[Tensor], Tensor]:
    """One step on a merged gradient; returns the gradients and the update."""
    start = trainer.clock()
    values = losses(trainer.network, points)
    grads = trainer.gradients(values)
    before = trainer.clock()
    update = merge(grads)
    assert isinstance(update, Tensor)
    trainer.operator_seconds.append(trainer.clock() - before)
    apply_gradient_vector(trainer.network, update)
    trainer.finish(values, start)
    return grads, update


def step_plain_sum(trainer: Trainer, points: Points) -> None:
    """One step on the gradient of the sum of losses: a single backward pass."""
    start = trainer.clock()
    values = losses(trainer.network, points)
    trainer.optimizer.zero_grad()
    torch.stack(values).sum().backward()
    trainer.finish(values, start)


def step_momentum(trainer: Trainer, points: Points, operator: PseudoMomentumOperator, index: int) -> None:
    """One step on M-ConFIG's update with one loss: a single backward pass."""
    start = trainer.clock()
    value = loss(trainer.network, points, index)
    (grad,) = trainer.gradients([value])
    before = trainer.clock()
    update = operator.calculate_gradient(index, grad)
    assert isinstance(update, Tensor)
    trainer.operator_seconds.append(trainer.clock() - before)
    apply_gradient_vector(trainer.network, update)
    trainer.known[index] = value.detach()
    trainer.finish(trainer.known, start)


@dataclass
class Result:
    """Everything that the table, the figure and the JSON file show."""

    settings: Settings
    trainers: dict[str, Trainer]
    operators: dict[str, Operator]
    t: FloatArray
    x: FloatArray
    exact: FloatArray
    predictions: dict[str, FloatArray]
    final_losses: dict[str, list[float]]
    training_seconds: float
    steps: int = 0  # that were trained; fewer than those of the settings after Ctrl-C

    def summary(self, name: str) -> dict[str, Any]:
        """The figures of one way to train."""
        trainer = self.trainers[name]
        step_ms = median_ms(means_of(trainer.step_seconds, trainer.turns))
        figures: dict[str, Any] = {
            "relative_l2_error": relative_error(self.predictions[name], self.exact),
            "final_losses": dict(zip(LOSS_NAMES, self.final_losses[name], strict=True)),
            "median_step_ms": step_ms,
        }
        if name != MOMENTUM:  # which has one gradient a step
            cosines = trainer.monitor.history()["update_cosines"]
            figures["share_of_measured_steps_with_a_negative_cosine"] = float((cosines < 0).any(1).mean())
        if trainer.operator_seconds:
            operator_ms = median_ms(means_of(trainer.operator_seconds, trainer.turns))
            figures["median_operator_ms"] = operator_ms
            figures["operator_share_of_step"] = operator_ms / step_ms
        return figures


def median_ms(seconds: Sequence[float]) -> float:
    return float(np.median(seconds)) * 1e3


def means_of(values: Sequence[float], count: int) -> list[float]:
    """Means of every ``count`` values in turn, of all if they are fewer."""
    whole = max(len(values) // count, 1)
    return [float(np.mean(part)) for part in np.array_split(np.array(values[: whole * count]), whole)]


def operator_of(method: str, seed: int) -> Any:
    """A new operator of a method, which draws from a generator of its own where it draws."""
    kind = getattr(methods, f"{COMPARED[method]}Operator")
    if "generator" not in inspect.signature(kind).parameters:
        return kind()
    return kind(generator=torch.Generator("cpu").manual_seed(seed))


def peer_operator() -> Callable[[list[Tensor]], Tensor] | None:
    """ConFIG's update as conflictfree computes it, if that is installed."""
    try:
        from conflictfree.grad_operator import ConFIG_update as update
    except ImportError:
        return None
    return update


@torch.no_grad()
def predict(network: Network, t: FloatArray, x: FloatArray, device: torch.device) -> FloatArray:
    """The network on the grid ``t`` times ``x``, ``(len(t), len(x))``."""
    grid = np.stack(np.meshgrid(t, x, indexing="ij"), axis=-1).reshape(-1, 2)
    u = network(torch.as_tensor(grid, dtype=torch.float32, device=device))
    return u.double().cpu().numpy().reshape(len(t), len(x))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch_threads(TORCH_THREADS)
def train(settings: Settings, report: Callable[[int, Result], None] | None = None) -> Result:
    """Train the networks side by side.

    Args:
        settings: of the run.
        report: called after every step with the number of steps done and the growing result.

    Returns:
        All figures; after Ctrl-C those so far.

    Raises:
        ValueError: the device cannot be used.
        KeyboardInterrupt: after Ctrl-C before the first step is done.
    """
    device = find_device(settings.device)
    peer = peer_operator()
    config, plain = Trainer(settings, device), Trainer(settings, device)
    operators = {"fastconfig": Operator()} | ({"conflictfree": Operator()} if peer else {})
    sizes = settings.interior, settings.initial, settings.boundary
    sampler = PointSampler(*sizes, settings.seed, device)
    t, x = np.linspace(0, 1, 101), np.linspace(-1, 1, 513)
    exact = exact_solution(t[:, None], x[None, :])
    trainers = {CONFIG: config, PLAIN_SUM: plain}
    momentum = PseudoMomentumOperator(len(LOSS_NAMES), beta_2=settings.beta2)
    compared = {COMPARED[name]: operator_of(name, settings.seed) for name in settings.compare}
    trainers |= {name: Trainer(settings, device) for name in compared}
    if settings.momentum:
        trainers[MOMENTUM] = Trainer(settings, device, adam=False, turns=len(LOSS_NAMES))
    merging, summing = ConFIGOperator(), methods.SumOperator()
    told = {CONFIG: merging, PLAIN_SUM: summing, MOMENTUM: momentum, **compared}
    for name, trainer in trainers.items():
        told[name].monitor = trainer.monitor
    result = Result(settings, trainers, operators, t, x, exact, {}, {}, 0)

    # Kernels that are compiled or loaded on first use must not count as a step.
    first = losses(config.network, sampler.draw())
    grads = config.gradients(first)
    ConFIG_update(grads)
    for name in settings.compare:
        operator_of(name, settings.seed).calculate_gradient(grads)
    if settings.momentum:
        trainers[MOMENTUM].known = [value.detach() for value in first]
        PseudoMomentumOperator(len(grads)).calculate_gradient(range(len(grads)), grads)
    began = time.perf_counter()

    def one_step(step: int) -> None:
        points = sampler.draw()
        measured = step % settings.measure_every == 0
        if measured:
            plain.monitor.step = step
            summing.calculate_gradient(plain.gradients(losses(plain.network, points)))
        step_plain_sum(plain, points)
        for name, operator in compared.items():
            step_merged(trainers[name], points, operator.calculate_gradient)
        grads, update = step_merged(config, points, merging.calculate_gradient)
        if settings.momentum:
            step_momentum(trainers[MOMENTUM], points, momentum, step % len(LOSS_NAMES))
        if measured:
            exact_update = reference.config(torch.stack(grads))
            operators["fastconfig"].add(update, exact_update, config.operator_seconds[-1])
            if peer:
                before = config.clock()
                answer = peer(grads)
                operators["conflictfree"].add(answer, exact_update, config.clock() - before)
        result.steps = step + 1

    try:
        for step in range(settings.steps):
            one_step(step)
            if report:
                report(result.steps, result)
    except KeyboardInterrupt:
        if not result.steps:
            raise
    result.training_seconds = time.perf_counter() - began

    last = PointSampler(8192, 1024, 512, settings.seed + 1, device).draw()
    for name, trainer in result.trainers.items():
        result.predictions[name] = predict(trainer.network, t, x, device)
        result.final_losses[name] = [float(v.detach()) for v in losses(trainer.network, last)]
    return result
