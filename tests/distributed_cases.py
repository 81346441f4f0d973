"""Cases that several processes run together: ``python tests/distributed_cases.py PART ... --ranks 2``.

Every case is a function of this rank and the number of ranks; all ranks draw the same inputs from the seed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from distributed_inputs import has_fsdp
from poisoned import poison

Case = Callable[[int, int], None]
PARTS = ("shards", "dtensors", "fsdp", "ddp", "disguises", "groups", "momentum", "monitor", "weights", "wire")


def cases_of(parts: list[str]) -> dict[str, Case]:
    modules = {part: vars(importlib.import_module(f"distributed_{part}")) for part in parts}
    return {
        f"{part}.{name}": case
        for part, found in modules.items()
        for name, case in found.items()
        if name.startswith("case_")
    }


def run(
    rank: int, parts: list[str], ranks: int, backend: str, meeting: str, seed: int, chosen: str | None
) -> None:
    """All cases, one after the other; a failure ends the process, and so all."""
    poison()
    torch.set_num_threads(1)
    device = torch.device("cuda", 0) if backend == "nccl" else None
    how = {"init_method": f"file://{meeting}", "rank": rank, "world_size": ranks, "device_id": device}
    dist.init_process_group(backend, timeout=timedelta(seconds=60), **how)
    for name, case in cases_of(parts).items():
        if chosen is not None and chosen not in name:
            continue
        if hasattr(case, "by_fsdp") and not has_fsdp():
            if rank == 0:
                print(f"{name}: skipped", flush=True)
            continue
        torch.manual_seed(seed)
        try:
            case(rank, ranks)
        except Exception:
            print(f"--- {name} on rank {rank} of {ranks}, seed {seed}\n{traceback.format_exc()}", flush=True)
            os._exit(1)  # the other ranks may wait within the same case
        if rank == 0:
            print(f"{name}: passed", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", default="gloo")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--case", help="only cases with this in their name")
    given = parser.parse_args()
    cases_of(given.parts)  # imported once: the ranks are forks
    method = "fork" if given.backend == "gloo" else "spawn"
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (given.parts, given.ranks, given.backend, f"{folder}/meeting", given.seed, given.case)
            mp.start_processes(run, arguments, nprocs=given.ranks, start_method=method)
    except mp.ProcessExitedException as error:
        sys.exit(f"seed {given.seed}: {error}")


if __name__ == "__main__":
    main()
