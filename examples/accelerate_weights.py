"""A Hugging Face Accelerate loop with two losses, on one process or several: ``fastconfig.weights``.

    python examples/accelerate_weights.py [--steps 300] [--seed 0]
    accelerate launch --cpu --num_processes 2 examples/accelerate_weights.py

Needs accelerate (pip install accelerate). The backward pass, and the average over the processes, stay
Accelerate's. Prints both losses before and after.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastconfig


def losses_of(network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list((network(x) - y).square().mean(0).unbind())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two targets with ConFIG's weights in Accelerate.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    set_seed(arguments.seed)
    x = 2 * torch.rand(1024, 2) - 1
    y = torch.stack([torch.sin(3 * x[:, 0]), 20 * torch.cos(3 * x[:, 0] + x[:, 1])], 1)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)

    accelerator = Accelerator()
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    x, y = x.to(accelerator.device), y.to(accelerator.device)
    first = losses_of(network, x, y)
    done = 0
    while done < arguments.steps:
        for batch in loader:
            losses = losses_of(network, *batch)
            c = fastconfig.weights(losses, network)
            accelerator.backward(
                (c * torch.stack(losses)).sum()
            )  # instead of accelerator.backward(sum(losses))
            accelerator.clip_grad_norm_(network.parameters(), 100.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == arguments.steps:
                break
    last = losses_of(network, x, y)
    if accelerator.is_main_process:
        for name, before, after in zip(("small", "large"), first, last, strict=True):
            print(f"{name}: loss {before.item():.4g} -> {after.item():.4g}")


if __name__ == "__main__":
    main()
