"""From losses to ``.grad`` without a flat vector: ``backward`` and ``mtl_backward``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .backends import merge_into
from .compiling import outside_the_graph
from .config_update import merge
from .grad_operator import GradientOperator, fixed_rule_of, is_ours, rule_of
from .gradients import Gradients, Update, existing
from .momentum_operator import CONFIG, MomentumOperator
from .networks import parameters_of, plain_leaves
from .shards import any_dtensor, reshard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["backward", "mtl_backward"]

NoneGrad = Literal["zero", "skip"]
Operator = GradientOperator | MomentumOperator
_LARGE = 1 << 18  # parameters from which on freeing a graph early is worth looking for what losses share


def backward(
    losses: Sequence[Tensor] | Tensor,
    model_or_parameters: torch.nn.Module | Iterable[Tensor],
    operator: Operator = CONFIG,
    *,
    indexes: Sequence[int] | None = None,
    retain_graph: bool = False,
    accumulate: bool = False,
    none_grad: NoneGrad = "skip",
) -> None:
    """Merge the losses' gradients and write the result to the parameters' ``.grad``.

    Plain gradients that are there already are written to in place, as torch's own backward pass does. Of
    parameters that are DTensors (FSDP2, tensor parallelism) the engine's own backward passes are run, so that
    its reduce-scatter stays its own, and every rank merges its part.

    Args:
        losses: m scalar losses, or one vector (m,) of them.
        model_or_parameters: whose gradients are taken: those that require one. Must be leaves. Of FSDP2 give
            the model: its ``parameters()`` may be others between forward and backward pass. For a model in
            DistributedDataParallel see :func:`fastconfig.distributed.backward`.
        operator: merges them; a momentum operator is given all as well.
        indexes: for a momentum operator, which of its gradients the losses are; 0..m-1 by default.
        retain_graph: keep the graphs, to go backward through them once more. Otherwise each loss's graph is
            freed in its own pass, unless a later loss shares it; of small networks, all in the last pass.
        accumulate: add to ``.grad`` instead of replacing it.
        none_grad: what a parameter gets that no loss is connected to: "skip" leaves it alone, "zero" gives
            it zeros.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted; ``.grad`` is as before.
        CollectiveError: if the ranks cannot add up their parts; ``.grad`` is as before.
    """
    if torch.compiler.is_compiling():
        keywords = {"indexes": indexes, "retain_graph": retain_graph, "accumulate": accumulate}
        outside_the_graph(backward, losses, model_or_parameters, operator, none_grad=none_grad, **keywords)
        return
    _refuse_replicas(model_or_parameters)
    values = scalars(losses)
    parameters = leaves(model_or_parameters, "model_or_parameters")
    check_none_grad(none_grad)
    keep = kept(values, parameters, retain_graph)
    if plain_leaves(parameters) is None and any_dtensor(parameters):
        from .distributed import collected

        rows = collected(values, parameters, keep)
        if isinstance(model_or_parameters, torch.nn.Module):
            reshard(model_or_parameters)  # where it was to stay whole from one loss to the next
    else:
        rows = [taken(f"losses[{i}]", [value], parameters, keep[i]) for i, value in enumerate(values)]
    for i, row in enumerate(rows):
        if row[0] is None and group_of(operator) is None and all(tensor is None for tensor in row):
            raise ValueError(f"losses[{i}]: got one that no parameter is connected to")
    _merge_into(parameters, rows, operator, indexes, values, accumulate, none_grad)


def mtl_backward(
    losses: Sequence[Tensor],
    features: Tensor | Sequence[Tensor],
    shared_parameters: Iterable[Tensor],
    task_parameters: Sequence[Iterable[Tensor]],
    operator: Operator = CONFIG,
    *,
    retain_graph: bool = False,
    accumulate: bool = False,
    none_grad: NoneGrad = "skip",
) -> None:
    """Gradients of a shared trunk merged, of each task's head its own.

    Every loss goes backward through its own head to the features, and from these alone through the trunk.

    Args:
        losses: m scalar losses, one a task.
        features: what the trunk gives to the heads: one tensor or several.
        shared_parameters: of the trunk.
        task_parameters: of each task's head; a parameter of several heads gets the sum.
        operator: merges the trunk's gradients.
        retain_graph, accumulate, none_grad: as in :func:`backward`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted; ``.grad`` is as before.
    """
    if torch.compiler.is_compiling():
        rest = {"retain_graph": retain_graph, "accumulate": accumulate, "none_grad": none_grad}
        outside_the_graph(
            mtl_backward, losses, features, shared_parameters, task_parameters, operator, **rest
        )
        return
    values = scalars(losses)
    outputs = [features] if isinstance(features, Tensor) else list(features)
    shared = leaves(shared_parameters, "shared_parameters")
    if len(task_parameters) != len(values):
        raise ValueError(f"task_parameters: got {len(task_parameters)}, want {len(values)}: one a loss")
    heads = [leaves(task, f"task_parameters[{i}]", some=False) for i, task in enumerate(task_parameters)]
    check_none_grad(none_grad)
    for i, feature in enumerate(outputs):
        if not isinstance(feature, Tensor) or not feature.requires_grad:
            raise ValueError(f"features[{i}]: got one that needs no gradient, want the trunk's outputs")
    own: list[Sequence[Tensor | None]] = []
    rows: list[Sequence[Tensor | None]] = []
    for i, (value, head) in enumerate(zip(values, heads, strict=True)):
        keep = retain_graph or i < len(values) - 1  # heads may share what lies behind the features
        found = taken(f"losses[{i}]", [value], [*outputs, *head], keep)
        own.append(found[len(outputs) :])
        reached = [(feature, g) for feature, g in zip(outputs, found, strict=False) if g is not None]
        if not reached:
            raise ValueError(f"losses[{i}]: got one that no feature is connected to")
        ends, at_ends = zip(*reached, strict=True)
        rows.append(taken("features", ends, shared, keep, at_ends))
    _merge_into(shared, rows, operator, None, values, accumulate, none_grad)
    sums: dict[int, tuple[Tensor, Tensor | None]] = {}
    for head, gradients in zip(heads, own, strict=True):
        for par, gradient in zip(head, gradients, strict=True):
            before = sums[id(par)][1] if id(par) in sums else None
            total = gradient if before is None else before if gradient is None else before + gradient
            sums[id(par)] = par, total
    pairs = list(sums.values())
    write([par for par, _ in pairs], [total for _, total in pairs], accumulate, none_grad)


def scalars(losses: Any) -> list[Tensor]:
    """The losses as scalars with a graph."""
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(
                f"losses: got shape {tuple(losses.shape)}, want a vector (m,) or a sequence of scalars"
            )
        losses = losses.unbind()
    elif not isinstance(losses, Sequence):
        raise TypeError(f"losses: got a {type(losses).__name__}, want a sequence of scalar losses")
    if not losses:
        raise ValueError("losses: got none, want at least one")
    for i, value in enumerate(losses):
        if not isinstance(value, Tensor):
            raise TypeError(f"losses[{i}]: got a {type(value).__name__}, want a tensor of one element")
        if value.numel() != 1:
            raise ValueError(
                f"losses[{i}]: got shape {tuple(value.shape)}, want one element: reduce it first"
            )
        if not value.requires_grad:
            raise ValueError(f"losses[{i}]: got one that needs no gradient, want one with a graph")
    return list(losses)


def leaves(given: torch.nn.Module | Iterable[Tensor], argument: str, *, some: bool = True) -> list[Tensor]:
    """The parameters that require a gradient, each once."""
    if isinstance(given, torch.nn.Module):
        reshard(given)
        given = parameters_of(given)
    parameters: list[Any] = list(given)
    found = plain_leaves(parameters)
    if found is not None and (found or not some):
        return found
    for i, par in enumerate(parameters):
        if not isinstance(par, Tensor):
            raise TypeError(f"{argument}[{i}]: got a {type(par).__name__}, want a tensor")
        if not par.is_leaf:
            raise ValueError(f"{argument}[{i}]: got a tensor with a history, want a leaf: it has no .grad")
    wanted = list({id(par): par for par in parameters if par.requires_grad}.values())
    if some and not wanted:
        raise ValueError(f"{argument}: got {len(parameters)} tensors and none that requires a gradient")
    return wanted


def kept(losses: list[Tensor], parameters: list[Tensor], retain_graph: bool) -> list[bool]:
    """Whether each loss's graph is kept after its pass: it is asked for, or a later loss shares it."""
    keep = [True] * (len(losses) - 1) + [retain_graph]
    if retain_graph or sum([par.numel() for par in parameters]) < _LARGE:
        return keep
    later: set[Any] = set()
    for i in reversed(range(len(losses))):
        nodes = _nodes(losses[i])
        keep[i] = not later.isdisjoint(nodes)
        later |= nodes
    return keep


def _nodes(loss: Tensor) -> set[Any]:
    """What a loss's graph is made of, without the leaves, which keep nothing for a pass."""
    found: set[Any] = set()
    open_ends = [loss.grad_fn]
    while open_ends:
        node = open_ends.pop()
        if node is None or node in found or not node.next_functions:
            continue
        found.add(node)
        open_ends += [before for before, _ in node.next_functions]
    return found


def check_none_grad(none_grad: str) -> None:
    """Raise ValueError for what is no choice."""
    if none_grad not in ("zero", "skip"):
        raise ValueError(f"none_grad: got {none_grad!r}, want 'zero' or 'skip'")


def taken(
    name: str,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    keep: bool,
    at_outputs: Sequence[Tensor] | None = None,
) -> Sequence[Tensor | None]:
    """Gradients of the inputs; None where one is unconnected."""
    try:
        return torch.autograd.grad(outputs, inputs, at_outputs, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        check_freed(name, error)
        raise


def check_freed(name: str, error: RuntimeError) -> None:
    """Raise ValueError if an error of a backward pass means that the graph is gone."""
    if "second time" in str(error):
        raise ValueError(f"{name}: its graph is freed already, want retain_graph=True before") from error


def _merge_into(
    parameters: list[Tensor],
    rows: list[Sequence[Tensor | None]],
    operator: Operator,
    indexes: Sequence[int] | None,
    losses: list[Tensor],
    accumulate: bool,
    none_grad: NoneGrad,
) -> None:
    """The update, to the parameters' ``.grad``; into what is there, if nobody needs that any more."""
    if not accumulate and _merged_at_once(parameters, rows, operator, indexes, none_grad):
        return
    grads = _described(rows, operator)
    there = None if accumulate else existing([par.grad for par in parameters], grads)
    update = merged(grads, operator, indexes, losses, there)
    assert isinstance(update, list)
    write(parameters, update, accumulate, none_grad)


def _merged_at_once(
    parameters: list[Tensor],
    rows: list[Sequence[Tensor | None]],
    operator: Operator,
    indexes: Sequence[int] | None,
    none_grad: NoneGrad,
) -> bool:
    """Whether short gradients were merged into the ``.grad`` that are there, in one call."""
    rule = fixed_rule_of(operator) if indexes is None and group_of(operator) is None else None
    written = None if rule is None else merge_into(rows, parameters, rule)
    if written is None:
        return False
    torch.autograd.graph.increment_version(written)
    if none_grad == "zero" and len(written) < len(parameters):
        for par, column in zip(parameters, zip(*rows, strict=True), strict=True):
            if all(piece is None for piece in column):
                par.grad = torch.zeros_like(par)
    return True


def merged(
    grads: Gradients,
    operator: Operator,
    indexes: Sequence[int] | None,
    losses: list[Tensor],
    out: Update | None = None,
) -> Update:
    """The update by any operator; in ``out``, if there is one, where the operator is a rule."""
    if isinstance(operator, MomentumOperator):
        values = [value.detach() for value in losses] if operator.loss_recorder else None
        chosen = range(grads.m) if indexes is None else indexes
        return operator.calculate_gradient(chosen, grads.given_rows, values)
    if indexes is not None:
        raise ValueError(f"indexes: got some for a {type(operator).__name__}, want a momentum operator")
    if (rule := rule_of(operator, grads)) is not None:
        return merge(grads, rule, out)
    return _by_operator(operator, grads, [value.detach() for value in losses])


def _described(rows: list[Sequence[Tensor | None]], operator: Operator) -> Gradients:
    """The gradients, dense."""
    group = group_of(operator)
    try:
        return Gradients(rows, group=group)
    except TypeError:  # sparse ones, of an embedding
        strided = torch.strided
        return Gradients(
            [[g if g is None or g.layout is strided else g.to_dense() for g in row] for row in rows],
            group=group,
        )


def _by_operator(operator: GradientOperator, grads: Gradients, losses: list[Tensor]) -> Update:
    """The update of an operator that is more than a rule: a user's own expects the stacked tensor."""
    rows: Any = grads.given_rows if is_ours(operator) else grads.stacked()
    update = operator.calculate_gradient(rows, losses)
    return grads.restored(update) if isinstance(update, Tensor) else update


def group_of(operator: Operator) -> ProcessGroup | None:
    """Whose ranks have parts of the gradients that it is given; also of an operator of another package."""
    return getattr(operator, "process_group", None)


def _refuse_replicas(model: object) -> None:
    """Whether a model's gradients mean what they say: those of replicas must be averaged first."""
    if isinstance(model, DistributedDataParallel):
        raise TypeError(
            "model_or_parameters: got a DistributedDataParallel, want "
            "fastconfig.distributed.backward(model, losses)"
        )


def write(
    parameters: Sequence[Tensor], update: Sequence[Tensor | None], accumulate: bool, none_grad: NoneGrad
) -> None:
    """An update to the parameters' ``.grad``."""
    for par, piece in zip(parameters, update, strict=True):
        if piece is None and none_grad == "skip":
            continue
        if accumulate and par.grad is not None:
            if piece is not None:
                par.grad.add_(piece)
        else:
            par.grad = torch.zeros_like(par) if piece is None else piece
