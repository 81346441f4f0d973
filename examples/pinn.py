"""A physics-informed network for Burgers' equation; its three losses are merged by ``fastconfig.backward``.

    python examples/pinn.py [--steps 2000] [--seed 0]

u_t + u u_x = (0.01 / pi) u_xx on x in [-1, 1], t in [0, 1]; u(x, 0) = -sin(pi x); u(-1, t) = u(1, t) = 0.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

import fastconfig


def network() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(2, 50), nn.Tanh()]
    for _ in range(3):
        layers += [nn.Linear(50, 50), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(50, 1))


def losses_of(net: nn.Module, points: int) -> list[Tensor]:
    """Mean squares of the residual, and of what is off at t = 0 and at both ends."""
    x, t = (2 * torch.rand(points, 1) - 1).requires_grad_(), torch.rand(points, 1).requires_grad_()
    u = net(torch.cat([x, t], 1))
    u_x, u_t = torch.autograd.grad(u.sum(), (x, t), create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
    residual = (u_t + u * u_x - 0.01 / math.pi * u_xx).square().mean()

    x = 2 * torch.rand(points, 1) - 1
    start = (net(torch.cat([x, torch.zeros_like(x)], 1)) + torch.sin(math.pi * x)).square().mean()

    t = torch.rand(points, 1)
    ends = torch.cat([torch.cat([torch.full_like(t, side), t], 1) for side in (-1.0, 1.0)])
    return [residual, start, net(ends).square().mean()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a network on Burgers' equation with ConFIG.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    operator = fastconfig.ConFIGOperator()
    first = losses_of(net, 1024)
    for _ in range(arguments.steps):
        fastconfig.backward(losses_of(net, 256), net, operator)  # instead of sum(losses).backward()
        optimizer.step()
    for name, before, after in zip(("residual", "start", "ends"), first, losses_of(net, 1024), strict=True):
        print(f"{name}: loss {float(before):.4g} -> {float(after):.4g}")


if __name__ == "__main__":
    main()
