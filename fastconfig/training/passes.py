"""Losses -> gradients: one backward pass a loss, and an error where it does not see all that it should."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from ..checks import got
from ..network import dense, parameters_of, plain_leaves
from ..ranks.collectives import check_collective
from ..shards import is_dtensor, reshard
from .graphs import edge_of, hidden_parameter, inner, is_new, nodes_of, note

#: one gradient a parameter; None where a loss is not connected to it
Row: TypeAlias = Sequence[Tensor | None]
_LARGE = 1 << 18  # parameters from which on freeing a graph early is worth looking for what losses share


def listed(losses: Any) -> list[Any]:
    """The losses of any iterable, or of a vector (m,), one by one.

    Raises:
        TypeError, ValueError: for what is none; naming ``losses``.
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
            raise ValueError(f"losses[{i}]: got one that needs no gradient, want one with a graph")
    return found


def leaves(given: Any, argument: str, *, some: bool = True) -> list[Tensor]:
    """The parameters that require a gradient, each once; of a module or an iterable.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if isinstance(given, torch.nn.Module):
        reshard(given)
        given = parameters_of(given)
    elif isinstance(given, (torch.optim.Optimizer, type, str, Tensor)) or not isinstance(given, Iterable):
        _refuse_parameters(given, argument)
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


def _refuse_parameters(given: Any, argument: str) -> NoReturn:
    advice = ": give the model that it steps" if isinstance(given, torch.optim.Optimizer) else ""
    raise TypeError(f"{argument}: got {got(given)}, want a torch.nn.Module or a list of parameters{advice}")


def kept(losses: list[Tensor], parameters: list[Tensor], retain_graph: bool) -> list[bool]:
    """Whether each loss's graph is kept after its pass: it is asked for, or a later loss shares it."""
    keep = [True] * (len(losses) - 1) + [retain_graph]
    if retain_graph or sum([par.numel() for par in parameters]) < _LARGE:
        return keep
    later: set[Any] = set()
    for i in reversed(range(len(losses))):
        nodes = inner(nodes_of([edge_of(losses[i])])) if losses[i].requires_grad else set()
        keep[i] = not later.isdisjoint(nodes)
        later |= nodes
    return keep


def passes(values: Sequence[Tensor], parameters: list[Tensor], keep: Sequence[bool]) -> Iterator[Row]:
    """The gradients of every loss in turn, in one backward pass each.

    Raises:
        ValueError: for a graph that is freed already, or one that hides a parameter.
    """
    for i, value in enumerate(values):
        if not value.requires_grad:  # of nothing that is learned
            yield (None,) * len(parameters)
            continue
        name = f"losses[{i}]"
        row = taken(name, [value], parameters, keep[i])
        check_seen(row, [value], parameters, name)
        yield row


def taken(
    name: str,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    keep: bool,
    at_outputs: Sequence[Tensor] | None = None,
) -> Row:
    """Gradients of the inputs; None where one is unconnected."""
    if not inputs:
        return ()
    try:
        return torch.autograd.grad(outputs, inputs, at_outputs, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        check_freed(name, error)
        raise


_REENTRANT = "want torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"


def check_freed(name: str, error: RuntimeError) -> None:
    """Raise ValueError if an error of a backward pass has a cause that the caller can mend."""
    if "second time" in str(error):
        raise ValueError(f"{name}: its graph is freed already, want retain_graph=True before") from error
    if "use_reentrant" in str(error):
        raise ValueError(f"{name}: got reentrant checkpointing in its graph, {_REENTRANT}") from error
    if "donated buffer" in str(error):
        raise ValueError(
            f"{name}: a compiled part of its graph frees its buffers in the first pass, want "
            "torch._functorch.config.donated_buffer = False before the model is compiled"
        ) from error


def check_seen(row: Row, ends: Sequence[Tensor], parameters: list[Tensor], name: str) -> None:
    """Look for functions that go backward on their own, where a parameter has no gradient.

    Raises:
        ValueError: if one holds such a parameter: its gradient would be missing without a word.
    """
    absent = [gradient is None for gradient in row]
    if True not in absent or not is_new(parameters[0], (name, bytes(absent))):
        return
    missing = [par for par, none in zip(parameters, absent, strict=True) if none]
    found = hidden_parameter(nodes_of([edge_of(end) for end in ends]), missing)
    if found is not None:
        function, par = found
        raise ValueError(
            f"{name}: got no gradient of a parameter of shape {tuple(par.shape)}, which {function} holds: it "
            f"goes backward on its own, unseen by this pass; for checkpoints {_REENTRANT}"
        )
    note(parameters[0], (name, bytes(absent)))


def collected(values: list[Tensor], parameters: list[Tensor], keep: list[bool]) -> list[Row]:
    """The gradients of every loss by its own backward pass, from ``.grad``, which is as before then.

    FSDP2's sharded parameters are no part of the graph: ``torch.autograd.grad`` does not find them. Hooks
    that wait for the gradient wait for the merged one.
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
    """A gradient where its parameter is: tensor parallelism may leave it as a partial sum, or whole."""
    if not is_dtensor(grad) or not is_dtensor(parameter) or grad.placements == parameter.placements:
        return grad
    return grad.redistribute(parameter.device_mesh, parameter.placements)


def _set(parameters: list[Tensor], grads: Row) -> None:
    for par, grad in zip(parameters, grads, strict=True):
        par.grad = grad


def dense_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows without sparse gradients, which embeddings give."""
    return [[None if gradient is None else dense(gradient) for gradient in row] for row in rows]


def summed(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of the gradients of one parameter, dense; None if there are none."""
    total: Tensor | None = None
    for gradient in gradients:
        if gradient is not None:
            total = dense(gradient) if total is None else total + dense(gradient)
    return total
