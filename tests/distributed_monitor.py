"""A monitor on several ranks: the figures of the whole gradients, the same on each."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from distributed_ddp import my_batch, replica
from distributed_inputs import assert_same_bits, averaged_rows, losses_of, uneven
from distributed_shards import part_of
from inputs import conflicting
from watching import by_hand, check

import fastconfig
from fastconfig import reference
from fastconfig.monitor import Monitor
from fastconfig.pcgrad import PPCGrad


def same_on_all(monitor: Monitor) -> None:
    history = monitor.history()
    for name in ("norms", "cosines", "coefficients", "update_cosines"):
        assert_same_bits(torch.from_numpy(history[name]).contiguous())


def case_parts(rank: int, ranks: int) -> None:
    operator = fastconfig.ConFIGOperator(process_group=dist.group.WORLD)
    momentum = fastconfig.PseudoMomentumOperator(3, process_group=dist.group.WORLD)
    operator.monitor, momentum.monitor = Monitor(), Monitor()
    steps, averaged = [], []
    held = torch.zeros(3, 500, dtype=torch.float64)
    for step in range(1, 4):
        rows = conflicting(3, 500).double()
        part = part_of(rows, rank, uneven(500, ranks) if step == 1 else [500 // ranks] * ranks)
        operator.calculate_gradient(list(part))
        steps.append(by_hand(rows, reference.config(rows)))
        part = part_of(rows, rank, [500 // ranks] * ranks)
        momentum.calculate_gradient([0, 1, 2], list(part))
        held = 0.9 * held + 0.1 * rows
        corrected = held / (1 - 0.9**step)
        averaged.append(by_hand(corrected, reference.config(corrected)))
    for monitor, wanted in ((operator.monitor, steps), (momentum.monitor, averaged)):
        check(monitor, wanted)
        same_on_all(monitor)


def case_replicas(rank: int, ranks: int) -> None:
    """By backward, weights and PPCGrad, set on all ranks and then on one only; losses are each rank's own."""
    for merging in (fastconfig.ConFIGOperator(), "weights", PPCGrad()):
        net = replica()
        operator: Any = fastconfig.ConFIGOperator() if merging == "weights" else merging
        operator.monitor = monitor = Monitor()
        wanted = []
        for step in range(3):
            if step == 2 and rank:
                operator.monitor = None
            losses = losses_of(net, my_batch(step))
            if merging == "weights":
                fastconfig.weights(losses, net, operator)
            elif isinstance(merging, PPCGrad):
                merging.pc_backward(losses, net.module.parameters())
            else:
                fastconfig.backward(losses, net, operator)
            rows = averaged_rows(ranks, step)
            update = reference.ppcgrad(rows) / 3 if isinstance(merging, PPCGrad) else reference.config(rows)
            if operator.monitor is not None:
                wanted.append(by_hand(rows, update) | {"losses": [float(v.detach()) for v in losses]})
            if step == 1:
                same_on_all(monitor)
        check(monitor, wanted)
