"""Walks through autograd graphs: what losses share, and which leaves they reach."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

#: a node of the graph, and which of its outputs
Edge: TypeAlias = tuple[Any, int]


def edge_of(tensor: Tensor) -> Edge:
    """The node, and its output, that a tensor comes from."""
    node, output = get_gradient_edge(tensor)[:2]
    return node, output


def nodes_of(tensors: Iterable[Tensor]) -> list[Any]:
    """All nodes that tensors were computed by; none for tensors without a graph."""
    return behind([edge_of(tensor)[0] for tensor in tensors if tensor.requires_grad])


def behind(nodes: list[Any]) -> list[Any]:
    """These nodes and all that they depend on."""
    found = dict.fromkeys(nodes)
    open_ends = list(found)
    while open_ends:
        for node, _ in open_ends.pop().next_functions:
            if node is not None and node not in found:
                found[node] = None
                open_ends.append(node)
    return list(found)


def before(ends: Iterable[Edge], stops: Iterable[Edge]) -> tuple[list[Any], set[Edge]]:
    """The nodes up to ``stops``, without what is reachable only through these; and the stops reached."""
    stopped, reached = set(stops), set()
    found: dict[Any, None] = {}
    open_ends = list(ends)
    while open_ends:
        edge = open_ends.pop()
        node = edge[0]
        if edge in stopped:
            reached.add(edge)
        elif node is not None and node not in found:
            found[node] = None
            open_ends += node.next_functions
    return list(found), reached


def leaves_of(nodes: Iterable[Any]) -> list[Tensor]:
    """The leaf tensors among nodes, in the order of the nodes."""
    return [node.variable for node in nodes if hasattr(node, "variable")]


def inner(nodes: Iterable[Any]) -> set[Any]:
    """The nodes that are no leaves; leaves save nothing for a backward pass."""
    return {node for node in nodes if node.next_functions}
