"""``weights`` under Lightning and under Accelerate, with two processes each; where they are installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from pairs import some

SCRIPT = str(Path(__file__).parent / "trainer_cases.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
COMMANDS = {"lightning": [SCRIPT, "lightning"], "accelerate": [*TORCHRUN, SCRIPT, "accelerate"]}


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="no Gloo")
@pytest.mark.parametrize("trainer", some([*COMMANDS], quick=[]))
def test_the_merged_gradient(trainer: str) -> None:
    if importlib.util.find_spec(trainer) is None:
        pytest.skip(f"{trainer} is not installed")
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *COMMANDS[trainer]], capture_output=True, text=True, timeout=300, env=environ
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert sorted(re.findall(r"rank (\d): 3 steps", done.stdout)) == ["0", "1"], done.stdout[-3000:]
