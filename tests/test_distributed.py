"""Several processes on one machine: runs the cases of distributed_*.py on 2 and 4 ranks by Gloo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without Gloo"
)


def run(script: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, str(TESTS / script), *arguments]
    environ = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environ)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def check_cases(parts: tuple[str, ...], ranks: int, **environment: str) -> None:
    printed = run("distributed_cases.py", *parts, "--ranks", str(ranks), **environment)
    for part in parts:
        wanted = (TESTS / f"distributed_{part}.py").read_text().count("\ndef case_")
        assert wanted
        assert len(re.findall(rf"^{part}\.\w+: passed$", printed, re.MULTILINE)) == wanted, printed


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("parts", [("shards", "dtensors"), ("fsdp", "ddp", "wire")], ids=" ".join)
def test_ranks(parts: tuple[str, ...], ranks: int) -> None:
    check_cases(parts, ranks)


def test_momentum_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    for ranks in (2, 4):
        check_cases(("momentum",), ranks, FASTCONFIG_TEST_CHECKPOINT=str(tmp_path))
        assert (tmp_path / "expected.pt").exists()


@pytest.mark.parametrize("way", ["plain", "ddp", "fsdp"])
def test_a_lost_rank_is_an_error_of_the_others(way: str) -> None:
    run("distributed_killed.py", way)
