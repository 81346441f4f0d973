"""What a step sends, counted where torch.distributed is called, is what docs/scaling.md says."""

from __future__ import annotations

import torch
import torch.distributed as dist
from distributed_ddp import my_batch, replica
from distributed_fsdp import flat
from distributed_inputs import by_fsdp, device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fastconfig import ConFIG_update, PCGradOperator, PseudoMomentumOperator, backward, distributed
from fastconfig.bench.wire import Problem, WireCount, replicas, replicas_of_peers, shards, shards_of_peers


def even_net(ranks: int) -> nn.Module:
    """Layers that the ranks share evenly, so that FSDP2 pads nothing."""
    return nn.Sequential(nn.Linear(4 * ranks, 8 * ranks), nn.Tanh(), nn.Linear(8 * ranks, 4 * ranks))


def three_losses(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = net(x)
    return [y[:, k].square().mean() for k in range(3)]


def problem(net: nn.Module, ranks: int) -> Problem:
    parameters = list(net.parameters())
    itemsize = parameters[0].element_size()
    return Problem(ranks, 3, sum(p.numel() for p in parameters), len(parameters), itemsize)


def case_plain_shards_send_the_gram_matrix(rank: int, ranks: int) -> None:
    for m in (2, 9):
        with WireCount() as wire:
            ConFIG_update(torch.randn(m, 100, device=device()), process_group=dist.group.WORLD)
        assert wire.payload == {"all-reduce": 8 * m * m}


def case_replicas(rank: int, ranks: int) -> None:
    net = replica()
    sizes = problem(net, ranks)
    for operator in (None, PCGradOperator(shuffle=True), PseudoMomentumOperator(3)):
        losses = three_losses(net, my_batch())
        with WireCount() as wire:
            distributed.backward(net, losses, *([] if operator is None else [operator]))
        by_gloo = device().type == "cpu"
        assert wire.payload == replicas(sizes, by_gloo)
        scatter, gather = ("all-to-all", "broadcast") if by_gloo else ("reduce-scatter", "all-gather")
        assert wire.calls == {scatter: 3, "all-reduce": 2, gather: ranks if by_gloo else 1}


def case_replicas_of_peers(rank: int, ranks: int) -> None:
    net = replica(even_net(ranks))
    x = torch.randn(5, 4 * ranks, device=device())
    for _ in range(3):  # DDP makes its buckets anew after the first step
        with WireCount() as wire:
            for k in range(3):
                net.zero_grad()
                three_losses(net, x)[k].backward()
    assert wire.payload == replicas_of_peers(problem(net, ranks))


@by_fsdp
def case_shards(rank: int, ranks: int) -> None:
    if ranks == 1:
        return  # nothing is sent
    net = flat(ranks, even_net(ranks))
    x = torch.randn(5, 4 * ranks, device=device())
    sizes = problem(net, ranks)
    for _ in range(2):
        with WireCount() as wire:
            backward(three_losses(net, x), net)
        assert wire.payload == shards(sizes)
        assert wire.calls["all-reduce"] == 1


@by_fsdp
def case_shards_that_stay_whole_between_the_losses(rank: int, ranks: int) -> None:
    """``set_reshard_after_backward(False)``: parameters are gathered once a step for all backward passes."""
    if ranks == 1:
        return
    net = flat(ranks, even_net(ranks))
    net.set_reshard_after_backward(False)
    twin = flat(ranks, even_net(ranks))
    sizes = problem(net, ranks)
    for step in range(3):
        twin.load_state_dict(net.state_dict())
        x = torch.randn(5, 4 * ranks, device=device(), generator=torch.Generator().manual_seed(step))
        with WireCount() as wire:
            backward(three_losses(net, x), net)
        assert wire.payload["all-gather"] == 2 * sizes.padded
        backward(three_losses(twin, x), twin)
        for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            assert isinstance(mine.grad, DTensor)
            assert torch.equal(mine.grad.to_local(), theirs.grad.to_local())  # type: ignore[union-attr]
        with torch.no_grad():
            for par in net.parameters():
                par -= 0.1 * par.grad  # type: ignore[operator]


@by_fsdp
def case_shards_of_peers(rank: int, ranks: int) -> None:
    """A merge that needs whole gradients has to gather them."""
    if ranks == 1:
        return  # nothing is gathered
    net = flat(ranks, even_net(ranks))
    x = torch.randn(5, 4 * ranks, device=device())
    with WireCount() as wire:
        for k, loss in enumerate(three_losses(net, x)):
            net.zero_grad()
            loss.backward(retain_graph=k < 2)
            torch.cat([p.grad.full_tensor().reshape(-1) for p in net.parameters()])  # type: ignore[union-attr]
    assert wire.payload == shards_of_peers(problem(net, ranks))
