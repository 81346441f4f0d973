"""docs/which_call.md: every snippet runs, and leaves the merged gradient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch.distributed as dist
from inputs import relative_error, rows_of
from test_weights_page import exact, losses_of, names, written
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastconfig import reference

__all__ = ["names"]  # the fixture

PAGE = (Path(__file__).parents[1] / "docs" / "which_call.md").read_text(encoding="utf-8")


def of(section: str) -> list[str]:
    """The snippets of a section."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [part.partition("```")[0] for part in text.split("```python\n")[1:]]


SECTIONS = {
    "Nothing special": 1,
    "Mixed precision": 1,
    "Accumulation": 1,
    "A compiled model": 1,
    "DistributedDataParallel": 2,
    "Lightning": 1,
    "Accelerate": 1,
    "A shared trunk": 1,
    "Many losses": 2,
    "Little memory": 1,
}


def test_all_are_run() -> None:
    assert {section: len(of(section)) for section in SECTIONS} == SECTIONS
    assert PAGE.count("```python") == sum(SECTIONS.values())


def filled(names: dict[str, Any]) -> dict[str, Any]:
    return names | {"batches": [names["batch"]] * 2, "parts": 1}


@pytest.mark.parametrize(
    "section",
    ["Nothing special", "Mixed precision", "Accumulation", "A compiled model", "Accelerate", "Little memory"],
)
def test_a_loop(section: str, names: dict[str, Any]) -> None:
    (code,) = of(section)
    with torch._functorch.config.patch(donated_buffer=False):  # put back afterwards
        exec(code, filled(names))
    assert relative_error(written(names["network"]), exact(names)) <= 1e-9


def test_a_training_step(names: dict[str, Any]) -> None:
    exec(of("Lightning")[0], names)
    names["training_step"](names["network"], names["batch"], 0).backward()
    assert relative_error(written(names["network"]), exact(names)) <= 1e-9


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="no Gloo")
@pytest.mark.parametrize("k", range(2))
def test_replicas(k: int, names: dict[str, Any], tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    names["ddp_model"] = DistributedDataParallel(copy.deepcopy(names["network"]))
    exec(of("DistributedDataParallel")[k], names)
    assert relative_error(written(names["ddp_model"]), exact(names)) <= 1e-9


def test_a_trunk(names: dict[str, Any]) -> None:
    exec(of("A shared trunk")[0], names)
    features = names["trunk"](names["batch"])
    values = [f(head(features)) for head, f in zip(names["heads"], names["loss_fns"], strict=True)]
    merged = reference.config(rows_of(values, [features])).view(features.shape)
    pieces = torch.autograd.grad(features, list(names["trunk"].parameters()), merged)
    assert relative_error(written(names["trunk"]), torch.cat([piece.reshape(-1) for piece in pieces])) <= 1e-9


def test_many_losses(names: dict[str, Any]) -> None:
    often, momentum = of("Many losses")
    exec(often, filled(names))
    assert relative_error(written(names["network"]), exact(names)) <= 1e-9
    exec(momentum, filled(names))
    net: nn.Module = names["network"]
    rows = rows_of(losses_of(net, names["batch"]), list(net.parameters()))
    # both gradients have come once, and the averages are corrected: the first step's u / (|u| + 1e-8)
    u = reference.config(rows)
    assert relative_error(written(net), u / (u.abs() + 1e-8)) <= 1e-9
