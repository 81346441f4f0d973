"""Every call from losses to ``.grad`` on one small multi-task network, in units of one plain backward pass.

    python benchmarks/calls.py [--m 3 8] [--batch 64] [--rounds 100] [--ranks 2]

The network is that of examples/multi_task_images.py with m heads, on one thread. All ways take turns, round
by round; a time is divided by that of the plain sum's pass in the same round, and the median over the
rounds is printed. Times are the thread's own on the processor, so that other work on the machine counts for
little. A forward pass is not in them. With TorchJD installed, its ``mtl_backward`` and ``jac_to_grad`` take
turns too. ``--ranks 2`` takes times by the clock on the wall in DistributedDataParallel over Gloo instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastconfig

#: from losses, features and a network to ``.grad``
Way = Callable[[list[Tensor], Tensor, Any], object]


class Network(nn.Module):
    """That of examples/multi_task_images.py."""

    def __init__(self, m: int) -> None:
        super().__init__()
        first = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.trunk = nn.Sequential(*first, *second, nn.Linear(32 * 16, 64), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(64, 2) for _ in range(m)])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.trunk(x)
        return features, [(head(features) - i).square().mean() for i, head in enumerate(self.heads)]


def plain(losses: list[Tensor], features: Tensor, model: Any) -> None:
    torch.stack(losses).sum().backward()


def weighted(losses: list[Tensor], c: Tensor) -> None:
    (c * torch.stack(losses)).sum().backward()


def kept() -> Way:
    """Ten steps of which one finds the weights: the mean step."""
    operator = fastconfig.EveryOperator(fastconfig.ConFIGOperator(), 10)
    return lambda losses, features, model: fastconfig.backward(losses, model, operator)


def momentum(m: int) -> Way:
    operator, steps = fastconfig.PseudoMomentumOperator(m), iter(range(1 << 62))

    def step(losses: list[Tensor], features: Tensor, model: Any) -> None:
        k = next(steps) % m
        fastconfig.backward(losses[k : k + 1], model, operator, indexes=[k])

    return step


def grouped() -> Way:
    operator = fastconfig.ConFIGOperator()
    operator.groups = "module"
    return lambda losses, features, model: fastconfig.backward(losses, model, operator)


def torchjd() -> Way:
    from torchjd.aggregation import ConFIG
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = ConFIG()

    def step(losses: list[Tensor], features: Tensor, model: Any) -> None:
        mtl_backward(losses, features)
        jac_to_grad(list(model.trunk.parameters()), aggregator)

    return step


def ways(m: int, replicas: bool) -> dict[str, Way]:
    found: dict[str, Way] = {
        "sum(losses).backward()": plain,
        "backward": lambda losses, _, model: fastconfig.backward(losses, model),
        "weights(losses, model), backward pass": lambda losses, _, model: weighted(
            losses, fastconfig.weights(losses, model)
        ),
        "weights(losses, features), backward pass": lambda losses, features, _: weighted(
            losses, fastconfig.weights(losses, features)
        ),
        "mtl_backward": lambda losses, features, model: fastconfig.mtl_backward(losses, features),
        'mtl_backward(gram="features")': lambda losses, features, model: fastconfig.mtl_backward(
            losses, features, gram="features"
        ),
        "backward, EveryOperator(..., 10)": kept(),
    }
    if replicas:
        found["weights(..., approximate=True), backward pass"] = lambda losses, _, model: weighted(
            losses, fastconfig.weights(losses, model, approximate=True)
        )
        return found
    found["backward, one loss a step, PseudoMomentumOperator"] = momentum(m)
    found['backward, groups = "module"'] = grouped()
    if importlib.util.find_spec("torchjd") is not None:
        found["torchjd: mtl_backward, jac_to_grad"] = torchjd()
    return found


def measured(m: int, batch: int, rounds: int, replicas: bool = False) -> dict[str, float]:
    """The median ratio to the plain pass, over rounds; of ``EveryOperator`` a round has ten steps."""
    torch.manual_seed(0)
    model: Any = Network(m)
    x = torch.randn(batch, 1, 16, 16)
    if replicas:
        model = DistributedDataParallel(model)
    ratios: dict[str, list[float]] = {}
    chosen, now = ways(m, replicas), time.perf_counter if replicas else time.thread_time
    for k in range(rounds + 3):
        times = {}
        for name, way in chosen.items():
            steps = 10 if "Every" in name else 1
            times[name] = 0.0
            for _ in range(steps):
                model.zero_grad()
                features, losses = model(x)
                if replicas:
                    dist.barrier()
                begin = now()
                way(losses, features, model)
                times[name] += (now() - begin) / steps
        unit = times["sum(losses).backward()"]
        for name in chosen if k >= 3 else ():
            ratios.setdefault(name, []).append(times[name] / unit)
    return {name: statistics.median(some) for name, some in ratios.items()}


def run(rank: int, ranks: int, meeting: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    found = {m: measured(m, arguments.batch, arguments.rounds, ranks > 1) for m in arguments.m}
    if rank == 0:
        print("| way |" + "".join(f" m = {m} |" for m in arguments.m))
        print("| --- |" + " ---: |" * len(arguments.m))
        for name in found[arguments.m[0]]:
            print(f"| `{name}` |" + "".join(f" {found[m][name]:.2f} |" for m in arguments.m), flush=True)
    if ranks > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of every call from losses to .grad.")
    parser.add_argument("--m", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = (arguments.ranks, f"{folder}/meeting", arguments)
        if arguments.ranks == 1:
            run(0, *given)
        else:
            mp.start_processes(run, given, nprocs=arguments.ranks, start_method="spawn")


if __name__ == "__main__":
    main()
