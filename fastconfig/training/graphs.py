"""What a graph says before and after a backward pass: what losses share, what they reach, what it hides."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

#: a node of the graph, and which of its outputs
Edge: TypeAlias = tuple[Any, int]
_DEPTH = 6  # of attributes and containers that are searched for a parameter
_MOST = 50_000  # objects that are looked at, the nearest first


def edge_of(tensor: Tensor) -> Edge:
    """Where a tensor leaves the graph."""
    node, output = get_gradient_edge(tensor)[:2]
    return node, output


def nodes_of(edges: Iterable[Edge], stop: Iterable[Edge] = ()) -> list[Any]:
    """All nodes that lie behind edges; not those that lie behind ``stop`` only."""
    return list(dict.fromkeys(node for node, _ in edges_of(edges, stop)))


def edges_of(edges: Iterable[Edge], stop: Iterable[Edge] = ()) -> list[Edge]:
    """These edges and all that lie behind them; not ``stop``, nor those that lie behind it only."""
    stopped = set(stop)
    found: dict[Edge, None] = {}
    walked: set[Any] = set()
    open_ends = list(edges)
    while open_ends:
        node, _ = edge = open_ends.pop()
        if node is None or edge in found or edge in stopped:
            continue
        found[edge] = None
        if node not in walked:
            walked.add(node)
            open_ends += node.next_functions
    return list(found)


def leaves_of(nodes: Iterable[Any]) -> list[Tensor]:
    """The leaves, which accumulate gradients, among nodes; in the order of the nodes."""
    return [node.variable for node in nodes if hasattr(node, "variable")]


def inner(nodes: Iterable[Any]) -> set[Any]:
    """The nodes without the leaves, which keep nothing for a backward pass."""
    return {node for node in nodes if node.next_functions}


# Parameters that a pass cannot see


def hidden_parameter(nodes: Iterable[Any], missing: Sequence[Tensor]) -> tuple[str, Tensor] | None:
    """A function that goes backward on its own, and one of the missing parameters that it holds.

    Such a function is reentrant checkpointing, or any torch.autograd.Function that calls ``backward`` within
    its own: its parameters are no part of the graph.
    """
    wanted = {id(par): par for par in missing}
    for node in nodes:
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found = _held(vars(node), wanted)
            if found is not None:
                return type(node).__name__.removesuffix("Backward"), found
    return None


def _held(start: Any, wanted: dict[int, Tensor]) -> Tensor | None:
    """The first wanted tensor that an object leads to: by containers, modules, closures and attributes."""
    seen: set[int] = set()
    waiting: deque[tuple[Any, int]] = deque([(start, 0)])
    while waiting and len(seen) < _MOST:
        value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if id(value) in wanted:
                return wanted[id(value)]
        elif isinstance(value, torch.nn.Module):
            waiting += [(par, depth) for par in value.parameters()]
        elif depth < _DEPTH:
            waiting += [(part, depth + 1) for part in _parts_of(value)]
    return None


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        names = [name for name in value.__code__.co_names if name in value.__globals__]
        return [*cells, *(value.__defaults__ or ()), *(value.__globals__[name] for name in names)]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, (type, types.ModuleType, str, bytes, int, float)):
        return []
    return list(getattr(value, "__dict__", {}).values())


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


# What was looked at once

_looked: dict[int, tuple[weakref.ref[Tensor], set[Hashable]]] = {}


def is_new(first: Tensor, what: Hashable) -> bool:
    """Whether ``what`` was not noted with this parameter.

    A walk through a graph takes as long as building it: it is done once for every way in which gradients are
    missing, not once a step.
    """
    known = _looked.get(id(first))
    return known is None or known[0]() is not first or what not in known[1]


def note(first: Tensor, what: Hashable) -> None:
    """``what`` was looked at with this parameter, and nothing was wrong."""
    known = _looked.get(id(first))
    if known is None or known[0]() is not first:

        def forget(_: object, key: int = id(first)) -> None:
            _looked.pop(key, None)

        known = _looked[id(first)] = weakref.ref(first, forget), set()
    known[1].add(what)
