"""Run by test_trainers.py: `.grad` of a weighted sum under somebody else's loop, beside the oracle.

python tests/trainer_cases.py lightning                                       (starts a second process itself)
python -m torch.distributed.run --nproc-per-node 2 tests/trainer_cases.py accelerate
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastconfig
from fastconfig import reference

STEPS = 3


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def losses_of(net: Any, x: Tensor) -> list[Tensor]:
    y = net(x)
    return [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean(), y[:, 2].exp().mean()]


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(2)
    return DataLoader(TensorDataset(torch.randn(8 * STEPS, 2, generator=generator).double()), batch_size=4)


def weighted(losses: list[Tensor], model: Any) -> Tensor:
    return (fastconfig.weights(losses, model) * torch.stack(losses)).sum()


def check(net: nn.Module, x: Tensor) -> None:
    """Whether `.grad` is that of the gradients averaged over all processes."""
    ranks = dist.get_world_size()
    assert ranks == 2
    batches: list[Any] = [None] * ranks
    dist.all_gather_object(batches, x)
    assert not torch.equal(*batches)
    parameters = list(net.parameters())
    total = torch.zeros(())
    for batch in batches:
        rows = [
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for loss in losses_of(net, batch)
        ]
        total = total + torch.stack([_flat(row, parameters) for row in rows]) / ranks
    exact = reference.config(total)
    found = _flat([par.grad for par in parameters], parameters)
    assert (found - exact).norm() <= 1e-9 * exact.norm(), (found - exact).norm() / exact.norm()


def _flat(row: Any, parameters: list[nn.Parameter]) -> Tensor:
    pairs = zip(row, parameters, strict=True)
    return torch.cat([(torch.zeros_like(par) if g is None else g.detach()).reshape(-1) for g, par in pairs])


def by_lightning() -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.checked = 0

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            self.batch = batch[0]
            return weighted(losses_of(self.net, self.batch), self)

        def on_after_backward(self) -> None:
            with torch.enable_grad():
                check(self.net, self.batch)
            self.checked += 1

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    quiet: Any = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", **quiet)
    trainer.fit(module, loader())
    assert module.checked == STEPS
    print(f"rank {trainer.global_rank}: {module.checked} steps")


def by_accelerate() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model, optimizer, batches = accelerator.prepare(net, optimizer, loader())
    checked = 0
    for (x,) in batches:
        accelerator.backward(weighted(losses_of(model, x), model))
        check(net, x)
        optimizer.step()
        optimizer.zero_grad()
        checked += 1
    assert checked == STEPS
    print(f"rank {accelerator.process_index}: {checked} steps")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    {"lightning": by_lightning, "accelerate": by_accelerate}[sys.argv[1]]()
