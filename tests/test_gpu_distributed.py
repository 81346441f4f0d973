"""The cases of several processes with NCCL, on the one rank that a machine with one GPU has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_distributed import run

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and dist.is_available() and dist.is_nccl_available()), reason="needs a GPU"
)


@pytest.mark.parametrize("part", ["shards", "dtensors", "fsdp", "ddp", "momentum", "wire"])
def test_one_rank(part: str, tmp_path: Path) -> None:
    run(
        "distributed_cases.py",
        part,
        "--ranks",
        "1",
        "--backend",
        "nccl",
        FASTCONFIG_TEST_CHECKPOINT=str(tmp_path),
    )
