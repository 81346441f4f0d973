"""Mixed precision with a gradient scaler, accumulation over batches, and clipping, with two losses.

    python examples/amp_accumulation.py [--steps 300] [--seed 0]

Scaled losses give scaled gradients, and the merged one is scaled alike; an Inf or NaN in any loss's gradient
makes the merged one NaN, so that the scaler leaves the step out. Prints both losses before and after.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import fastconfig

PARTS = 2  # batches that make one step


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two targets with ConFIG in float16.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = 2 * torch.rand(1024, 2, device=device) - 1
    y = torch.stack([torch.sin(3 * x[:, 0]), 20 * torch.cos(3 * x[:, 0] + x[:, 1])], 1)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler(device)
    operator = fastconfig.ConFIGOperator()

    def losses_of(x: Tensor, y: Tensor) -> list[Tensor]:
        with torch.autocast(device, torch.float16):
            predicted = network(x)
        return list((predicted.float() - y).square().mean(0).unbind())

    first = losses_of(x, y)
    skipped = 0
    for _ in range(arguments.steps):
        for part in range(PARTS):
            chosen = torch.randint(len(x), (256,), device=device)
            losses = [scaler.scale(loss / PARTS) for loss in losses_of(x[chosen], y[chosen])]
            fastconfig.backward(losses, network, operator, accumulate=part > 0)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 100.0)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
    for name, before, after in zip(("small", "large"), first, losses_of(x, y), strict=True):
        print(f"{name}: loss {float(before):.4g} -> {float(after):.4g}")
    print(f"{skipped} of {arguments.steps} steps left out by the scaler")


if __name__ == "__main__":
    main()
