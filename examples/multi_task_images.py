"""An image network with a shared trunk and a head for each task: what is seen, where, and how bright.

    python examples/multi_task_images.py [--steps 150] [--seed 0]

``fastconfig.mtl_backward`` goes backward through each head to the trunk's features, and from there through
the trunk: the trunk gets the merged gradient, a head its own. Images of 16 x 16 with a cross or a ring are
drawn as they are needed. Prints every task's loss before and after, and the share of shapes recognised.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastconfig

SIZE = 16


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, 64),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList([nn.Linear(64, 2), nn.Linear(64, 2), nn.Linear(64, 1)])


def draw(count: int) -> tuple[Tensor, list[Tensor]]:
    """Images (count, 1, SIZE, SIZE); shape 0 or 1, centre in pixels, brightness."""
    shape, centre = torch.randint(2, (count,)), 4 + 8 * torch.rand(count, 2)
    brightness = 0.5 + torch.rand(count, 1)
    axis = torch.arange(SIZE).float()
    dy, dx = (axis - centre[:, k, None] for k in range(2))
    dy, dx = dy[:, :, None], dx[:, None, :]
    ring = torch.exp(-((dx.square() + dy.square()).sqrt() - 3).square())
    cross = torch.exp(-torch.minimum(dx.abs(), dy.abs()).square()) * ((dx.abs() < 4) & (dy.abs() < 4))
    images = torch.where(shape[:, None, None] == 1, ring, cross) * brightness[:, :, None]
    return (images + 0.1 * torch.randn_like(images))[:, None], [shape, centre, brightness]


def losses_of(outputs: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    seen, where, bright = outputs
    return [
        functional.cross_entropy(seen, targets[0]),
        functional.mse_loss(where, targets[1]),
        functional.mse_loss(bright, targets[2]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a shared trunk and three heads.")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    operator = fastconfig.ConFIGOperator()
    test_images, test_targets = draw(512)

    def tested() -> tuple[list[Tensor], float]:
        with torch.no_grad():
            features = network.trunk(test_images)
            outputs = [head(features) for head in network.heads]
            right = (outputs[0].argmax(1) == test_targets[0]).float().mean()
            return losses_of(outputs, test_targets), float(right)

    first, _ = tested()
    for _ in range(arguments.steps):
        images, targets = draw(64)
        features = network.trunk(images)
        losses = losses_of([head(features) for head in network.heads], targets)
        own = [list(head.parameters()) for head in network.heads]
        fastconfig.mtl_backward(losses, features, network.trunk.parameters(), own, operator)
        optimizer.step()
    last, right = tested()
    for name, before, after in zip(("shape", "centre", "brightness"), first, last, strict=True):
        print(f"{name}: loss {float(before):.4g} -> {float(after):.4g}")
    print(f"{right:.0%} of the shapes recognised")


if __name__ == "__main__":
    main()
