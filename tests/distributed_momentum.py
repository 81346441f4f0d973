"""Momentum whose state is spread like the gradients; saved on some ranks and resumed on others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_ddp import replica
from distributed_fsdp import data_rank, data_ranks, flat, tensor_parallel
from distributed_inputs import (
    averaged_rows,
    batch_of,
    device,
    gathered,
    grads_of,
    has_fsdp,
    losses_of,
    uneven,
)
from distributed_shards import part_of
from inputs import relative_error
from schedules import momentum_error
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fastconfig import (
    ConFIGOperator,
    GradientOperator,
    LatestLossRecorder,
    PPCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    backward,
    distributed,
    reference,
)

N, M, STEPS = 1003, 3, 12
#: what is saved by one run of ranks and resumed by another
FOLDER = os.environ.get("FASTCONFIG_TEST_CHECKPOINT")


def rows_at(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(M, N, dtype=torch.float64, generator=generator) + 0.2


def errors(
    operator: Any,
    give: Callable[[Tensor], Any],
    whole: Callable[[Any], Tensor],
    exact: reference.Momentum,
    steps: range,
) -> float:
    worst = 0.0
    for step in steps:
        chosen = [step % M] if step % 4 else [2, 0]
        rows = rows_at(step)[chosen]
        update = whole(operator.calculate_gradient(chosen, give(rows)))
        wanted = exact.step(chosen, rows)
        if operator.all_initialized:
            worst = max(worst, momentum_error(update, wanted, exact))
        else:
            assert not update.any()
    return worst


def case_plain_parts(rank: int, ranks: int) -> None:
    sizes = uneven(N, ranks)
    inner: tuple[tuple[GradientOperator, Any], ...] = (
        (ConFIGOperator(), reference.config),
        (PPCGradOperator(process_group=dist.group.WORLD), reference.ppcgrad),
    )
    for k, (merger, oracle) in enumerate(inner):
        operator = PseudoMomentumOperator(
            M, gradient_operator=merger, process_group=dist.group.WORLD if k == 0 else None
        )
        exact = reference.Momentum(M, oracle)
        whole = lambda update: torch.cat(gathered(update))
        assert errors(operator, lambda rows: part_of(rows, rank, sizes), whole, exact, range(STEPS)) <= 1e-10
        state = operator.state_dict()
        assert state["rank"] == (rank, ranks)
        other = PseudoMomentumOperator(M, gradient_operator=merger, process_group=operator.process_group)
        other.load_state_dict(state)
        steps = range(STEPS, STEPS + 3)
        assert errors(other, lambda rows: part_of(rows, rank, sizes), whole, exact, steps) <= 1e-10
        state["rank"] = (rank, ranks + 1)
        with pytest.raises(ValueError, match=r"state: got that of \(rank, ranks\)"):
            other.load_state_dict(state)


def case_parameters_of_some_ranks_only(rank: int, ranks: int) -> None:
    """Rank 0 has no parameter with a gradient."""
    if ranks == 1:
        return
    operator = PseudoMomentumOperator(M, process_group=dist.group.WORLD)
    exact = reference.Momentum(M, reference.config)
    for step in range(6):
        rows = rows_at(step)
        sizes = [0, N - 10 * (ranks - 2), *[10] * (ranks - 2)]
        part = part_of(rows, rank, sizes)
        update = operator.calculate_gradient(range(M), [[row if rank else None] for row in part])
        mine = torch.zeros(0, dtype=torch.float64) if rank == 0 else update[0]
        wanted = exact.step(range(M), rows)
        assert momentum_error(torch.cat(gathered(mine)), wanted, exact) <= 1e-10


def case_dtensors(rank: int, ranks: int) -> None:
    mesh = init_device_mesh(device().type, (ranks,))
    give = lambda rows: [distribute_tensor(row.to(device()), mesh, [Shard(0)]) for row in rows]
    whole = lambda update: update.full_tensor().cpu()
    for kind in (PseudoMomentumOperator, SeparateMomentumOperator):
        operator: Any = kind(M)
        if kind is PseudoMomentumOperator:
            exact = reference.Momentum(M, reference.config)
            assert errors(operator, give, whole, exact, range(STEPS)) <= 1e-10
        else:
            alone = kind(M)
            for step in range(6):
                rows = rows_at(step)
                update = operator.calculate_gradient(range(M), give(rows))
                assert (
                    relative_error(whole(update), alone.calculate_gradient(range(M), rows).double()) <= 1e-10
                )
        state = operator.state_dict()
        assert all(isinstance(tensor, DTensor) for tensor in state["momenta"][0])
        other = kind(M)
        other.load_state_dict(state)
        update = operator.calculate_gradient([1], give(rows_at(50)[:1]))
        assert torch.equal(other.calculate_gradient([1], give(rows_at(50)[:1])).to_local(), update.to_local())
        with pytest.raises(ValueError, match="grads: got whole ones of what is spread"):
            other.calculate_gradient([1], [give(rows_at(50))[0].to_local()])
    fresh = PseudoMomentumOperator(M)
    fresh.calculate_gradient(range(M), list(rows_at(0).to(device())))
    if ranks == 1:
        return
    with pytest.raises(ValueError, match="grads: got"):
        fresh.calculate_gradient([0], give(rows_at(0)[:1]))


def take(losses: list[Tensor], net: Any, operator: PseudoMomentumOperator, indexes: list[int]) -> None:
    """A step's gradients, by the function for this kind of network."""
    if isinstance(net, DistributedDataParallel):
        distributed.backward(net, losses, operator, indexes=indexes)
    else:
        backward(losses, net, operator, indexes=indexes)


def case_fsdp_and_ddp(rank: int, ranks: int) -> None:
    for make_net in (*((flat, tensor_parallel) if has_fsdp() else ()), lambda ranks: replica()):
        net = make_net(ranks)
        operator = PseudoMomentumOperator(M, loss_recorder=LatestLossRecorder(M))
        exact = reference.Momentum(M, reference.config)
        by_ddp = isinstance(net, DistributedDataParallel)
        mine, shares = (rank, ranks) if by_ddp else (data_rank(net), data_ranks(net, ranks))
        for step in range(8):
            losses = losses_of(net, batch_of(mine, step).to(device()))
            chosen = [0, 1, 2] if step == 0 else [step % M]
            take([losses[i] for i in chosen], net, operator, chosen)
            wanted = exact.step(chosen, averaged_rows(shares, step)[chosen])
            assert momentum_error(grads_of(net).cpu(), wanted, exact) <= 1e-9


def resumable(ranks: int) -> dict[str, tuple[Any, PseudoMomentumOperator]]:
    nets = {"ddp": replica(), **({"fsdp": flat(ranks)} if has_fsdp() else {})}
    return {name: (net, PseudoMomentumOperator(M)) for name, net in nets.items()}


def momentum_step(net: Any, operator: PseudoMomentumOperator, step: int) -> Tensor:
    """A step that does not depend on the number of ranks: all see the same data."""
    losses = losses_of(net, batch_of(0, step).to(device()))
    take([losses[step % M]], net, operator, [step % M])
    return grads_of(net).cpu()


def case_saved(rank: int, ranks: int) -> None:
    """First of two runs: a checkpoint by all ranks, and what the next steps give."""
    if FOLDER is None or (Path(FOLDER) / "expected.pt").exists():
        return
    runs, expected = resumable(ranks), {}
    for net, operator in runs.values():
        for step in range(7):
            momentum_step(net, operator, step)
    dcp.save({name: operator for name, (_, operator) in runs.items()}, checkpoint_id=FOLDER)
    for name, (net, operator) in runs.items():
        expected[name] = [momentum_step(net, operator, step) for step in range(7, 12)]
    if rank == 0:
        torch.save(expected, Path(FOLDER) / "expected.pt")
    dist.barrier()
    os.environ["FASTCONFIG_TEST_SAVED_BY"] = str(ranks)


def case_resumed(rank: int, ranks: int) -> None:
    """Second: on another number of ranks, into operators that have made room."""
    if FOLDER is None or "FASTCONFIG_TEST_SAVED_BY" in os.environ:
        return
    runs = resumable(ranks)
    for net, operator in runs.values():
        operator.allocate(net)
    dcp.load({name: operator for name, (_, operator) in runs.items()}, checkpoint_id=FOLDER)
    expected = torch.load(Path(FOLDER) / "expected.pt")
    for name, (net, operator) in runs.items():
        assert operator.all_initialized
        for step, wanted in enumerate(expected[name], start=7):
            assert relative_error(momentum_step(net, operator, step), wanted) <= 1e-11
