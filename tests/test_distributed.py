"""Several processes on one machine: runs the cases of distributed_*.py on 2 and 4 ranks by Gloo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pairs import slow, some

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without Gloo"
)
needs_fsdp = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch's FSDP2 does not run on a CPU"
)


def run(script: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, str(TESTS / script), *arguments]
    environ = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environ)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def check_cases(parts: tuple[str, ...], ranks: int, backend: str = "gloo", **environment: str) -> None:
    options = "--ranks", str(ranks), "--backend", backend
    printed = run("distributed_cases.py", *parts, *options, **environment)
    for part in parts:
        wanted = (TESTS / f"distributed_{part}.py").read_text().count("\ndef case_")
        assert wanted
        assert len(re.findall(rf"^{part}\.\w+: (?:passed|skipped)$", printed, re.MULTILINE)) == wanted, (
            printed
        )


@pytest.mark.parametrize("ranks", some([2, 4], quick=[2]))
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("shards", "dtensors", "monitor"), id="shards"),
        pytest.param(("fsdp", "ddp", "disguises", "wire"), id="replicas"),
        pytest.param(("groups", "weights"), marks=slow, id="groups"),
    ],
)
def test_ranks(parts: tuple[str, ...], ranks: int) -> None:
    check_cases(parts, ranks)


@slow
def test_momentum_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    for ranks in (2, 4):
        check_cases(("momentum",), ranks, FASTCONFIG_TEST_CHECKPOINT=str(tmp_path))
        assert (tmp_path / "expected.pt").exists()


@slow
@needs_fsdp
def test_the_example_resumes_on_other_ranks(tmp_path: Path) -> None:
    """As its docstring says; the losses are those of the run that went through."""

    def losses(ranks: int, begin: int, steps: int, folder: str) -> list[float]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += [str(TESTS.parent / "examples" / "fsdp_pinn.py")]
        command += [f"--steps={steps}", f"--checkpoint={tmp_path / folder}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-5000:]
        line = rf"^\w+: loss (\S+) after steps {begin} to {steps}$"
        found = [float(value) for value in re.findall(line, done.stdout, re.MULTILINE)]
        assert len(found) == 3, done.stdout
        return found

    through = losses(2, 0, 60, "through")
    halfway = losses(2, 0, 30, "resumed")
    assert sum(through) < sum(halfway)
    assert losses(4, 30, 60, "resumed") == pytest.approx(through, rel=1e-8)


@pytest.mark.parametrize(
    "way", ["plain", pytest.param("ddp", marks=slow), pytest.param("fsdp", marks=[needs_fsdp, slow])]
)
def test_a_lost_rank_is_an_error_of_the_others(way: str) -> None:
    run("distributed_killed.py", way)
