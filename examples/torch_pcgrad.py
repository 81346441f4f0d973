"""A PyTorch network with two heads whose losses conflict, trained with PCGrad around an optimizer.

    python examples/torch_pcgrad.py [--method pcgrad|ppcgrad|sum] [--steps 300] [--seed 0]

Prints both losses before and after; "sum" is the plain gradient of the sum, for comparison.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from fastconfig.pcgrad import PCGrad, PPCGrad


class Network(nn.Module):
    """A trunk and two heads, one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(32, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        trunk = self.trunk(x)
        return [head(trunk) for head in self.heads]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two heads with PCGrad or PPCGrad in PyTorch.")
    parser.add_argument("--method", choices=("pcgrad", "ppcgrad", "sum"), default="pcgrad")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    network = Network()
    adam = torch.optim.Adam(network.parameters(), lr=1e-2)
    optimizer = PPCGrad(adam) if arguments.method == "ppcgrad" else PCGrad(adam)
    x = 2 * torch.rand(512, 2) - 1
    targets = [torch.sin(3 * x[:, :1]), 20 * torch.cos(3 * x[:, :1] + x[:, 1:])]

    def losses_of() -> list[Tensor]:
        return [(y - t).square().mean() for y, t in zip(network(x), targets, strict=True)]

    first = [float(loss) for loss in losses_of()]
    for _ in range(arguments.steps):
        optimizer.zero_grad()
        losses = losses_of()
        if arguments.method == "sum":
            sum(losses).backward()
        else:
            optimizer.pc_backward(losses)
        optimizer.step()
    for name, before, after in zip(("small", "large"), first, losses_of(), strict=True):
        print(f"{name} task: loss {before:.4g} -> {float(after):.4g}")


if __name__ == "__main__":
    main()
