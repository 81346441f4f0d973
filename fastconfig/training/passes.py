"""Losses -> gradients: one backward pass for each loss, with an error if a pass misses a parameter."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..checks import got
from ..gradients.checks import dense
from ..gradients.shards import is_dtensor, reshard
from ..network import parameters_of, plain_leaves
from ..ranks.collectives import check_collective
from .graphs import inner, nodes_of
from .hidden import REENTRANT, check_hidden, state_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: one gradient for each parameter; None where the loss does not depend on it
Row: TypeAlias = Sequence[Tensor | None]
_LARGE = 1 << 18  # networks with more parameters are worth the search for shared graphs, to free memory early


def listed(losses: Any) -> list[Any]:
    """The losses of any iterable, or of a vector (m,), one by one.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(losses, Tensor):
        if losses.dim() != 1:
            raise ValueError(
                f"losses: got shape {tuple(losses.shape)}, want a vector (m,) or a sequence of scalars"
            )
        found = list(losses.unbind())
    elif isinstance(losses, (Mapping, str)) or not isinstance(losses, Iterable):
        wanted = "losses.values()" if isinstance(losses, Mapping) else "a sequence of scalar losses"
        raise TypeError(f"losses: got a {type(losses).__name__}, want {wanted}")
    else:
        found = list(losses)
    if not found:
        raise ValueError("losses: got none, want at least one")
    return found


def scalars(losses: Any) -> list[Tensor]:
    """The losses as scalars with a graph."""
    found = listed(losses)
    for i, value in enumerate(found):
        if not isinstance(value, Tensor):
            raise TypeError(f"losses[{i}]: got a {type(value).__name__}, want a tensor of one element")
        if value.numel() != 1:
            raise ValueError(
                f"losses[{i}]: got shape {tuple(value.shape)}, want one element: reduce it first"
            )
        if not value.requires_grad:
            raise ValueError(f"losses[{i}]: got a loss without a graph, want one that requires a gradient")
        if value.is_complex():
            wanted = "a real number, such as loss.abs() or loss.real"
            raise TypeError(f"losses[{i}]: got {value.dtype}, want {wanted}")
    return found


def leaves(given: Any, argument: str, *, some: bool = True) -> list[Tensor]:
    """The parameters that require a gradient, each once; of a module or an iterable.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
    """
    parameters = checked_parameters(given, argument)
    found = plain_leaves(parameters)
    if found is not None and (found or not some):
        return found
    for i, par in enumerate(parameters):
        if not isinstance(par, Tensor):
            raise TypeError(f"{argument}[{i}]: got a {type(par).__name__}, want a tensor")
        if not par.is_leaf:
            raise ValueError(f"{argument}[{i}]: got a computed tensor, which has no .grad, want a leaf")
    wanted = list({id(par): par for par in parameters if par.requires_grad}.values())
    if some and not wanted:
        raise ValueError(f"{argument}: got {len(parameters)} tensors and none that requires a gradient")
    return wanted


def checked_parameters(given: Any, argument: str) -> list[Any]:
    """The parameters of a module or an iterable, as a list.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(given, torch.nn.Module):
        reshard(given)
        return parameters_of(given)
    if isinstance(given, (torch.optim.Optimizer, type, str, Tensor)) or not isinstance(given, Iterable):
        advice = ": give the model that it steps" if isinstance(given, torch.optim.Optimizer) else ""
        raise TypeError(
            f"{argument}: got {got(given)}, want a torch.nn.Module or a list of parameters{advice}"
        )
    return list(given)


def kept(losses: list[Tensor], parameters: list[Tensor], retain_graph: bool) -> list[bool]:
    """Which losses' graphs to keep after their passes: all if asked, else those that a later loss shares."""
    keep = [True] * (len(losses) - 1) + [retain_graph]
    if retain_graph or sum([par.numel() for par in parameters]) < _LARGE:
        return keep
    later: set[Any] = set()
    for i in reversed(range(len(losses))):
        nodes = inner(nodes_of([losses[i]]))
        keep[i] = not later.isdisjoint(nodes)
        later |= nodes
    return keep


def passes(values: Sequence[Tensor], parameters: list[Tensor], keep: Sequence[bool]) -> Iterator[Row]:
    """The gradients of every loss in turn, in one backward pass each.

    Raises:
        ValueError: for a graph that is freed already, or one that hides a parameter.
    """
    state = state_of(parameters)
    absent: list[list[bool | None]] = []
    for i, value in enumerate(values):
        if value.requires_grad:
            row = taken(f"losses[{i}]", [value], parameters, keep[i])
        else:  # no parameters
            row = (None,) * len(parameters)
        absent.append([gradient is None for gradient in row])
        yield row
    check_hidden(absent, values, parameters, state)


def taken(
    name: str,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    keep: bool,
    at_outputs: Sequence[Tensor] | None = None,
) -> Row:
    """Gradients of the inputs; None where the loss does not depend on one."""
    if not inputs:
        return ()
    try:
        return torch.autograd.grad(outputs, inputs, at_outputs, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        check_freed(name, error)
        raise


def as_weights(c: Tensor, losses: Sequence[Tensor]) -> Tensor:
    """Coefficients on the losses' device and in their dtype (at least float32)."""
    dtype = functools.reduce(torch.promote_types, [loss.dtype for loss in losses], torch.float32)
    return c.to(losses[0].device, dtype)


def of_weighted_sum(
    losses: Sequence[Tensor], c: Tensor, parameters: list[Tensor], retain_graph: bool, spread: bool
) -> Row:
    """The gradients of sum_i c_i L_i in one backward pass, each in memory of its own.

    Args:
        spread: whether the parameters are DTensors.

    Raises:
        ValueError: as :func:`passes`.
    """
    weights = as_weights(c, losses)
    total = (weights * torch.stack([loss.reshape(()).to(weights.device) for loss in losses])).sum()
    if spread:
        row = collected([total], parameters, [retain_graph])[0]
    else:
        state = state_of(parameters)
        row = list(taken("losses", [total], parameters, retain_graph))
        own_memory(row)
        check_hidden([[gradient is None for gradient in row]], [total], parameters, state)
    return row


def own_memory(row: list[Tensor | None]) -> None:
    """Put each gradient in memory of its own, dense; one copy at a time."""
    for p, gradient in enumerate(row):
        row[p] = summed([gradient])


def check_freed(name: str, error: RuntimeError) -> None:
    """Raise ValueError with advice, if the caller can fix what made a backward pass fail."""
    if "second time" in str(error):
        wanted = "retain_graph=True in the earlier backward pass"
        raise ValueError(f"{name}: its graph is freed already, want {wanted}") from error
    if "use_reentrant" in str(error):
        raise ValueError(f"{name}: got reentrant checkpointing in its graph, {REENTRANT}") from error
    if "donated buffer" in str(error):
        raise ValueError(
            f"{name}: a compiled part of its graph frees its buffers in the first pass, want "
            "torch._functorch.config.donated_buffer = False before the model is compiled"
        ) from error


def collected(values: list[Tensor], parameters: list[Tensor], keep: list[bool]) -> list[Row]:
    """The gradients of every loss, read from ``.grad`` after a backward pass each; ``.grad`` is restored.

    ``torch.autograd.grad`` does not find FSDP2's sharded parameters, since they are not part of the graph.
    Post-accumulate hooks are held back until the merged gradient is written.
    """
    before = [par.grad for par in parameters]
    waiting = [(hooks, dict(hooks)) for par in parameters if (hooks := par._post_accumulate_grad_hooks)]
    for hooks, _ in waiting:
        hooks.clear()
    rows: list[Row] = []
    try:
        for i, value in enumerate(values):
            _set(parameters, [None] * len(parameters))
            try:
                if value.requires_grad:
                    value.backward(retain_graph=keep[i])
            except RuntimeError as error:
                check_freed(f"losses[{i}]", error)
                check_collective(f"a collective of the backward pass of losses[{i}]", error)
                raise
            rows.append([placed(par.grad, par) for par in parameters])
    finally:
        _set(parameters, before)
        for hooks, held in waiting:
            hooks.update(held)
    return rows


def placed(grad: Any, parameter: Any) -> Any:
    """A gradient with its parameter's placements; tensor parallelism may leave a partial sum or all of it."""
    if not is_dtensor(grad) or not is_dtensor(parameter) or grad.placements == parameter.placements:
        return grad
    return grad.redistribute(parameter.device_mesh, parameter.placements)


def _set(parameters: list[Tensor], grads: Row) -> None:
    for par, grad in zip(parameters, grads, strict=True):
        par.grad = grad


def summed(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of a parameter's gradients, dense, in memory of its own; None if there are none.

    (Autograd may return the same tensor as the gradient of several parameters.)
    """
    present = [dense(gradient) for gradient in gradients if gradient is not None]
    if len(present) == 1:
        return present[0].clone()
    return functools.reduce(torch.add, present) if present else None


def group_of(operator: Any) -> ProcessGroup | None:
    """The operator's process group, or None; works for operators of other packages, too."""
    return getattr(operator, "process_group", None)


def check_no_group(operator: Any) -> None:
    """Check that an operator of a distributed model has no process group of its own.

    Raises:
        ValueError: if it has one.
    """
    if group_of(operator) is not None:
        raise ValueError("operator: got one with a process_group, want one without: the model's own is used")
