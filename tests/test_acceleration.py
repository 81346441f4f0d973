"""conflictfree code that is not edited, on this package."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import torch
from inputs import low_rank, relative_error
from peer import MODULES, OURS, THEIRS

from fastconfig import accelerate, reference

SCRIPT = """
import sys
from conflictfree.grad_operator import ConFIG_update, ConFIGOperator
from conflictfree.momentum_operator import PseudoMomentumOperator
from conflictfree.utils import *
import torch, conflictfree.grad_operator
print(ConFIG_update.__module__, ConFIGOperator.__module__, PseudoMomentumOperator.__module__)
print(get_gradient_vector.__module__, conflictfree.grad_operator.ConFIG_update is ConFIG_update)
print(sys.argv[1:], __name__)
"""


def test_names_are_served_and_put_back() -> None:
    holder = types.ModuleType("holder_of_a_name")
    holder.merge = THEIRS["grad_operator"].ConFIG_update  # type: ignore[attr-defined]
    sys.modules[holder.__name__] = holder
    before = {module: dict(vars(THEIRS[module])) for module in MODULES}
    rows = low_rank(8, 100_000, 8).float()
    try:
        with accelerate() as acceleration:
            theirs = THEIRS["grad_operator"]
            assert theirs.ConFIG_update is OURS["grad_operator"].ConFIG_update
            assert holder.merge is theirs.ConFIG_update  # type: ignore[attr-defined]
            assert holder.__name__ in acceleration.modules
            assert "momentum_operator.PseudoMomentumOperator" in acceleration.names
            assert relative_error(theirs.ConFIG_update(rows), reference.config(rows)) <= 1e-5
            assert "holder_of_a_name" in str(acceleration)
            assert not accelerate().names
        assert holder.merge is before["grad_operator"]["ConFIG_update"]  # type: ignore[attr-defined]
    finally:
        del sys.modules[holder.__name__]
    for module in MODULES:
        for name, value in before[module].items():
            assert vars(THEIRS[module])[name] is value


def test_every_function_and_class_is_served() -> None:
    with accelerate() as acceleration:
        for module in MODULES:
            for name, value in vars(THEIRS[module]).items():
                defined = getattr(value, "__module__", "")
                private = name.startswith("_")
                assert private or not str(defined).startswith("conflictfree"), f"{module}.{name}"
    assert len(acceleration.names) == 34


def test_steps_are_those_of_direct_use() -> None:
    """Fifty steps of SGD in float64: the same bits, since it is the same code."""
    found = []
    for accelerated in (True, False):
        torch.manual_seed(3)
        network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
        with accelerate() if accelerated else torch.no_grad():
            modules = THEIRS if accelerated else OURS
            operator = modules["grad_operator"].ConFIGOperator()
            utils = modules["utils"]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        for _ in range(50):
            x = torch.randn(9, 3, dtype=torch.float64)
            grads = []
            for k in range(2):
                optimizer.zero_grad()
                (network(x)[:, k] - k).square().mean().backward()
                grads.append(utils.get_gradient_vector(network))
            operator.update_gradient(network, grads)
            optimizer.step()
        found.append(torch.cat([par.detach().reshape(-1) for par in network.parameters()]))
    assert relative_error(found[0], found[1]) <= 1e-10


def test_a_script_runs_unedited(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "fastconfig", "run", str(script), "--steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == "fastconfig.config_update fastconfig.grad_operator fastconfig.momentum_operator"
    assert lines[1] == "fastconfig.utils True"
    assert lines[2] == "['--steps', '3'] __main__"
    assert "fastconfig serves 34 names of conflictfree" in done.stderr


def test_undo_is_done_once_and_leaves_what_was_set_meanwhile() -> None:
    theirs = THEIRS["grad_operator"]
    before = theirs.ConFIG_update, theirs.ConFIGOperator
    acceleration = accelerate()
    inner = accelerate()
    theirs.ConFIG_update = "somebody's"  # type: ignore[attr-defined]
    try:
        inner.undo()
        assert theirs.ConFIGOperator is OURS["grad_operator"].ConFIGOperator
        acceleration.undo()
        assert theirs.ConFIG_update == "somebody's"
        assert theirs.ConFIGOperator is before[1]
    finally:
        theirs.ConFIG_update = before[0]  # type: ignore[attr-defined]
    with accelerate():  # a later one is not undone by an earlier one
        acceleration.undo()
        assert theirs.ConFIG_update is OURS["grad_operator"].ConFIG_update
    assert theirs.ConFIG_update is before[0]
