"""``fastconfig.backward`` on modules whose parameters FSDP2 and tensor parallelism have cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_inputs import (
    Net,
    assert_close,
    assert_same_bits,
    assert_trains_like_one,
    averaged_rows,
    batch_of,
    by_fsdp,
    device,
    gathered,
    grads_of,
    losses_of,
)
from schedules import MAKERS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from fastconfig import PCGradOperator, backward, reference
from fastconfig.training import passes


def flat(ranks: int, net: nn.Module | None = None) -> nn.Module:
    """FSDP2 over all ranks; every layer by itself."""
    return shard(Net() if net is None else net, init_device_mesh(device().type, (ranks,)))


def root_only(ranks: int) -> nn.Module:
    """FSDP2 of the root alone, which shows whole parameters between forward and backward pass."""
    net = Net().to(device())
    fully_shard(net, mesh=init_device_mesh(device().type, (ranks,)))
    return net


def replicated(ranks: int) -> nn.Module:
    """FSDP2 over a mesh of replicas and shards."""
    sides = (2, ranks // 2) if ranks > 1 else (1, 1)
    return shard(Net(), init_device_mesh(device().type, sides, mesh_dim_names=("replicas", "shards")))


def tensor_parallel(ranks: int) -> nn.Module:
    """FSDP2 over one dimension, tensor parallelism over the other, and a layer that only FSDP2 cuts."""
    sides = (ranks // 2, 2) if ranks > 1 else (1, 1)
    mesh = init_device_mesh(device().type, sides, mesh_dim_names=("data", "model"))
    net = Net().to(device())
    plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
    parallelize_module(net, mesh["model"], plan)  # type: ignore[arg-type]
    return shard(net, mesh["data"])


def shard(net: nn.Module, mesh: Any) -> nn.Module:
    net = net.to(device())
    for layer in net.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert isinstance(net, FSDPModule)
    return net


def my_batch(ranks: int, net: nn.Module, step: int = 0) -> Tensor:
    """What this rank trains on: ranks of one tensor-parallel group share their data."""
    return batch_of(data_rank(net), step).to(device())


def data_rank(net: nn.Module) -> int:
    mesh = net.first.weight.device_mesh  # type: ignore[union-attr]
    if "model" in (mesh.mesh_dim_names or ()):
        return int(mesh["data"].get_local_rank())
    return dist.get_rank()


def data_ranks(net: nn.Module, ranks: int) -> int:
    mesh = net.first.weight.device_mesh  # type: ignore[union-attr]
    return int(mesh["data"].size()) if "model" in (mesh.mesh_dim_names or ()) else ranks


MESHES: tuple[Callable[[int], nn.Module], ...] = (flat, root_only, replicated, tensor_parallel)


@by_fsdp
def case_every_operator_on_every_mesh(rank: int, ranks: int) -> None:
    """On two ranks each operator on one of them, which `make test` has time for."""
    pairs = list(product(enumerate(MESHES), enumerate(MAKERS.items())))
    for (i, make_net), (j, (name, (make, oracle))) in pairs:
        if ranks > 2 or i == j % len(MESHES):
            net = make_net(ranks)
            backward(losses_of(net, my_batch(ranks, net)), net, make())
            for par in net.parameters():
                assert isinstance(par.grad, DTensor), name
                assert par.grad.placements == par.placements  # type: ignore[attr-defined]
            found = grads_of(net)
            assert_same_bits(found)
            assert_close(found, averaged_rows(data_ranks(net, ranks)), oracle)


@by_fsdp
def case_steps_of_an_optimizer(rank: int, ranks: int) -> None:
    for make_net in (flat, root_only):
        net = make_net(ranks)

        def take(step: int, net: nn.Module = net) -> None:
            backward(losses_of(net, my_batch(ranks, net, step)), net, none_grad="zero")

        assert_trains_like_one(net, ranks, take)


@by_fsdp
def case_accumulate_graphs_and_frozen_parameters(rank: int, ranks: int) -> None:
    whole = Net()
    whole.first.bias.requires_grad_(False)
    net = flat(ranks, copy.deepcopy(whole))
    total = torch.zeros(())
    for step in range(3):
        backward(losses_of(net, my_batch(ranks, net, step)), net, accumulate=step > 0)
        total = total + reference.config(averaged_rows(ranks, step, whole))
    assert (grads_of(net).cpu() - total).norm() <= 1e-11 * total.norm()
    losses = losses_of(net, my_batch(ranks, net))
    for _ in range(2):
        backward(losses, net, retain_graph=True)
        assert_close(grads_of(net), averaged_rows(ranks, 0, whole), reference.config)
    before = passes._LARGE
    passes._LARGE = 0  # free every graph as soon as it is done with
    try:
        net = flat(ranks, copy.deepcopy(whole))
        backward(losses_of(net, my_batch(ranks, net)), net)
    finally:
        passes._LARGE = before
    assert_close(grads_of(net), averaged_rows(ranks, 0, whole), reference.config)


@by_fsdp
def case_random_orders_agree(rank: int, ranks: int) -> None:
    net, operator = flat(ranks), PCGradOperator(shuffle=True)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(rank)
    for step in range(3):
        backward(losses_of(net, my_batch(ranks, net, step)), net, operator)
        order = torch.rand(3, 3, generator=generator).argsort(-1).tolist()
        assert_close(
            grads_of(net),
            averaged_rows(ranks, step),
            lambda rows, order=order: reference.pcgrad(rows, order=order),
        )


@by_fsdp
def case_errors_leave_gradients_alone(rank: int, ranks: int) -> None:
    net = flat(ranks)
    backward(losses_of(net, my_batch(ranks, net)), net)
    kept = [par.grad for par in net.parameters()]
    before = grads_of(net)
    losses = losses_of(net, my_batch(ranks, net, 1))
    backward(losses, [*net.parameters()], accumulate=True)
    with pytest.raises(ValueError, match=r"losses\[2\]: its graph is freed already"):
        backward(losses, net)
    loose = torch.ones((), device=device(), requires_grad=True)
    with pytest.raises(ValueError, match=r"losses\[1\]: got a loss that depends on none"):
        backward([losses_of(net, my_batch(ranks, net))[0], loose.square()], net)
    for par, grad in zip(net.parameters(), kept, strict=True):
        assert par.grad is grad  # accumulated in place, then untouched
    exact = before.cpu() + reference.config(averaged_rows(ranks, 1))
    assert (grads_of(net).cpu() - exact).norm() <= 1e-11 * exact.norm()
    assert len(gathered(torch.ones(1))) == ranks
