"""Every public name has an example in its docstring, and the example gives what it says."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
from typing import Any

import pytest
import torch
from torch import nn

import fastconfig

NAMES = [name for name in fastconfig.__all__ if not inspect.ismodule(getattr(fastconfig, name))]
NEEDS = {"accelerate": "conflictfree"}


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    if importlib.util.find_spec(NEEDS.get(name, "torch")) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    trunk, batch = nn.Sequential(nn.Linear(3, 5), nn.Tanh()), torch.randn(7, 3)
    network = nn.Sequential(trunk, nn.Linear(5, 2))
    network(batch).sum().backward()
    y = network(batch)
    names: dict[str, Any] = {
        **{public: getattr(fastconfig, public) for public in NAMES},
        "batch": batch,
        "fastconfig": fastconfig,
        "heads": [nn.Linear(5, 1), nn.Linear(5, 1)],
        "loss_fns": [lambda *given, k=k: given[0](*given[1:]).sub(k).square().mean() for k in range(2)],
        "losses": [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean()],
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "step": 3,
        "torch": torch,
        "trunk": trunk,
    }
    if name == "mtl_backward":
        names["loss_fns"] = [lambda output: output.square().mean(), lambda output: output.exp().mean()]
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(fastconfig, name), name, globs=names)
    assert found.examples
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(found, out=said.append)
    assert result.failed == 0, "".join(said)
