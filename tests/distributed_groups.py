"""Groups of parameters, over replicas and shards: a Gram matrix for each, summed over the ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from distributed_ddp import my_batch, replica
from distributed_fsdp import data_rank, data_ranks, flat, replicated, root_only, tensor_parallel
from distributed_inputs import (
    Net,
    assert_close,
    assert_same_bits,
    averaged_rows,
    batch_of,
    by_fsdp,
    device,
    grads_of,
    losses_of,
    uneven,
)
from inputs import conflicting
from torch import Tensor

from fastconfig import (
    ConFIGOperator,
    GradVacOperator,
    PseudoMomentumOperator,
    backward,
    mtl_backward,
    reference,
)
from fastconfig.backends import sharded
from fastconfig.methods import GradVac

GROUPS: dict[str, Any] = {
    "parameter": "parameter",
    "module": "module",
    "names": {"ends": ["first", "last.weight"], "rest": ["second", "last.bias"]},
}


def places_of(groups: Any) -> list[list[int]]:
    """The elements of each group, of all of ``Net``'s side by side."""
    found: dict[str, list[int]] = {}
    begin = 0
    for name, par in Net().named_parameters():
        if groups == "parameter":
            key = name
        elif groups == "module":
            key = name.partition(".")[0]
        else:
            (key,) = [k for k, names in groups.items() if name in names or name.partition(".")[0] in names]
        found.setdefault(key, []).extend(range(begin, begin + par.numel()))
        begin += par.numel()
    return list(found.values())


def assert_by_groups(found: Tensor, rows: Tensor, groups: Any, oracle: Any = reference.config) -> None:
    for places in places_of(groups):
        assert_close(found.cpu()[places], rows.cpu()[:, places], oracle)


def case_replicas(rank: int, ranks: int) -> None:
    net = replica()
    for step, groups in enumerate(GROUPS.values()):
        operator = ConFIGOperator()
        operator.groups = groups
        for model in (net, net.module):
            backward(losses_of(net, my_batch(step)), model, operator)
            found = grads_of(net)
            assert_same_bits(found)
            assert_by_groups(found, averaged_rows(ranks, step), groups)


def case_states_of_replicas(rank: int, ranks: int) -> None:
    """All ranks have the state of every group, whoever has its elements."""
    net, operator = replica(), GradVacOperator(shuffle=False)
    operator.groups = "module"
    targets: dict[int, Tensor] = {}
    for step in range(3):
        backward(losses_of(net, my_batch(step)), net, operator)
        rows, found = averaged_rows(ranks, step), grads_of(net)
        assert_same_bits(found)
        for k, places in enumerate(places_of("module")):
            targets.setdefault(k, rows.new_zeros(3, 3))
            update = GradVac.oracle(rows[:, places], targets[k], 0.5)
            assert (found.cpu()[places] - update).norm() <= 1e-9 * update.norm()
    for value in operator.state_dict().values():
        assert_same_bits(value)


def case_a_trunk_of_replicas(rank: int, ranks: int) -> None:
    net, operator = replica(), ConFIGOperator()
    operator.groups = "module"

    def forward(net: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = net.second(net.first(x).tanh())
        y = net.last(h)
        return h, [y[:, 0].square().mean(), (y[:, 1] - 1).square().mean(), y[:, 2].exp().mean()]

    h, losses = forward(net.module, my_batch())
    trunk = net.module.first
    shared = [*trunk.parameters(), *net.module.second.parameters()]
    with pytest.raises(ValueError, match="groups: got no name of parameter 0"):
        mtl_backward(losses, h, shared, [net.module.last] * 3, operator)
    operator.groups = "parameter"
    mtl_backward(losses, h, shared, [net.module.last] * 3, operator)
    rows = averaged_rows(ranks, 0, None, lambda net, x: forward(net, x)[1])
    count = sum(par.numel() for par in shared)
    for places in [places for places in places_of("parameter") if places[-1] < count]:
        assert_close(grads_of(net).cpu()[places], rows[:, places], reference.config)


@by_fsdp
def case_shards(rank: int, ranks: int) -> None:
    for make in (flat, root_only, replicated, tensor_parallel):
        net = make(ranks)
        for step, groups in enumerate(GROUPS.values()):
            operator = ConFIGOperator()
            operator.groups = groups
            own = rank if make is root_only else data_rank(net)
            backward(losses_of(net, batch_of(own, step).to(device())), net, operator)
            data = ranks if make is root_only else data_ranks(net, ranks)
            assert_by_groups(grads_of(net), averaged_rows(data, step), groups)


@by_fsdp
def case_momentum_of_shards(rank: int, ranks: int) -> None:
    """Without averages an update is u / (|u| + 1e-8)."""
    net, operator = flat(ranks), PseudoMomentumOperator(3, beta_1=0.0, beta_2=0.0)
    operator.groups = "module"
    backward(losses_of(net, batch_of(data_rank(net)).to(device())), net, operator)
    found, rows = grads_of(net).cpu(), averaged_rows(ranks)
    for places in places_of("module"):
        update = reference.config(rows[:, places])
        wanted = update / (update.abs() + 1e-8)
        assert (found[places] - wanted).norm() <= 1e-9 * wanted.norm()


def case_parts_in_plain_tensors(rank: int, ranks: int) -> None:
    """``process_group=``: a rank may have nothing of a group."""
    rows = conflicting(3, 60).double()
    sizes = [(uneven(20, ranks)), uneven(40, ranks)]
    operator = ConFIGOperator(process_group=dist.group.WORLD)
    operator.groups = "parameter"
    mine: list[list[Tensor | None]] = [[], [], []]
    for begin, cuts in zip((0, 20), sizes, strict=True):
        for i, part in enumerate(rows[:, begin : begin + sum(cuts)].split(cuts, 1)[rank]):
            mine[i].append(part.contiguous().to(device()) if cuts[rank] else None)
    update = operator.calculate_gradient(mine)
    for begin, cuts, piece in zip((0, 20), sizes, update, strict=True):
        exact = reference.config(rows[:, begin : begin + sum(cuts)]).split(cuts)[rank]
        if piece is None:
            assert not cuts[rank]
        else:
            assert (piece.cpu() - exact).norm() <= 1e-11 * rows.norm()


def case_what_is_refused(rank: int, ranks: int) -> None:
    net = replica()
    operator = PseudoMomentumOperator(3)
    operator.groups = "parameter"
    with pytest.raises(ValueError, match="operator: got one with momentum and groups for replicas"):
        backward(losses_of(net, my_batch()), net, operator)
    assert all(par.grad is None for par in net.parameters())


def case_one_sum_for_all_groups(rank: int, ranks: int) -> None:
    """However many groups there are."""
    net, operator = replica(), ConFIGOperator()
    counts = []
    summed = sharded.summed
    for groups in ("parameter", "module"):
        operator.groups = groups
        calls: list[Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sharded,
                "summed",
                lambda tensor, *rest, calls=calls: (calls.append(tensor), summed(tensor, *rest)),
            )
            backward(losses_of(net, my_batch()), net, operator)
        counts.append(len(calls))
    assert counts == [1, 1]
