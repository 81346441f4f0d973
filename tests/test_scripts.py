"""The training examples, run as a reader runs them: the losses come down."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import slow, some

from fastconfig.monitor import Monitor

EXAMPLES = Path(__file__).parents[1] / "examples"
TOGETHER = {"pinn.py"}  # a network that starts near zero has hardly any residual yet
#: arguments, and the package that an example is about
SCRIPTS: dict[str, tuple[list[str], str | None]] = {
    "pinn.py": (["--steps", "150"], None),
    "lightning_module.py": (["--steps", "150"], "lightning"),
    "accelerate_loop.py": (["--steps", "150"], "accelerate"),
    "accelerate_weights.py": (["--steps", "150"], "accelerate"),
    "lightning_devices.py": (["--steps", "60"], "lightning"),
    "multi_task_images.py": (["--steps", "60"], None),
    "amp_accumulation.py": (["--steps", "150"], None),
}


@slow
def test_a_monitor_in_lightning_and_tensorboard(tmp_path: Path) -> None:
    """What TensorBoard reads is what the monitor has saved."""
    for package in ("lightning", "tensorboard"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    command = [
        sys.executable,
        str(EXAMPLES / "lightning_monitor.py"),
        "--steps",
        "30",
        "--out",
        str(tmp_path),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "sine, cosine" in run.stdout
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent)).Reload()
    kept = Monitor.load(tmp_path / "run.npz").history()
    for tag, values in (
        ("gradients/cosine/sine,cosine", kept["cosines"][:, 0]),
        ("gradients/norm/sine", kept["norms"][:, 0]),
        ("gradients/loss/cosine", kept["losses"][:, 1]),
    ):
        found = [event.value for event in events.Scalars(tag)]
        assert found == pytest.approx(values[9::10].tolist(), rel=1e-6)


@pytest.mark.parametrize("name", some([*SCRIPTS], quick=["pinn.py"]))
def test_losses_come_down(name: str) -> None:
    arguments, package = SCRIPTS[name]
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = re.findall(r"^(\w+): loss (\S+) -> (\S+)$", run.stdout, re.MULTILINE)
    assert len(found) >= 2, run.stdout
    first, last = ([float(line[k]) for line in found] for k in (1, 2))
    if name in TOGETHER:
        first, last = [sum(first)], [sum(last)]
    assert all(after < before for before, after in zip(first, last, strict=True)), run.stdout
