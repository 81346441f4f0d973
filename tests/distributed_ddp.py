"""``fastconfig.distributed.backward``: replicas in DistributedDataParallel."""

from __future__ import annotations

import copy
from contextlib import nullcontext
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
    device,
    gathered,
    grads_of,
    losses_of,
)
from schedules import MAKERS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastconfig import ConFIGOperator, GradientOperator, PCGradOperator, distributed, reference


def replica(net: nn.Module | None = None, **given: Any) -> DistributedDataParallel:
    return DistributedDataParallel((Net() if net is None else net).to(device()), **given)


def my_batch(step: int = 0) -> Tensor:
    return batch_of(dist.get_rank(), step).to(device())


def case_every_operator(rank: int, ranks: int) -> None:
    net = replica()
    for step, (make, oracle) in enumerate(MAKERS.values()):
        distributed.backward(net, losses_of(net, my_batch(step)), make())
        found = grads_of(net)
        assert_same_bits(found)
        assert_close(found, averaged_rows(ranks, step), oracle)


def case_however_the_forward_pass_ran(rank: int, ranks: int) -> None:
    """Within no_sync() or not, as one vector of losses, beside DDP's own steps, and of other DDP kinds."""
    for given in ({}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}):
        net = replica(**given)
        for step in range(3):
            with net.no_sync() if step else nullcontext():
                losses = losses_of(net, my_batch(step))
            distributed.backward(net, torch.stack(losses))
            assert_close(grads_of(net), averaged_rows(ranks, step), reference.config)
            net.zero_grad()
            net(my_batch(step))[:, 0].sum().backward()
            exact = averaged_rows(ranks, step, losses=lambda n, x: [n(x)[:, 0].sum()])
            assert_close(grads_of(net), exact, lambda rows: rows[0])


def case_steps_of_an_optimizer(rank: int, ranks: int) -> None:
    net = replica()
    assert_trains_like_one(net, ranks, lambda step: distributed.backward(net, losses_of(net, my_batch(step))))


class Branches(nn.Module):
    """Which parameters are used depends on the data, and so on the rank; one is used nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.odd = nn.Linear(3, 1).double()
        self.unused = nn.Parameter(torch.ones(3).double())
        for par in self.odd.parameters():
            nn.init.constant_(par, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return torch.cat([y, self.odd(y)], 1) if x[0, 0] > 0 else torch.cat([y, y[:, :1]], 1)


def branch_losses(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = net(x)
    return [y[:, 0].square().mean(), (y[:, 3] + y[:, 1]).square().mean()]


def case_parameters_without_gradient_on_some_ranks(rank: int, ranks: int) -> None:
    whole = Branches()
    net = replica(copy.deepcopy(whole))
    used = 0
    for step in range(6):
        for par in net.parameters():
            par.grad = None
        distributed.backward(net, branch_losses(net, my_batch(step)))
        anywhere = any(bool(batch_of(r, step)[0, 0] > 0) for r in range(ranks))
        used += anywhere
        assert (net.module.odd.weight.grad is not None) == anywhere
        assert net.module.unused.grad is None
        exact = averaged_rows(ranks, step, whole, branch_losses)
        assert_close(grads_of(net), exact, reference.config)
    assert used or ranks == 1
    distributed.backward(net, branch_losses(net, my_batch()), none_grad="zero")
    assert not net.module.unused.grad.any()


def case_accumulate_and_keep_graphs(rank: int, ranks: int) -> None:
    net = replica()
    total = torch.zeros(())
    for step in range(3):
        losses = losses_of(net, my_batch(step))
        distributed.backward(net, losses, accumulate=step > 0, retain_graph=True)
        total = total + reference.config(averaged_rows(ranks, step))
    assert (grads_of(net).cpu() - total).norm() <= 1e-11 * total.norm()
    distributed.backward(net, losses)
    assert_close(grads_of(net), averaged_rows(ranks, 2), reference.config)


def case_half_precision_is_divided_before_it_is_added_up(rank: int, ranks: int) -> None:
    net = replica(nn.Linear(8, 1, bias=False).to(torch.float16))
    x = torch.full((1, 8), 4e4, dtype=torch.float16, device=device())
    distributed.backward(net, [net(x).sum(), net(-x).sum() * 0.5 + net(x).sum()])
    assert torch.isfinite(grads_of(net)).all()


def case_random_orders_agree(rank: int, ranks: int) -> None:
    net, operator = replica(), PCGradOperator(shuffle=True)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(rank)
    for step in range(3):
        distributed.backward(net, losses_of(net, my_batch(step)), operator)
        order = torch.rand(3, 3, generator=generator).argsort(-1).tolist()
        exact = averaged_rows(ranks, step)
        assert_close(grads_of(net), exact, lambda rows, order=order: reference.pcgrad(rows, order=order))


def case_nan_on_one_rank_is_nan_on_all(rank: int, ranks: int) -> None:
    net = replica()
    losses = losses_of(net, my_batch())
    if rank == ranks - 1:
        losses[1] = losses[1] * torch.nan
    distributed.backward(net, losses)
    assert grads_of(net).isnan().all()


def case_errors_leave_gradients_alone(rank: int, ranks: int) -> None:
    class Own(GradientOperator):
        def calculate_gradient(self, grads: Tensor, losses: object = None) -> Tensor:  # type: ignore[override]
            return grads.sum(0)

    net = replica()
    losses = losses_of(net, my_batch())
    with pytest.raises(TypeError, match="ddp_model: got a Net, want"):
        distributed.backward(net.module, losses)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got a DistributedDataParallel with static_graph=True"):
        distributed.backward(replica(static_graph=True), losses)
    with pytest.raises(ValueError, match="operator: got one with a process_group"):
        distributed.backward(net, losses, ConFIGOperator(process_group=dist.group.WORLD))
    with pytest.raises(TypeError, match="grads: got gradients spread over processes"):
        distributed.backward(net, losses, Own(), retain_graph=True)
    with pytest.raises(ValueError, match="indexes: got indexes for a ConFIGOperator"):
        distributed.backward(net, losses, indexes=[0, 1, 2], retain_graph=True)
    assert all(par.grad is None for par in net.parameters())
    distributed.backward(net, losses)
    assert_close(grads_of(net), averaged_rows(ranks), reference.config)
    assert len(gathered(torch.ones(1))) == ranks
