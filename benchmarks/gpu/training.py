"""Whole training steps on the device: benchmarks/training_step.py."""

from __future__ import annotations

import torch

from gpu.points import Machine, Points

SECONDS = 6.0  # for each network


def run(points: Points, machine: Machine) -> None:
    import training_step  # beside this folder; needs conflictfree

    device = torch.device(machine.device)
    seconds = 0.0 if machine.dry else SECONDS
    for name in ("pinn",) if machine.dry else training_step.NETWORKS:
        point = points.run(name, lambda name=name: {"step": training_step.measure(name, device, seconds)})
        for way, times in point.get("step", {"seconds": {}})["seconds"].items():
            print(f"{name}, {way}: " + ", ".join(f"{part} {1e3 * t:.3f} ms" for part, t in times.items()))
