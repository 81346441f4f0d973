"""``fastconfig.weights`` of replicas and shards; the backward pass is the model's own."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_ddp import my_batch, replica
from distributed_fsdp import data_rank, flat, root_only
from distributed_inputs import (
    Net,
    assert_close,
    assert_same_bits,
    assert_trains_like_one,
    averaged_rows,
    batch_of,
    by_fsdp,
    device,
    grads_of,
    losses_of,
)
from inputs import rows_of
from schedules import MAKERS
from torch import Tensor, nn

from fastconfig import (
    ConFIGOperator,
    EveryOperator,
    GramOperator,
    LogLossesOperator,
    backward,
    distributed,
    mtl_backward,
    reference,
    weights,
)
from fastconfig.methods import MGDA


def descend(losses: list[Tensor], c: Tensor) -> None:
    (c * torch.stack(losses)).sum().backward()


def case_every_operator(rank: int, ranks: int) -> None:
    """Beside the oracle on the averaged gradients, within no_sync() or not, and of other DDP kinds."""
    net = replica()
    for step, (make, oracle) in enumerate(MAKERS.values()):
        net.zero_grad()
        losses = losses_of(net, my_batch(step))
        with net.no_sync() if step % 2 else nullcontext():
            c = weights(losses, net if step % 3 else net.parameters(), make())
        assert_same_bits(c)
        descend(losses, c)
        found = grads_of(net)
        assert_same_bits(found)
        assert_close(found, averaged_rows(ranks, step), oracle)
    for given in ({"find_unused_parameters": True}, {"gradient_as_bucket_view": True}):
        net = replica(**given)
        losses = losses_of(net, my_batch(1))
        descend(losses, weights(losses, net))
        assert_close(grads_of(net), averaged_rows(ranks, 1), reference.config)


def case_steps_of_an_optimizer(rank: int, ranks: int) -> None:
    net = replica()

    def take(step: int) -> None:
        net.zero_grad()
        losses = losses_of(net, my_batch(step))
        descend(losses, weights(losses, net))

    assert_trains_like_one(net, ranks, take)


def case_accumulation_within_no_sync(rank: int, ranks: int) -> None:
    net, total = replica(), torch.zeros(())
    for step in range(3):
        with net.no_sync() if step < 2 else nullcontext():
            losses = losses_of(net, my_batch(step))
            descend(losses, weights(losses, net))
        total = total + reference.config(averaged_rows(ranks, step))
    found = grads_of(net).cpu()
    assert (found - total).norm() <= 1e-11 * total.norm()
    assert_same_bits(found)


def case_the_mean_of_the_ranks_own_gram_matrices(rank: int, ranks: int) -> None:
    net = replica()
    own = [averaged_rows(1, 0, losses=lambda net, _, r=r: losses_of(net, batch_of(r))) for r in range(ranks)]
    # the Gram matrix of all ranks' rows side by side is the sum of theirs
    beside = torch.cat(own, 1) / ranks**0.5
    for rule in (lambda gram: 1 / gram.diagonal().sqrt(), lambda gram: gram.sum(0)):
        losses = losses_of(net, my_batch())
        c = weights(losses, net, GramOperator(rule), approximate=True)
        torch.testing.assert_close(c.cpu(), rule(reference.gram(beside)), rtol=1e-11, atol=0)
    losses = losses_of(net, my_batch())
    c = weights(losses, net, approximate=True)
    assert_same_bits(c)
    assert_close(c.cpu() @ beside, beside, reference.config)
    net.zero_grad()
    descend(losses, c)
    exact = c.cpu() @ averaged_rows(ranks)
    assert_same_bits(grads_of(net))
    assert (grads_of(net).cpu() - exact).norm() <= 1e-11 * exact.norm()


class Tasks(nn.Module):
    """Gives its features beside the losses."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = torch.tanh(self.net.second(torch.tanh(self.net.first(x))))
        y = self.net.last(h)
        return h, [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean(), y[:, 2].exp().mean()]


def case_features_of_the_whole_batch(rank: int, ranks: int) -> None:
    """The same weights as one process has with the data of all ranks."""
    one, net = Tasks(), replica(Tasks())
    h, losses = one(torch.cat([batch_of(r) for r in range(ranks)]))
    for how in ("flatten", "batch_sum"):
        rows = [torch.autograd.grad(loss, h, retain_graph=True)[0] for loss in losses]
        rows = [g.reshape(-1) if how == "flatten" else g.sum(0) for g in rows]
        mine, own = net(my_batch())
        c = weights(own, mine, features_gram=how)
        assert_same_bits(c)
        assert_close(c.cpu() @ torch.stack(rows), torch.stack(rows), reference.config)
        descend(own, c)
        exact = c.cpu() @ averaged_rows(ranks, 0, one, lambda net, x: net(x)[1])
        assert (grads_of(net).cpu() - exact).norm() <= 1e-11 * exact.norm()
        net.zero_grad()


def case_one_pass_through_the_trunk(rank: int, ranks: int) -> None:
    """``mtl_backward`` with the features' Gram matrix: as one process with the data of all ranks."""
    one, net = Tasks(), replica(Tasks())
    h, losses = one(torch.cat([batch_of(r) for r in range(ranks)]))
    mtl_backward(losses, h, gram="features")
    mine, own = net(my_batch())
    mtl_backward(own, mine, gram="features")
    found, exact = grads_of(net), grads_of(one)
    assert_same_bits(found)
    assert (found.cpu() - exact).norm() <= 1e-11 * exact.norm()


def case_losses_of_all_ranks(rank: int, ranks: int) -> None:
    """A rule that uses them gets their mean, in ``weights`` and in ``backward``."""
    values = torch.stack([torch.stack(losses_of(Net(), batch_of(r))) for r in range(ranks)]).mean(0)
    rows = averaged_rows(ranks) / values.detach()[:, None]
    net, twin = replica(), replica()
    losses = losses_of(net, my_batch())
    descend(losses, weights(losses, net, LogLossesOperator(MGDA())))
    distributed.backward(twin, losses_of(twin, my_batch()), LogLossesOperator(MGDA()))
    for found in (grads_of(net), grads_of(twin)):
        assert_same_bits(found)
        assert_close(found, rows, MGDA.oracle)


def case_every_third_step(rank: int, ranks: int) -> None:
    """All ranks find the coefficients anew together; in between a step is one pass."""
    net, operator = replica(), EveryOperator(ConFIGOperator(), 3)
    for step in range(5):
        rows = averaged_rows(ranks, step)
        if step % 3 == 0:
            update = reference.config(rows)
            c = torch.linalg.lstsq(rows.T, update).solution
        assert_every_way(net, operator, step, c @ rows)


def assert_every_way(net: Any, operator: EveryOperator, step: int, exact: Tensor) -> None:
    """``backward`` in the rank's own step; ``weights`` by a copy, which has the same state."""
    twin = copy.deepcopy(operator)
    distributed.backward(net, losses_of(net, my_batch(step)), operator)
    found = grads_of(net)
    net.zero_grad()
    losses = losses_of(net, my_batch(step))
    descend(losses, weights(losses, net, twin))
    for update in (found, grads_of(net)):
        assert_same_bits(update)
        assert (update.cpu() - exact).norm() <= 1e-9 * exact.norm()
    for name, value in operator.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)


@by_fsdp
def case_shards_of_fsdp(rank: int, ranks: int) -> None:
    for make in (flat, root_only):
        net = make(ranks)
        for step in range(2):
            net.zero_grad()
            losses = losses_of(net, batch_of(data_rank(net) if make is flat else rank, step).to(device()))
            c = weights(losses, net)
            assert_same_bits(c)
            descend(losses, c)
            assert_close(grads_of(net), averaged_rows(ranks, step), reference.config)
        operator = EveryOperator(ConFIGOperator(), 2)
        for _ in range(2):
            losses = losses_of(net, batch_of(data_rank(net) if make is flat else rank).to(device()))
            backward(losses, net, operator)
            assert_close(grads_of(net), averaged_rows(ranks), reference.config)


def case_what_is_refused(rank: int, ranks: int) -> None:
    net = replica()
    losses = losses_of(net, my_batch())
    with pytest.raises(ValueError, match="with_respect_to: got a DistributedDataParallel with static_graph"):
        weights(losses, replica(static_graph=True))
    alone: Any = [*net.parameters(), *copy.deepcopy(net.module).parameters()]
    with pytest.raises(ValueError, match="with_respect_to: got 6 parameters beside those of a Distributed"):
        weights(losses, alone)
    with pytest.raises(ValueError, match="operator: got one with a process_group"):
        weights(losses, net, ConFIGOperator(process_group=dist.group.WORLD))
    assert all(par.grad is None for par in net.parameters())


def case_parts_in_plain_tensors(rank: int, ranks: int) -> None:
    """``process_group=`` of the operator: each rank has parameters of its own."""
    nets = [Net() for _ in range(ranks)]
    for r, net in enumerate(nets):
        for par in net.parameters():
            par.data.mul_(1 + r)
    rows = torch.cat(
        [rows_of(losses_of(net, batch_of(r)), list(net.parameters())) for r, net in enumerate(nets)], 1
    )
    c = weights(
        losses_of(nets[rank], batch_of(rank)),
        nets[rank],
        ConFIGOperator(process_group=dist.group.WORLD),
    )
    assert_same_bits(c)
    assert_close(c @ rows, rows, reference.config)
