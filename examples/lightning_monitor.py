"""Conflict of losses in TensorBoard, from a Lightning module: a monitor and its callback.

    python examples/lightning_monitor.py [--steps 300] [--seed 0] [--out runs]
    tensorboard --logdir runs

Needs lightning and tensorboard (pip install lightning tensorboard). Prints what the monitor says.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastconfig
from fastconfig.monitor import Monitor, lightning_callback


class TwoTargets(lightning.LightningModule):
    """One output for two targets, which it cannot both meet."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # the training step goes backward by itself
        self.network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        self.operator = fastconfig.ConFIGOperator()
        self.operator.monitor = Monitor(["sine", "cosine"])

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        optimizer = self.optimizers()
        x, y = batch
        losses = (self.network(x) - y).square().mean(0).unbind()
        fastconfig.backward(losses, self, self.operator)
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch two targets conflict, in Lightning and TensorBoard.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore", module="lightning")  # advice on workers and logging intervals
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(arguments.seed, verbose=False)
    x = 2 * torch.rand(1024, 2) - 1
    y = torch.stack([torch.sin(3 * x[:, 0]), torch.cos(3 * x[:, 0])], 1)
    module = TwoTargets()
    monitor = module.operator.monitor
    trainer = lightning.Trainer(
        max_steps=arguments.steps,
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(arguments.out, name="conflict"),
        log_every_n_steps=10,
        callbacks=[lightning_callback(monitor, every=10)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True))
    monitor.save(arguments.out / "run.npz")  # for fastconfig plot
    print(monitor.summary())


if __name__ == "__main__":
    main()
