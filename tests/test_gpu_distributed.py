"""The cases of several processes with NCCL, on the one rank that a machine with one GPU has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_distributed import check_cases

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and dist.is_available() and dist.is_nccl_available()), reason="needs a GPU"
)


@pytest.mark.parametrize("part", ["shards", "dtensors", "fsdp", "ddp", "momentum", "wire"])
def test_one_rank(part: str, tmp_path: Path) -> None:
    check_cases((part,), 1, "nccl", FASTCONFIG_TEST_CHECKPOINT=str(tmp_path))
