"""A trunk, its features and the heads: which parameters belong where, and checks that none is missed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.nn import ModuleList

from ..checks import got
from ..gradients.shards import is_whole_copy
from ..ranks.replicas import fellow_parameters
from .graphs import Edge, before, behind, edge_of, leaves_of
from .hidden import State, check_hidden
from .passes import Row, leaves, taken

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_WHOLE = "want fastconfig.backward(losses, model), which merges whole gradients"


@dataclass
class Parts:
    """The parameters of a trunk, and of the head of each loss."""

    shared: list[Tensor]
    heads: list[list[Tensor]]

    def together(self) -> list[Tensor]:
        """The parameters of all heads, each once."""
        return list({id(par): par for head in self.heads for par in head}.values())

    def all(self) -> list[Tensor]:
        """All parameters, each once."""
        return [*self.shared, *self.together()]

    def check_reached(self, own: Sequence[Sequence[Tensor | None]]) -> None:
        """Check that every head gets a gradient from its own loss.

        Raises:
            ValueError: for the first head that gets none.
        """
        for i, (head, gradients) in enumerate(zip(self.heads, own, strict=True)):
            if head and all(gradient is None for gradient in gradients):
                _refuse_head(i)


def _refuse_head(i: int) -> NoReturn:
    raise ValueError(
        f"task_parameters[{i}]: got parameters that losses[{i}] does not reach, want those of its own head: "
        "are they in the order of the losses?"
    )


def feature_list(features: Any, argument: str = "features") -> list[Tensor]:
    """The features as a list.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
    """
    if isinstance(features, str) or not isinstance(features, Iterable):
        kind = type(features).__name__
        raise TypeError(f"{argument}: got a {kind}, want a tensor or a sequence of tensors")
    found = [features] if isinstance(features, Tensor) else list(features)
    if not found:
        raise ValueError(f"{argument}: got none, want the trunk's outputs")
    for i, feature in enumerate(found):
        if not isinstance(feature, Tensor) or not feature.requires_grad:
            raise ValueError(f"{argument}[{i}]: got a tensor without a graph, want an output of the trunk")
        if feature.is_leaf:
            raise ValueError(f"{argument}[{i}]: got a leaf, want an output of the trunk")
    return found


def parts_of(values: list[Tensor], features: list[Tensor], shared: Any, tasks: Any) -> Parts:
    """The parameters of trunk and heads: those given, as modules or iterables, else those in the graph.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names; also for a parameter in two
            roles, because a part of its gradient would be lost.
    """
    ends = [edge_of(feature) for feature in features]
    check_apart(ends, "features")
    trunk = None if shared is None else leaves(shared, "shared_parameters")
    heads = None if tasks is None else _given_heads(tasks, len(values))
    in_trunk = leaves_of(behind([node for node, _ in ends]))
    in_heads = []
    for i, value in enumerate(values):
        nodes, reached = before([edge_of(value)], ends)
        if not reached:
            raise ValueError(f"losses[{i}]: got a loss that depends on none of the features")
        in_heads.append(leaves_of(nodes))
    if trunk is None:
        trunk = _found(in_trunk, "shared_parameters")
        if not trunk:
            raise ValueError("features: got tensors that depend on no parameter, want outputs of the trunk")
    if heads is None:
        heads = [_found(reached, "task_parameters") for reached in in_heads]
    _check_roles(trunk, heads, in_trunk, in_heads)
    return Parts(trunk, heads)


def _found(leaves: list[Tensor], argument: str) -> list[Tensor]:
    """The parameters among leaves.

    Raises:
        ValueError: if a leaf is no nn.Parameter: it may be an input.
    """
    if any(is_whole_copy(leaf) for leaf in leaves[:1]):
        raise ValueError(
            f"{argument}: got none, and found the whole copies that FSDP2 makes of a module's parameters, "
            "want fastconfig.backward(losses, model)"
        )
    own = [leaf for leaf in leaves if leaf.requires_grad]
    parameters = [leaf for leaf in own if isinstance(leaf, torch.nn.Parameter)]
    if parameters and len(parameters) < len(own):
        other = next(leaf for leaf in own if not isinstance(leaf, torch.nn.Parameter))
        raise ValueError(
            f"{argument}: got none, and found a tensor of shape {tuple(other.shape)} that requires a "
            "gradient, beside parameters: want them given, because it may be an input"
        )
    return own


def _given_heads(tasks: Any, m: int) -> list[list[Tensor]]:
    if isinstance(tasks, (Tensor, str, type)) or not isinstance(tasks, (Collection, ModuleList)):
        raise TypeError(
            f"task_parameters: got {got(tasks)}, want a list of {m}: a module or its parameters a loss"
        )
    if len(tasks) != m:
        raise ValueError(f"task_parameters: got {len(tasks)}, want {m}: one a loss")
    return [leaves(task, f"task_parameters[{i}]", some=False) for i, task in enumerate(tasks)]


def check_apart(ends: list[Edge], argument: str) -> None:
    """Check that the features do not depend on each other.

    Raises:
        ValueError: for the first that does.
    """
    if len(ends) < 2:
        return
    for k, (node, _) in enumerate(ends):
        if ends[k] in ends[:k]:
            raise ValueError(f"{argument}[{k}]: got {argument}[{ends.index(ends[k])}] again, want each once")
        _, reached = before(node.next_functions, [end for end in ends if end != ends[k]])
        if reached:
            raise ValueError(
                f"{argument}[{k}]: got one that is computed from {argument}[{ends.index(reached.pop())}], "
                "want outputs of the trunk that do not depend on each other: their gradients would count "
                "twice"
            )


def _check_roles(
    trunk: list[Tensor], heads: list[list[Tensor]], in_trunk: list[Tensor], in_heads: list[list[Tensor]]
) -> None:
    places = {id(par): f"shared_parameters[{k}]" for k, par in enumerate(trunk)}
    behind_features = {id(par) for par in in_trunk}
    for i, (head, reached) in enumerate(zip(heads, in_heads, strict=True)):
        if head and {id(par) for par in head}.isdisjoint(id(par) for par in (*reached, *in_trunk)):
            _refuse_head(i)
    for i, (head, reached) in enumerate(zip(heads, in_heads, strict=True)):
        own = {id(par) for par in head}
        for k, par in enumerate(head):
            if id(par) in places or id(par) in behind_features:
                other = places.get(id(par), "the trunk behind the features")
                raise ValueError(
                    f"task_parameters[{i}][{k}]: got a parameter of shape {tuple(par.shape)} that is in "
                    f"{other} too, {_WHOLE}"
                )
        for par in reached:
            if id(par) in places:
                raise ValueError(
                    f"{places[id(par)]}: got a parameter of shape {tuple(par.shape)} that losses[{i}] "
                    f"reaches past the features, {_WHOLE}"
                )
            for j, another in enumerate(heads):
                if id(par) not in own and any(par is theirs for theirs in another):
                    raise ValueError(
                        f"task_parameters[{j}]: got a parameter of shape {tuple(par.shape)} that losses[{i}] "
                        f"reaches too, want it in task_parameters[{i}] as well: it gets the sum"
                    )


def through_trunk(features: list[Tensor], ends: Any, shared: list[Tensor], keep: bool) -> Row:
    """The gradients of the trunk's parameters, given those of its features (some may be None)."""
    reached = [(feature, g) for feature, g in zip(features, ends, strict=True) if g is not None]
    some, at_ends = zip(*reached, strict=True)
    return taken("features", some, shared, keep, at_ends)


def rows_behind(features: list[Tensor], ends: list[Row], shared: list[Tensor]) -> Iterator[Row]:
    """:func:`through_trunk` for each loss in turn; the graph is kept."""
    return (through_trunk(features, gradients, shared, True) for gradients in ends)


def check_seen(parts: Parts, rows: list[Row], own: list[Row], values: list[Tensor], state: State) -> None:
    """Check that the passes through trunk and heads have seen every parameter.

    Raises:
        ValueError: naming a loss whose graph hides a parameter.
    """
    absent: list[list[bool | None]] = []
    for i, (head, gradients) in enumerate(zip(parts.heads, own, strict=True)):
        of_head = {id(par): g is None for par, g in zip(head, gradients, strict=True)}
        trunk = rows[i if len(rows) > 1 else 0]
        absent.append([*(g is None for g in trunk), *(of_head.get(id(par)) for par in parts.together())])
    check_hidden(absent, values, parts.all(), state)


def agreed_parts(parts: Parts, shared: bool, heads: bool, group: ProcessGroup) -> Parts:
    """Trunk and heads found in the graph, united over the ranks so that all have the same."""
    from ..ranks.exchange import united

    if not shared and not heads:
        return parts
    trunk, *others = united([parts.shared, *parts.heads], fellow_parameters(parts.all()), group)
    return Parts(trunk if shared else parts.shared, others if heads else parts.heads)
