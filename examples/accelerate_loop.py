"""A Hugging Face Accelerate loop with two losses and gradient accumulation.

    python examples/accelerate_loop.py [--steps 300] [--seed 0]

Needs accelerate (pip install accelerate). For one process: ``fastconfig.backward`` takes the gradients of
this process's batch. Prints both losses before and after.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastconfig

PARTS = 2  # batches that make one step


def losses_of(network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list((network(x) - y).square().mean(0).unbind())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two targets with ConFIG in an Accelerate loop.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    set_seed(arguments.seed)
    x = 2 * torch.rand(1024, 2) - 1
    y = torch.stack([torch.sin(3 * x[:, 0]), 20 * torch.cos(3 * x[:, 0] + x[:, 1])], 1)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)

    accelerator = Accelerator(gradient_accumulation_steps=PARTS)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    x, y = x.to(accelerator.device), y.to(accelerator.device)
    first = losses_of(network, x, y)
    done = 0
    while done < arguments.steps:
        for batch in loader:
            with accelerator.accumulate(network):
                losses = [loss / PARTS for loss in losses_of(network, *batch)]
                fastconfig.backward(losses, network, accumulate=True)  # instead of accelerator.backward(sum)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), 100.0)
                    done += 1
                optimizer.step()
                optimizer.zero_grad()
            if done == arguments.steps:
                break
    last = losses_of(network, x, y)
    for name, before, after in zip(("small", "large"), first, last, strict=True):
        print(f"{name}: loss {float(before):.4g} -> {float(after):.4g}")


if __name__ == "__main__":
    main()
