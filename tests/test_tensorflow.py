"""Runs the TensorFlow cases in processes of their own: TensorFlow and Triton crash in one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import slow

HERE = Path(__file__).parent
CASES = [str(HERE / name) for name in ("tensorflow_cases.py", "tensorflow_losses.py")]


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
@pytest.mark.parametrize(
    ("part", "speed"),
    [
        ("not xla", "not slow"),
        pytest.param("xla", "not slow", marks=slow),
        pytest.param("", "slow", marks=slow),
    ],
)
def test_tensorflow(part: str, speed: str) -> None:
    chosen = ["-k", part] if part else []
    command = [sys.executable, "-m", "pytest", *CASES, *chosen, "-m", speed, "-p", "no:cacheprovider"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout
