"""From losses to ``.grad`` without a flat vector: ``backward`` and ``mtl_backward``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..backends import merge_into
from ..checks import check_operator, got
from ..gradients import Gradients, Update
from ..gradients.shards import any_dtensor, reshard
from ..merging import combined, losses_of, merge, ring_of
from ..methods.every import kept_coefficients
from ..methods.groups import Group, among, merged, partition
from ..methods.operator import (
    GradientOperator,
    check_grouped,
    fixed_rule_of,
    is_ours,
    refuse_groups,
    refuse_operator,
    rule_of,
)
from ..momentum_operator import CONFIG, MomentumOperator
from ..network import NoneGrad, plain_leaves, room_for, write
from ..ranks.replicas import learned, replica_group
from .hidden import state_of
from .low_memory import check_low, coefficients_low, merged_low
from .passes import (
    Row,
    check_no_group,
    collected,
    group_of,
    kept,
    leaves,
    of_weighted_sum,
    own_memory,
    passes,
    scalars,
    summed,
    taken,
)
from .replicas import averaged, exchanged
from .trunks import agreed_parts, check_seen, feature_list, parts_of, rows_behind, through_trunk
from .weighting import by_features

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["backward", "mtl_backward"]

Operator = GradientOperator | MomentumOperator


def backward(
    losses: Iterable[Tensor] | Tensor,
    model_or_parameters: torch.nn.Module | Iterable[Tensor],
    operator: Operator = CONFIG,
    *,
    indexes: Sequence[int] | None = None,
    retain_graph: bool = False,
    accumulate: bool = False,
    none_grad: NoneGrad = "skip",
    memory: Literal["low"] | None = None,
) -> None:
    """Compute each loss's gradient, merge the gradients, and write the result to ``.grad``.

    Call it in place of ``sum(losses).backward()``. It replaces ``.grad``, so ``zero_grad()`` is not needed.
    Hooks, memory layout and dtype follow the rules of torch's own backward pass.

    In DistributedDataParallel every loss's gradient is averaged over the ranks before the merge. A rank sends
    (m + 1) N elements; an all-reduce for each loss would send 2 m N. One loss's gradients travel while the
    next one's backward pass runs. For DTensors (FSDP2, tensor parallelism) torch's own backward passes run,
    and each rank merges its shard.

    Args:
        losses: m scalar losses in any iterable, or one vector (m,); in DistributedDataParallel this rank's.
        model_or_parameters: the network, or its parameters, which must be leaves. Those that do not require
            a gradient are left alone. For FSDP2 pass the model, since ``parameters()`` may return temporary
            copies between forward and backward pass.
        operator: merges the gradients; ConFIG by default. A momentum operator works as well, and keeps this
            rank's part of its state.
        indexes: for a momentum operator: which of its gradients these losses are; all by default.
        retain_graph: keep the graphs for another backward pass. Otherwise a loss's graph is freed in its own
            pass unless a later loss shares it; for small networks all are freed in the last pass.
        accumulate: add to ``.grad`` instead of replacing it.
        none_grad: what happens to a parameter that no loss reaches on any rank: "skip" leaves its ``.grad``
            alone, "zero" sets it to zeros.
        memory: "low" holds about two vectors of all parameters instead of m + 1, and takes m passes for each
            m-th part of the parameters: docs/which_call.md.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names; ``.grad`` is unchanged.
        CollectiveError: if a rank died or hangs; ``.grad`` is unchanged.

    Examples:
        >>> losses = [loss_fn(network, batch) for loss_fn in loss_fns]
        >>> fastconfig.backward(losses, network)
        >>> optimizer.step()
    """
    if torch.compiler.is_compiling():
        from ..graph import outside_the_graph

        keywords = {"indexes": indexes, "retain_graph": retain_graph, "accumulate": accumulate}
        rest: Any = {"none_grad": none_grad, "memory": memory}
        outside_the_graph(backward, losses, model_or_parameters, operator, **rest, **keywords)
        return
    if not isinstance(operator, MomentumOperator):
        check_operator(operator, "operator")
        if indexes is not None:
            kind = type(operator).__name__
            raise ValueError(f"indexes: got indexes for a {kind}, want a momentum operator")
    _check_words(none_grad, memory)
    model: Any = model_or_parameters
    values = scalars(losses)
    given = learned(model, "model_or_parameters") if isinstance(model, DistributedDataParallel) else model
    parameters = leaves(given, "model_or_parameters")
    keep = kept(values, parameters, retain_graph)
    group = replica_group(model, parameters)
    merging = _Merging(operator, indexes, values, group, _groups(operator, parameters, model, group))
    spread = plain_leaves(parameters) is None and any_dtensor(parameters)
    if memory == "low":
        check_low(operator, parameters, group is not None, spread)
    c = kept_coefficients(operator, len(values))
    if c is not None or memory == "low":
        if c is None:
            update: Any = merged_low(values, parameters, operator, retain_graph)
        else:
            update = of_weighted_sum(values, c, parameters, retain_graph, spread)
        if group is not None:
            update = averaged(update, parameters, group, "the weighted sum")
        write(parameters, update, accumulate=accumulate, none_grad=none_grad)
        return
    if group is not None:
        check_no_group(operator)
        averages, _ = exchanged(
            passes(values, parameters, keep), parameters, group, merging, merging.groups is not None
        )
        write(parameters, averages, accumulate=accumulate, none_grad=none_grad)
        return
    rows: list[Row]
    if spread:
        rows = collected(values, parameters, keep)
        if isinstance(model, torch.nn.Module):
            reshard(model)  # it may have stayed whole between the losses
    else:
        rows = list(passes(values, parameters, keep))
    for i, row in enumerate(rows):
        if row[0] is None and group_of(operator) is None and all(tensor is None for tensor in row):
            raise ValueError(f"losses[{i}]: got a loss that depends on none of the parameters")
    if accumulate or not _merged_at_once(parameters, rows, merging, none_grad):
        update = _update(parameters, rows, merging, accumulate)
        write(parameters, update, accumulate=accumulate, none_grad=none_grad)


def mtl_backward(
    losses: Iterable[Tensor] | Tensor,
    features: Tensor | Sequence[Tensor],
    shared_parameters: torch.nn.Module | Iterable[Tensor] | None = None,
    task_parameters: Sequence[torch.nn.Module | Iterable[Tensor]] | torch.nn.ModuleList | None = None,
    operator: Operator = CONFIG,
    *,
    gram: Literal["parameters", "features"] = "parameters",
    retain_graph: bool = False,
    accumulate: bool = False,
    none_grad: NoneGrad = "skip",
    memory: Literal["low"] | None = None,
) -> None:
    """Merge the gradients of a shared trunk; give each task's head its own gradient.

    Each loss goes backward through its own head to the features, and from there through the trunk. In
    DistributedDataParallel both are averaged over the ranks.

    With ``gram="features"`` the gradients are merged at the features, and only the merged one goes through
    the trunk: one pass, whatever m is. What the operator guarantees (equal cosines, no conflict) then holds
    for the gradients of the features, not for those of the parameters.

    Args:
        losses: m scalar losses, one for each task.
        features: outputs of the trunk: one tensor, or several that do not depend on each other.
        shared_parameters: the trunk, or its parameters; by default all that the features depend on.
        task_parameters: the heads or their parameters, in the order of the losses. A parameter of several
            heads gets the sum of their gradients. By default all that a loss reaches past the features.
        operator: merges the trunk's gradients; ConFIG by default. For ``gram="features"`` its coefficients
            must follow from the Gram matrix.
        gram: merge by the gradients of the trunk's "parameters" (m passes through the trunk) or by those of
            the "features" (one pass).
        retain_graph, accumulate, none_grad: as in :func:`backward`.
        memory: "low" holds about two vectors of the trunk's parameters instead of m + 1, as in
            :func:`backward`; with ``gram="features"`` that is so without it.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names; ``.grad`` is unchanged. Also if
            a parameter is in the trunk and in a head, and if a head gets no gradient.
        CollectiveError: as in :func:`backward`.

    Examples:
        >>> features = trunk(batch)
        >>> losses = [loss_fn(head(features)) for head, loss_fn in zip(heads, loss_fns)]
        >>> fastconfig.mtl_backward(losses, features, trunk, heads)
    """
    if torch.compiler.is_compiling():
        from ..graph import outside_the_graph

        keywords = {"retain_graph": retain_graph, "accumulate": accumulate}
        rest: Any = {"gram": gram, "none_grad": none_grad, "memory": memory, **keywords}
        outside_the_graph(
            mtl_backward, losses, features, shared_parameters, task_parameters, operator, **rest
        )
        return
    if not isinstance(operator, MomentumOperator):
        check_operator(operator, "operator")
    _check_words(none_grad, memory)
    if gram not in ("parameters", "features"):
        raise ValueError(f"gram: got {gram!r}, want 'parameters' or 'features'")
    if gram == "features":
        if not (isinstance(operator, GradientOperator) and is_ours(operator)):
            refuse_operator(operator)
        refuse_groups(operator, "gram='features' merges the features' gradients")
    values, outputs = scalars(losses), feature_list(features)
    parts = parts_of(values, outputs, shared_parameters, task_parameters)
    group = replica_group(None, parts.all(), "shared_parameters")
    if group is not None:
        check_no_group(operator)
        parts = agreed_parts(parts, shared_parameters is None, task_parameters is None, group)
    shared, together, everything = parts.shared, parts.together(), parts.all()
    groups = _groups(operator, shared, shared_parameters, group)
    low = memory == "low" and gram == "parameters"
    if low:
        check_low(operator, shared, group is not None, any_dtensor(shared))
    state, c = state_of(everything), kept_coefficients(operator, len(values))
    own: list[Row] = []
    ends: list[Row] = []
    rows: list[Row] = []
    for i, (value, head) in enumerate(zip(values, parts.heads, strict=True)):
        keep = retain_graph or i < len(values) - 1  # heads may share what lies behind the features
        found = taken(f"losses[{i}]", [value], [*outputs, *head], keep)
        own.append(found[len(outputs) :])
        ends.append(found[: len(outputs)])
        if all(gradient is None for gradient in ends[i]):
            raise ValueError(f"losses[{i}]: got a loss that depends on none of the features")
        if c is None and gram == "parameters" and not low:
            rows.append(through_trunk(outputs, ends[i], shared, keep))
    if c is None and gram == "features":
        assert isinstance(operator, GradientOperator)
        c = by_features(ends, outputs, values, operator, group)
    elif c is None and low:
        c = coefficients_low(lambda some: rows_behind(outputs, ends, some), values, shared, operator)
    if c is not None:
        trunk = list(through_trunk(outputs, combined(Gradients(ends), c), shared, retain_graph))
        own_memory(trunk)
        rows = [trunk]
    if group is None:  # a rank may have no part in what another reaches
        parts.check_reached(own)
    check_seen(parts, rows, own, values, state)
    columns: dict[int, list[Tensor | None]] = {id(par): [] for par in together}
    for head, gradients in zip(parts.heads, own, strict=True):
        for par, gradient in zip(head, gradients, strict=True):
            columns[id(par)].append(gradient)
    sums: Row = [summed(column) for column in columns.values()]
    merging = _Merging(operator, None, values, group, groups)
    parameters, update = together, sums
    if c is not None:
        parameters, update = everything, [*rows[0], *sums]
        if group is not None:
            update = averaged(update, everything, group, "the trunk and the heads")
    elif group is not None:
        merged, _ = exchanged(rows, shared, group, merging, groups is not None)
        parameters, update = everything, [*merged, *averaged(sums, together, group, "the heads")]
    elif accumulate or not _merged_at_once(shared, rows, merging, none_grad):
        parameters, update = everything, [*_update(shared, rows, merging, accumulate), *sums]
    write(parameters, update, accumulate=accumulate, none_grad=none_grad)


@dataclass
class _Merging:
    """How the gradients of some losses become one: an operator and what it is given beside them.

    Attributes:
        group: of replicas, whose mean losses count.
        groups: those of the parameters, of an operator that has some.
    """

    operator: Operator
    indexes: Sequence[int] | None
    losses: list[Tensor]
    group: ProcessGroup | None
    groups: list[Group] | None

    def __call__(self, grads: Gradients, room: Callable[[], Update] | None = None) -> Update:
        """The update; written to ``room()`` if the operator is a rule."""
        operator = self.operator
        if isinstance(operator, MomentumOperator):
            if self.indexes is None and grads.m != operator.num_vectors:
                raise ValueError(
                    f"losses: got {grads.m}, want all {operator.num_vectors} of the operator's, or in "
                    "backward indexes= of some"
                )
            chosen = range(grads.m) if self.indexes is None else self.indexes
            rows = grads.in_one_dtype().given_rows
            with among(self.groups):
                return operator.calculate_gradient(
                    chosen, rows, self._values() if operator.loss_recorder else None
                )
        if self.groups is not None:
            out = None if room is None else room()
            return merged(operator, grads, self.groups, self._values(), out, self.group)
        if (rule := rule_of(operator, grads, self.losses)) is not None:
            out = None if room is None else room()
            return merge(grads, rule, out, losses_of(rule, self.losses, grads, self.group))
        rows = grads.given_rows if is_ours(operator) else grads.stacked()
        return _fitting(operator.calculate_gradient(rows, self._values()), operator, grads)

    def _values(self) -> list[Tensor]:
        return [value.detach() for value in self.losses]


def _groups(
    operator: Operator, parameters: list[Tensor], model: Any, group: ProcessGroup | None
) -> list[Group] | None:
    """The groups that an operator merges by; None without groups.

    Raises:
        TypeError, ValueError: where it cannot merge by them.
    """
    if not isinstance(operator, (GradientOperator, MomentumOperator)) or operator.groups is None:
        return None
    if isinstance(operator, GradientOperator):
        check_grouped(operator)
    elif group is not None:
        raise ValueError("operator: got one with momentum and groups for replicas, want groups = None")
    return partition(operator, parameters, model)


def _fitting(update: Any, operator: Operator, grads: Gradients) -> Update:
    """The result of a user's own operator, a vector, in the form of the gradients.

    Raises:
        TypeError, ValueError: if it does not fit the gradients.
    """
    name = f"{type(operator).__name__}.calculate_gradient"
    if isinstance(update, Tensor):
        if update.shape != (grads.n,):
            raise ValueError(f"operator: got shape {tuple(update.shape)} from {name}, want ({grads.n},)")
        return grads.as_given(grads.restored(update))
    if not isinstance(update, (list, tuple)) or len(update) != len(grads.shapes):
        raise TypeError(f"operator: got {got(update)} from {name}, want a tensor ({grads.n},)")
    return list(update)


def _update(
    parameters: list[Tensor], rows: list[Row], merging: _Merging, accumulate: bool
) -> Sequence[Tensor | None]:
    """The update of every parameter; written into existing ``.grad`` unless that is to be kept."""
    grads = Gradients(rows, group=group_of(merging.operator))
    update = merging(grads, None if accumulate else lambda: room_for(grads, parameters))
    assert isinstance(update, list)
    return update


def _merged_at_once(
    parameters: list[Tensor], rows: list[Row], merging: _Merging, none_grad: NoneGrad
) -> bool:
    """Merge short gradients straight into existing ``.grad`` in one call; False if not applicable."""
    alone = merging.indexes is None and group_of(merging.operator) is None
    rule = fixed_rule_of(merging.operator) if alone else None
    if rule is None:
        return False
    monitor = merging.operator.monitor
    ring = ring_of(monitor)
    written = merge_into(rows, parameters, rule, ring) if ring or monitor is None else None
    if written is None:
        return False
    if monitor is not None:
        monitor.add_losses(merging.losses)
    torch.autograd.graph.increment_version(written)
    if none_grad == "zero" and len(written) < len(parameters):
        columns = zip(*rows, strict=True)
        missing = [
            par for par, column in zip(parameters, columns, strict=True) if all(g is None for g in column)
        ]
        write(missing, [None] * len(missing), none_grad="zero")
    return True


def _check_words(none_grad: str, memory: str | None) -> None:
    """Raise ValueError for a word that is none of those that an argument may be."""
    if none_grad not in ("zero", "skip"):
        raise ValueError(f"none_grad: got {none_grad!r}, want 'zero' or 'skip'")
    if memory not in (None, "low"):
        raise ValueError(f"memory: got {memory!r}, want None or 'low'")
