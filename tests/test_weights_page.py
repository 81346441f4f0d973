"""docs/weights.md: every snippet runs, and leaves the merged gradient."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from inputs import relative_error, rows_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastconfig
from fastconfig import reference

PAGE = (Path(__file__).parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def losses_of(network: Any, batch: Tensor) -> list[Tensor]:
    y = network(batch)
    return [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean()]


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the page supposes to be there."""
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    yield {
        "torch": torch,
        "fastconfig": fastconfig,
        "network": network,
        "batch": torch.randn(7, 3, dtype=torch.float64),
        "losses_of": losses_of,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.0),
        "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
        "parts": 4,
        "accelerator": SimpleNamespace(backward=Tensor.backward),
        "trunk": network[:2],
        "heads": [nn.Linear(5, 1).double() for _ in range(2)],
        "loss_fns": [torch.sum, lambda y: (y - 1).square().mean()],
    }
    if dist.is_initialized():
        dist.destroy_process_group()


def snippet(word: str) -> str:
    (found,) = [text for text in SNIPPETS if word in text]
    return str(found)


def test_all_are_run() -> None:
    words = ("c = fastconfig.weights(losses, network)  #", "scaler", "ddp_model", "training_step")
    words += ("accelerator", "mtl_backward", "EveryOperator")
    assert len(SNIPPETS) == len([snippet(word) for word in words])


def exact(names: dict[str, Any]) -> Tensor:
    network = names["network"]
    return reference.config(rows_of(losses_of(network, names["batch"]), list(network.parameters())))


def written(module: nn.Module) -> Tensor:
    return torch.cat([par.grad.reshape(-1) for par in module.parameters() if par.grad is not None])


@pytest.mark.parametrize(
    ("word", "factor"),
    [("c = fastconfig.weights(losses, network)  #", 1), ("scaler", 8 / 4), ("accelerator", 1)],
)
def test_a_loop(word: str, factor: float, names: dict[str, Any]) -> None:
    exec(snippet(word), names)
    assert relative_error(written(names["network"]), factor * exact(names)) <= 1e-9


def test_a_training_step(names: dict[str, Any]) -> None:
    exec(snippet("training_step"), names)
    names["training_step"](names["network"], names["batch"], 0).backward()
    assert relative_error(written(names["network"]), exact(names)) <= 1e-9


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="no Gloo")
def test_replicas(names: dict[str, Any], tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    names["ddp_model"] = DistributedDataParallel(copy.deepcopy(names["network"]))
    exec(snippet("ddp_model"), names)
    assert relative_error(written(names["ddp_model"]), exact(names)) <= 1e-9


def test_a_trunk(names: dict[str, Any]) -> None:
    exec(snippet("mtl_backward"), names)
    features = names["trunk"](names["batch"])
    values = [f(head(features)) for head, f in zip(names["heads"], names["loss_fns"], strict=True)]
    merged = reference.config(rows_of(values, [features])).view(features.shape)
    pieces = torch.autograd.grad(features, list(names["trunk"].parameters()), merged)
    wanted = torch.cat([piece.reshape(-1) for piece in pieces])
    assert relative_error(written(names["trunk"]), wanted) <= 1e-9


def test_steps_that_keep_the_weights(names: dict[str, Any]) -> None:
    exec(snippet("EveryOperator"), names | {"batches": [names["batch"]] * 3})
    assert relative_error(written(names["network"]), exact(names)) <= 1e-9
