"""The picture of docs/monitor.md: who conflicts with whom while a network learns Burgers' equation.

python benchmarks/monitor_picture.py [--steps 1500]    writes docs/figures/monitor.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from fastconfig import ConFIGOperator, backward
from fastconfig.demo.burgers import LOSS_NAMES, Network, PointSampler, losses
from fastconfig.monitor import Monitor

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "monitor.png"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the picture of docs/monitor.md.")
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)  # the network's matrices are small
    network = Network(generator=torch.Generator("cpu").manual_seed(0))
    sampler = PointSampler(256, 64, 32, 0, torch.device("cpu"))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    operator = ConFIGOperator()
    operator.monitor = monitor = Monitor(LOSS_NAMES)
    for _ in range(steps):
        backward(losses(network, sampler.draw()), network, operator)
        optimizer.step()
    monitor.plot(PICTURE)
    with Image.open(PICTURE) as picture:  # 96 colours do, in a third of the bytes
        picture.convert("RGB").quantize(96).save(PICTURE, optimize=True)
    print(monitor.summary())


if __name__ == "__main__":
    main()
