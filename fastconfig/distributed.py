"""Several processes: ``backward`` for DistributedDataParallel, and what all ways share.

The Gram matrix is a sum over the parts of the gradients, so that one all-reduce of m x m numbers gives all
ranks the same coefficients, and each combines its own part:

    fastconfig.backward(losses, fully_sharded_model)            # FSDP2, tensor parallelism: DTensors
    fastconfig.distributed.backward(ddp_model, losses)          # replicas
    ConFIGOperator(process_group=group).calculate_gradient(...) # parts that are plain tensors

The engine is torch.distributed; docs/scaling.md counts the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from .collectives import CollectiveError, Pending, begin_any, check_collective, gather_parts, scatter_sum
from .gradients import Gradients
from .memory_order import new_tensor
from .momentum_operator import CONFIG
from .shards import Place, Shards, is_dtensor
from .training import (
    NoneGrad,
    Operator,
    check_freed,
    check_none_grad,
    group_of,
    kept,
    leaves,
    merged,
    scalars,
    taken,
    write,
)

__all__ = ["CollectiveError", "backward"]


def backward(
    ddp_model: DistributedDataParallel,
    losses: Sequence[Tensor] | Tensor,
    operator: Operator = CONFIG,
    *,
    indexes: Sequence[int] | None = None,
    retain_graph: bool = False,
    accumulate: bool = False,
    none_grad: NoneGrad = "skip",
) -> None:
    """Merge the ranks' averaged gradients of every loss and write the result to ``.grad`` on all ranks.

    The answer is that of averaging every loss's gradient over the ranks first, with (m + 1) N elements on the
    wire where an all-reduce a loss takes 2 m N: each rank gets the sum of its part of the m gradients, merges
    that, and the parts of the update are gathered. A loss's gradients travel while the next one's backward
    pass runs.

    Args:
        ddp_model: whose gradients are taken; its forward pass may have run within ``no_sync()`` or not.
        losses: this rank's m scalar losses, or one vector (m,) of them.
        operator, indexes, retain_graph, accumulate, none_grad: as in :func:`fastconfig.backward`; a parameter
            counts as connected if it is on any rank. A momentum operator keeps this rank's part of its state.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted; ``.grad`` is as before.
        CollectiveError: if a rank is gone or hangs, saying in which collective; ``.grad`` is as before.
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        got = type(ddp_model).__name__
        raise TypeError(f"ddp_model: got a {got}, want a torch.nn.parallel.DistributedDataParallel")
    if ddp_model.static_graph:
        raise ValueError("ddp_model: got static_graph=True, want False: such a graph has one backward pass")
    if group_of(operator) is not None:
        raise ValueError("operator: got one with a process_group, want one without: the model has its own")
    values = scalars(losses)
    exchange = Exchange.of(ddp_model)
    parameters = exchange.parameters
    check_none_grad(none_grad)
    keep = kept(values, parameters, retain_graph)
    for i, value in enumerate(values):
        exchange.send(taken(f"losses[{i}]", [value], parameters, keep[i]), f"losses[{i}]")
    update = exchange.merged(operator, indexes, values)
    write(parameters, update, accumulate, none_grad)


def collected(
    values: list[Tensor], parameters: list[Tensor], keep: list[bool]
) -> list[Sequence[Tensor | None]]:
    """The gradients of every loss by its own backward pass, from ``.grad``, which is as before then.

    FSDP2's sharded parameters are no part of the graph: ``torch.autograd.grad`` does not find them.
    """
    before = [par.grad for par in parameters]
    rows: list[Sequence[Tensor | None]] = []
    try:
        for i, value in enumerate(values):
            _set(parameters, [None] * len(parameters))
            try:
                value.backward(retain_graph=keep[i])
            except RuntimeError as error:
                check_freed(f"losses[{i}]", error)
                check_collective(f"a collective of the backward pass of losses[{i}]", error)
                raise
            rows.append([placed(par.grad, par) for par in parameters])
    finally:
        _set(parameters, before)
    return rows


def placed(grad: Any, parameter: Any) -> Any:
    """A gradient where its parameter is: tensor parallelism may leave it as a partial sum, or whole."""
    if not is_dtensor(grad) or not is_dtensor(parameter) or grad.placements == parameter.placements:
        return grad
    return grad.redistribute(parameter.device_mesh, parameter.placements)


def _set(parameters: list[Tensor], grads: Sequence[Tensor | None]) -> None:
    for par, grad in zip(parameters, grads, strict=True):
        par.grad = grad


class Exchange:
    """The gradients of replicas on their way: averaged, each rank with its part of the flat vectors.

    Attributes:
        parameters: whose gradients they are, in this order.
    """

    def __init__(self, parameters: list[Tensor], group: ProcessGroup) -> None:
        self.parameters, self._group = parameters, group
        first = parameters[0]
        for i, par in enumerate(parameters):
            if (par.dtype, par.device) != (first.dtype, first.device):
                got, wanted = f"{par.dtype} on {par.device}", f"{first.dtype} on {first.device}"
                raise ValueError(f"ddp_model: got parameter {i} of {got}, want {wanted} like the first")
        self._ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        self._n = sum(par.numel() for par in parameters)
        self._step = -(-self._n // self._ranks)  # elements of a part, the last ones' padded
        begin = min(rank * self._step, self._n)
        self._count = min(self._step, self._n - begin)
        self._rows: list[Tensor] = []
        self._pending: Pending | None = None  # the last one
        self._connected = torch.zeros(len(parameters), dtype=torch.uint8)
        mesh = _mesh(group, first.device.type)
        self._place = Place(mesh, (Shard(0),), torch.Size([self._n]), (1,))

    @classmethod
    def of(cls, ddp_model: DistributedDataParallel) -> Exchange:
        """Of all that the model learns."""
        ignored = set(ddp_model.parameters_to_ignore)
        named = ddp_model.module.named_parameters()
        parameters = leaves([par for name, par in named if name not in ignored], "ddp_model")
        return cls(parameters, ddp_model.process_group)

    def flat(self) -> Tensor:
        """A gradient as operators are given it here: (N,), a DTensor; uninitialised."""
        return self._place.wrapped(self._empty(self._count))

    def _empty(self, elements: int) -> Tensor:
        first = self.parameters[0]
        return new_tensor((elements,), first.dtype, first.device)

    def send(self, row: Sequence[Tensor | None], name: str) -> None:
        """Begin to add up one loss's gradient."""
        if self._pending is not None:
            self._pending.wait()  # one flat gradient at a time
        flat = self._empty(self._step * self._ranks)
        begin = 0
        for p, (par, grad) in enumerate(zip(self.parameters, row, strict=True)):
            target = flat[begin : begin + par.numel()]
            begin += par.numel()
            if grad is None:
                target.zero_()
                continue
            self._connected[p] = 1
            dense = grad if grad.layout is torch.strided else grad.to_dense()
            # divided first, so that half precision holds the sum
            torch.mul(dense.detach(), 1 / self._ranks, out=target.view(par.shape))
        flat[begin:].zero_()
        part = self._empty(self._step)
        self._rows.append(part[: self._count])
        self._pending = scatter_sum(part, flat, self._group, f"the gradient of {name}")

    def merged(
        self, operator: Operator, indexes: Sequence[int] | None, losses: list[Tensor]
    ) -> list[Tensor | None]:
        """The update in the parameters' shapes, on all ranks; None where no rank had a gradient."""
        connected = self._connected.to(self.parameters[0].device, copy=True)
        flags = begin_any(connected, self._group, "which parameters have a gradient")
        assert self._pending is not None
        self._pending.wait()
        rows = Gradients(self._rows)
        rows.shards = Shards(places=(self._place,))
        whole = self._empty(self._step * self._ranks)
        begin = dist.get_rank(self._group) * self._step
        mine, padding = whole[begin : begin + self._step].split([self._count, self._step - self._count])
        update: Any = merged(rows, operator, indexes, losses, mine)
        if update.to_local().data_ptr() != mine.data_ptr():  # a momentum operator has its own
            mine.copy_(update.to_local())
        padding.zero_()
        gather_parts(whole, self._group, "the update")
        flags.wait()
        # a rank that has them all need not wait for the device to tell
        anywhere = self._connected if self._connected.all() else connected
        pieces = whole[: self._n].split([par.numel() for par in self.parameters])
        return [
            piece.view(par.shape) if there else None
            for piece, par, there in zip(pieces, self.parameters, anywhere.tolist(), strict=True)
        ]


@lru_cache(maxsize=16)
def _mesh(group: ProcessGroup, device_type: str) -> DeviceMesh:
    return DeviceMesh.from_group(group, device_type)
