"""A Lightning module with two losses on several devices: automatic optimization, and ``fastconfig.weights``.

    python examples/lightning_devices.py [--steps 100] [--devices 2] [--seed 0]

Needs lightning (pip install lightning). The training step returns the weighted sum of the losses; the
backward pass, the average over the devices, clipping and the optimizer's step stay Lightning's. Prints both
losses before and after.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastconfig


class TwoTargets(lightning.LightningModule):
    """One network, two outputs of very different scale."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def losses(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return list((self.network(x) - y).square().mean(0).unbind())

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        losses = self.losses(*batch)
        return (fastconfig.weights(losses, self) * torch.stack(losses)).sum()  # instead of sum(losses)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train two targets with ConFIG in Lightning on several devices."
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore", module="lightning")  # advice on workers and logging intervals
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(arguments.seed, verbose=False)
    x = 2 * torch.rand(1024, 2) - 1
    y = torch.stack([torch.sin(3 * x[:, 0]), 20 * torch.cos(3 * x[:, 0] + x[:, 1])], 1)
    module = TwoTargets()
    first = module.losses(x, y)
    trainer = lightning.Trainer(
        max_steps=arguments.steps,
        accelerator="cpu" if torch.cuda.device_count() < arguments.devices else "gpu",
        devices=arguments.devices,
        strategy="ddp",
        gradient_clip_val=100.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True))
    if trainer.is_global_zero:
        last = module.cpu().losses(x, y)
        for name, before, after in zip(("small", "large"), first, last, strict=True):
            print(f"{name}: loss {before.item():.4g} -> {after.item():.4g}")


if __name__ == "__main__":
    main()
