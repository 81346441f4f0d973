"""Replicas in DistributedDataParallel whose parameters come in disguise: averaged as well, or refused."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributed_ddp import my_batch, replica
from distributed_inputs import (
    Net,
    assert_close,
    assert_same_bits,
    averaged_rows,
    batch_of,
    grads_of,
    losses_of,
)
from inputs import rows_of
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from fastconfig import PPCGradOperator, PseudoMomentumOperator, backward, mtl_backward, reference
from fastconfig.pcgrad import PCGrad, PPCGrad
from fastconfig.ranks import replicas


class Holder(nn.Module):
    """A module that holds the replicated one, as trainers do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


DISGUISES: dict[str, Callable[[DistributedDataParallel], Any]] = {
    "the model": lambda net: net,
    "parameters()": lambda net: net.parameters(),
    "module": lambda net: net.module,
    "a list": lambda net: list(net.module.parameters()),
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "held": Holder,
    "held twice": lambda net: nn.ModuleList([Holder(net)]),
}


def case_every_disguise(rank: int, ranks: int) -> None:
    for step, disguise in enumerate(DISGUISES.values()):
        net = replica()
        backward(losses_of(net, my_batch(step)), disguise(net))
        found = grads_of(net)
        assert_same_bits(found)
        assert_close(found, averaged_rows(ranks, step), reference.config)


def case_some_of_the_parameters(rank: int, ranks: int) -> None:
    net = replica()
    first = list(net.module.first.parameters())
    backward(losses_of(net, my_batch()), first)
    exact = averaged_rows(ranks)[:, : sum(par.numel() for par in first)]
    assert_close(torch.cat([par.grad.reshape(-1) for par in first]), exact, reference.config)  # type: ignore[union-attr]
    assert net.module.last.weight.grad is None


def case_optimizers_that_project(rank: int, ranks: int) -> None:
    for step, (method, reduction) in enumerate([(PPCGrad, "mean"), (PPCGrad, "sum"), (PCGrad, "mean")]):
        net = replica()
        optimizer = method(
            torch.optim.SGD(net.parameters(), lr=0.1),
            reduction,
            **({} if method is PPCGrad else {"shuffle": False}),
        )
        oracle = reference.ppcgrad if method is PPCGrad else reference.pcgrad
        optimizer.zero_grad()
        optimizer.pc_backward(losses_of(net, my_batch(step)))
        found = grads_of(net)
        assert_same_bits(found)
        rows = averaged_rows(ranks, step)
        assert_close(found * (len(rows) if reduction == "mean" else 1), rows, oracle)
        grads, _, masks = optimizer.pack_grad(losses_of(net, my_batch(step)))
        assert (torch.stack(grads).cpu() - rows).abs().max() <= 1e-12
        assert all(mask.all() for mask in masks)


class Shared(nn.Module):
    """A trunk with two heads, the same on all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = Net(), nn.ModuleList([nn.Linear(3, 1).double() for _ in range(2)])
        for head in self.heads:
            nn.init.constant_(head.weight, 0.3)
            nn.init.constant_(head.bias, 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = self.trunk(x)
        return h, [(head(h) - k).square().mean() for k, head in enumerate(self.heads)]


def shared_rows(ranks: int, of: Callable[[Shared], list[Tensor]]) -> Tensor:
    one = Shared()
    return sum(rows_of(one(batch_of(r))[1], of(one)) for r in range(ranks)) / ranks  # type: ignore[return-value]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([par.grad.reshape(-1) for par in module.parameters()])  # type: ignore[union-attr]


def case_trunks_and_heads(rank: int, ranks: int) -> None:
    net = replica(Shared())
    trunk = shared_rows(ranks, lambda one: list(one.trunk.parameters()))
    heads = shared_rows(ranks, lambda one: list(one.heads.parameters())).sum(0)
    for given in ((net.module.trunk, net.module.heads), ()):
        h, losses = net(my_batch())
        mtl_backward(losses, h, *given)
        assert_close(flat(net.module.trunk), trunk, reference.config)
        assert (flat(net.module.heads).cpu() - heads).norm() <= 1e-12 * heads.norm()
        assert_same_bits(flat(net))


def case_heads_in_an_optimizer_of_their_own(rank: int, ranks: int) -> None:
    net = replica(Shared())
    optimizer = PPCGrad(torch.optim.SGD(net.module.trunk.parameters(), lr=0.1), "sum")
    optimizer.pc_backward(net(my_batch())[1])
    assert_close(
        flat(net.module.trunk),
        shared_rows(ranks, lambda one: list(one.trunk.parameters())),
        reference.ppcgrad,
    )
    heads = shared_rows(ranks, lambda one: list(one.heads.parameters())).sum(0)
    assert (flat(net.module.heads).cpu() - heads).norm() <= 1e-12 * heads.norm()


def case_momentum(rank: int, ranks: int) -> None:
    net, operator, exact = replica(), PseudoMomentumOperator(3), reference.Momentum(3)
    for step in range(3):
        backward(losses_of(net, my_batch(step)), net.parameters(), operator)
        wanted = exact.step([0, 1, 2], averaged_rows(ranks, step))
        assert (grads_of(net).cpu() - wanted).norm() <= 1e-7 * wanted.norm()


def case_parameters_of_several_dtypes(rank: int, ranks: int) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = Net(), nn.Linear(3, 3)
            nn.init.eye_(self.narrow.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow(self.wide(x).float()).double()

    net = replica(Mixed())
    one = copy.deepcopy(net.module).cpu()
    for _ in range(2):
        backward(losses_of(net, my_batch()), net, PPCGradOperator())
    parameters = list(one.parameters())
    rows = 0
    for r in range(ranks):
        values = losses_of(one, batch_of(r))
        grads = [torch.autograd.grad(value, parameters, retain_graph=True) for value in values]
        rows = rows + torch.stack([torch.cat([g.double().reshape(-1) for g in row]) for row in grads]) / ranks
    wanted = reference.ppcgrad(rows)
    found = torch.cat([par.grad.double().reshape(-1).cpu() for par in net.parameters()])  # type: ignore[union-attr]
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert_same_bits(found)


def case_two_models_in_one_step(rank: int, ranks: int) -> None:
    first, second = replica(), replica()
    values = [a + b for a, b in zip(losses_of(first, my_batch()), losses_of(second, my_batch()), strict=True)]
    backward(values, [*first.parameters(), *second.parameters()])
    exact = averaged_rows(ranks)
    assert_close(
        torch.cat([grads_of(first), grads_of(second)]), torch.cat([exact, exact], 1), reference.config
    )


def case_what_would_train_apart_is_refused(rank: int, ranks: int) -> None:
    net, own = replica(), nn.Parameter(torch.ones((), dtype=torch.float64, device=my_batch().device))
    values = [own * value for value in losses_of(net, my_batch())]
    with pytest.raises(ValueError, match="got 1 parameters beside those of a DistributedDataParallel"):
        backward(values, [own, *net.parameters()])
    sharded = (
        FullyShardedDataParallel(Net(), device_id=torch.device("cpu"))
        if my_batch().device.type == "cpu"
        else None
    )
    if sharded is not None:
        with pytest.raises(TypeError, match=r"FullyShardedDataParallel, want FSDP2: .*fully_shard"):
            backward(losses_of(sharded, my_batch()), sharded)
    assert own.grad is None
    assert all(par.grad is None for par in net.parameters())


def case_models_that_are_no_replicas_any_more(rank: int, ranks: int) -> None:
    """Ids of parameters that are gone may belong to others now."""
    net = replica()
    backward(losses_of(net, my_batch()), net.module)
    plain = net.module
    del net
    gc.collect()
    for _ in range(6):
        alone = Net().to(my_batch().device)
        for one in (alone, plain):
            one.zero_grad()
            backward(losses_of(one, my_batch()), one)
            exact = rows_of(losses_of(one, my_batch()), list(one.parameters()))
            assert_close(grads_of(one), exact, reference.config)


def case_models_that_were_copied_or_set_aside(rank: int, ranks: int) -> None:
    """All objects are searched once, with those that ``gc.freeze`` hides; later copies are seen when made."""
    net = replica()
    set_aside = copy.deepcopy(net)
    gc.freeze()
    search, watching = replicas._all_objects, replicas._watching
    try:
        replicas._watching = False  # as in a new process
        backward(losses_of(net, my_batch()), net.module)
        replicas._all_objects = list
        for one in (set_aside, copy.deepcopy(net), copy.copy(net), replica()):
            one.zero_grad()
            backward(losses_of(one, my_batch()), list(one.parameters()))
            assert_close(grads_of(one), averaged_rows(ranks), reference.config)
    finally:
        gc.unfreeze()
        replicas._all_objects, replicas._watching = search, watching or replicas._watching


class Experts(nn.Module):
    """A trunk and a head a loss; each rank's data go through an expert of its own."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 3).double()
        self.experts = nn.ModuleList([nn.Linear(3, 3).double() for _ in range(ranks)])
        self.heads = nn.ModuleList([nn.Linear(3, 1).double() for _ in range(2)])
        generator = torch.Generator().manual_seed(2)
        for par in self.parameters():
            nn.init.normal_(par, generator=generator)

    def forward(self, x: Tensor, expert: int) -> tuple[Tensor, list[Tensor]]:
        h = torch.tanh(self.experts[expert](torch.tanh(self.trunk(x))))
        return h, [(head(h) - k).square().mean() for k, head in enumerate(self.heads)]


def expert_rows(ranks: int, of: Callable[[Experts], list[Tensor]]) -> Tensor:
    one = Experts(ranks)
    return sum(rows_of(one(batch_of(r), r)[1], of(one)) for r in range(ranks)) / ranks  # type: ignore[return-value]


def case_experts_that_only_one_rank_reaches(rank: int, ranks: int) -> None:
    net = replica(Experts(ranks))
    h, losses = net.module(my_batch(), rank)
    mtl_backward(losses, h)
    inside = expert_rows(ranks, lambda one: [*one.trunk.parameters(), *one.experts.parameters()])
    assert_close(torch.cat([flat(net.module.trunk), flat(net.module.experts)]), inside, reference.config)
    net.zero_grad()
    optimizer = PPCGrad(torch.optim.SGD(net.module.trunk.parameters(), lr=0.1), "sum")
    optimizer.pc_backward(net.module(my_batch(), rank)[1])
    others = expert_rows(ranks, lambda one: [*one.experts.parameters(), *one.heads.parameters()]).sum(0)
    found = torch.cat([flat(net.module.experts), flat(net.module.heads)]).cpu()
    assert (found - others).norm() <= 1e-12 * others.norm()
    assert_same_bits(found)
