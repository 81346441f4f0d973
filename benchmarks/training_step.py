"""A whole training step with three losses, and what of it is not forward and backward passes.

    python benchmarks/training_step.py [--network pinn,convolutional] [--device cuda] [--json FILE]

All take turns: conflictfree's documented loop, the same loop with this package by its import alone, and
``fastconfig.backward``. A step is the forward passes, what goes from losses to ``.grad``, and Adam's step; of
the second, what torch's backward passes take is measured within the same step, and the rest is "outside".
Extra memory is the peak of that part of a step beyond the graph, in vectors of all parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from readme_table import TRAINING_HEADS, training_cells
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fastconfig
from fastconfig import environment, grad_operator, utils
from fastconfig.bench.memory import MALLOC, device_bytes, host_bytes
from fastconfig.demo.burgers import Network, PointSampler
from fastconfig.demo.burgers import losses as burgers_losses

LEAST, MOST = 5, 200  # rounds
Losses = Callable[[], list[Tensor]]


def pinn(device: torch.device) -> tuple[nn.Module, Losses]:
    """4 x 50 tanh network, Burgers' equation: residual, initial and boundary loss."""
    network = Network(generator=torch.Generator().manual_seed(0)).to(device)
    points = PointSampler(512, 64, 32, 0, device).draw()
    return network, lambda: burgers_losses(network, points)


def convolutional(device: torch.device) -> tuple[nn.Module, Losses]:
    """37 convolutions with batch norm, five million parameters in 150 tensors; three losses on one head."""
    torch.manual_seed(0)
    width, layers = 122, [nn.Conv2d(3, 122, 3, padding=1), nn.BatchNorm2d(122), nn.ReLU()]
    for _ in range(36):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)).to(device)
    images, targets = torch.randn(4, 3, 8, 8, device=device), torch.randn(4, 3, device=device)

    def losses() -> list[Tensor]:
        return list((network(images) - targets).square().mean(0).unbind())

    return network, losses


NETWORKS = {"pinn": pinn, "convolutional": convolutional}


def documented_loop(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    values: Sequence[Tensor],
    operators: ModuleType,
    vectors: ModuleType,
) -> None:
    """conflictfree's: a vector for each loss, merged, and written back."""
    grads = []
    for i, value in enumerate(values):
        optimizer.zero_grad()
        value.backward(retain_graph=i < len(values) - 1)
        grads.append(vectors.get_gradient_vector(network))
    vectors.apply_gradient_vector(network, operators.ConFIG_update(grads))


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Passes:
    """Seconds that torch's backward passes have taken, while it is entered."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> Passes:
        self.grad, self.backward = torch.autograd.grad, Tensor.backward
        torch.autograd.grad = self._timed(self.grad)  # type: ignore[assignment]
        Tensor.backward = self._timed(self.backward)  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        torch.autograd.grad, Tensor.backward = self.grad, self.backward  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = now(self.device)
            try:
                return call(*arguments, **keywords)
            finally:
                self.seconds += now(self.device) - began

        return timed


def ways(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Callable[[list[Tensor]], None]]:
    """How a step goes from losses to ``.grad``."""
    found: dict[str, Callable[[list[Tensor]], None]] = {
        "import change": lambda values: documented_loop(network, optimizer, values, grad_operator, utils),
        "fastconfig.backward": lambda values: fastconfig.backward(values, network),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from conflictfree import grad_operator as their_operators
        from conflictfree import utils as their_vectors
    found["conflictfree"] = lambda values: documented_loop(
        network, optimizer, values, their_operators, their_vectors
    )
    return found


def measure(name: str, device: torch.device, seconds: float) -> dict[str, Any]:
    network, losses = NETWORKS[name](device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    steps = ways(network, optimizer)
    times: dict[str, dict[str, list[float]]] = {
        way: {part: [] for part in ("step", "passes", "outside")} for way in steps
    }

    def take(way: str, noted: bool) -> None:
        began = now(device)
        values = losses()
        with Passes(device) as passes:
            start = now(device)
            steps[way](values)
            merged = now(device) - start
        optimizer.step()
        if noted:
            found = times[way]
            found["step"].append(now(device) - began)
            found["passes"].append(passes.seconds)
            found["outside"].append(merged - passes.seconds)

    rounds, began = 0, time.perf_counter()
    while rounds < LEAST or (rounds < MOST and time.perf_counter() - began < seconds):
        for way in steps:
            take(way, False)  # the other ways have been at the caches
            take(way, True)
        rounds += 1
    sizes = [par.numel() for par in network.parameters()]
    return {
        "network": name,
        "parameters": sum(sizes),
        "tensors": len(sizes),
        "seconds": {
            way: {part: statistics.median(found) for part, found in parts.items()}
            for way, parts in times.items()
        },
        "extra_vectors": {way: extra(name, way, device) for way in steps},
    }


def extra(name: str, way: str, device: torch.device) -> float | None:
    """Extra memory in vectors, from a process of its own."""
    command = [sys.executable, __file__, "--memory", way, "--network", name, "--device", str(device)]
    run = subprocess.run(command, env={**os.environ, **MALLOC}, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else None


def print_extra(name: str, way: str, device: torch.device) -> None:
    network, losses = NETWORKS[name](device)
    step = ways(network, torch.optim.Adam(network.parameters(), lr=1e-5))[way]
    step(losses())
    values: list[Tensor] = []

    def call() -> Tensor:
        step(values)
        return torch.empty(0)

    found = []
    for _ in range(3):
        network.zero_grad()
        values[:] = losses()
        size = host_bytes(call) if device.type == "cpu" else device_bytes(call)
        found.append(None if size is None else size / 4 / sum(par.numel() for par in network.parameters()))
    known = [size for size in found if size is not None]
    print(json.dumps(round(statistics.median(known), 2) if known else None))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step and what of it is merging.")
    parser.add_argument("--network", default=",".join(NETWORKS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print_extra(arguments.network, arguments.memory, arguments.device)
        return
    results = [measure(name, arguments.device, arguments.seconds) for name in arguments.network.split(",")]
    table = Table(*TRAINING_HEADS)
    for result in results:
        for cells in training_cells(result):
            table.add_row(*cells)
    Console(width=150).print(table)
    if arguments.json:
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        origin = environment.origin(arguments.threads)
        if arguments.device.type == "cuda":
            origin["processor"] = torch.cuda.get_device_name(arguments.device)
        found = {"command": sys.argv, "date": date, "origin": origin, "results": results}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
