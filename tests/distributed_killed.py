"""A rank that dies or hangs in the middle of a step: ``python tests/distributed_killed.py WAY``.

The other one gets an error that says which collective, within the group's timeout, and keeps its ``.grad``.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from distributed_ddp import my_batch, replica
from distributed_fsdp import flat
from distributed_inputs import losses_of
from torch import nn

from fastconfig import ConFIGOperator, backward, distributed

TIMEOUT = 5.0  # seconds, of the group
GONE = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


def plain(rank: int, leave: Callable[[], None]) -> tuple[nn.Module, Callable[[], None], str]:
    """Before the only all-reduce."""
    net = nn.Linear(3, 2)
    operator = ConFIGOperator(process_group=dist.group.WORLD)

    def step() -> None:
        losses = [net(torch.ones(1, 3)).sum(), net(torch.ones(1, 3)).square().sum()]
        if rank == 1:
            leave()
        backward(losses, net, operator)

    return net, step, r"all-reduce of the Gram matrix \(2, 2\) over 2 ranks failed on rank 0"


def ddp(rank: int, leave: Callable[[], None]) -> tuple[nn.Module, Callable[[], None], str]:
    """While the gradients are on their way."""
    net = replica()

    def step() -> None:
        losses = losses_of(net, my_batch())
        if rank == 1:
            losses[2].register_hook(lambda grad: leave())
        distributed.backward(net, losses)

    what = r"(reduce-scatter of the gradient of losses\[\d\]|all-reduce of which parameters have a gradient)"
    return net, step, rf"{what} .*over 2 ranks failed on rank 0"


def fsdp(rank: int, leave: Callable[[], None]) -> tuple[nn.Module, Callable[[], None], str]:
    """In the second loss's backward pass, whose collectives are the engine's."""
    net = flat(2)

    def step() -> None:
        losses = losses_of(net, my_batch())
        if rank == 1:
            losses[1].register_hook(lambda grad: leave())
        backward(losses, net)

    return net, step, r"a collective of the backward pass of losses\[1\] failed"


WAYS = {"plain": plain, "ddp": ddp, "fsdp": fsdp}


def run(rank: int, way: str, gone: str, meeting: str) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", timeout=timeout, init_method=f"file://{meeting}", rank=rank, world_size=2)
    net, step, message = WAYS[way](rank, lambda: os.kill(os.getpid(), GONE[gone]))
    for par in net.parameters():
        par.grad = torch.full_like(par, 7)
    before = [par.grad for par in net.parameters()]
    dist.barrier()
    begin = time.monotonic()
    code = 1
    try:
        step()
    except distributed.CollectiveError as error:
        took = time.monotonic() - begin
        whole = all(
            par.grad is grad and bool((grad == 7).all())
            for par, grad in zip(net.parameters(), before, strict=True)
        )
        code = 0 if re.search(message, str(error)) and took < TIMEOUT + 30 and whole else 1
        print(
            f"{way}, {gone}: after {took:.1f} s, .grad {'as before' if whole else 'changed'}: {error}",
            flush=True,
        )
    except Exception:
        traceback.print_exc()
    os._exit(code)  # the group is broken: nothing to wait for


def main() -> int:
    code = 0
    context = mp.get_context("fork")
    for gone in GONE:
        with tempfile.TemporaryDirectory() as folder:
            given = sys.argv[1], gone, f"{folder}/meeting"
            processes = [context.Process(target=run, args=(rank, *given)) for rank in range(2)]
            for process in processes:
                process.start()
            processes[0].join(60)
            code |= processes[0].exitcode != 0
            for process in processes:
                process.kill()
    return code


if __name__ == "__main__":
    sys.exit(main())
