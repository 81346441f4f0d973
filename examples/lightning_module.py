"""A Lightning module with two losses: manual optimization, and ``fastconfig.backward`` in the training step.

    python examples/lightning_module.py [--steps 300] [--seed 0]

Needs lightning (pip install lightning). Prints both losses before and after.
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
        self.automatic_optimization = False  # the training step goes backward by itself
        self.network = nn.Sequential(
            nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        )
        self.operator = fastconfig.ConFIGOperator()

    def losses(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return list((self.network(x) - y).square().mean(0).unbind())

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        optimizer = self.optimizers()
        losses = self.losses(*batch)
        fastconfig.backward(losses, self, self.operator)  # instead of self.manual_backward(sum(losses))
        self.clip_gradients(optimizer, gradient_clip_val=100.0, gradient_clip_algorithm="norm")
        optimizer.step()
        self.log_dict({f"loss_{i}": loss.detach() for i, loss in enumerate(losses)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two targets with ConFIG in Lightning.")
    parser.add_argument("--steps", type=int, default=300)
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
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=256, shuffle=True))
    last = module.cpu().losses(x, y)
    for name, before, after in zip(("small", "large"), first, last, strict=True):
        print(f"{name}: loss {float(before):.4g} -> {float(after):.4g}")


if __name__ == "__main__":
    main()
