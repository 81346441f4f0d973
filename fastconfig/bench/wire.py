"""Bytes on the wire of a step on several ranks: counted where torch.distributed sends, and by a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "allreduce_": "all-reduce",
    "_reduce_scatter_base_": "reduce-scatter",
    "_allgather_base_": "all-gather",
    "broadcast_": "broadcast",
    "alltoall_base_": "all-to-all",
}


def sent(kind: str, payload: float, ranks: int) -> float:
    """Bytes that a rank sends in a collective of ``payload`` bytes (the whole, of all ranks) by a ring."""
    share = (ranks - 1) / ranks
    return (2 * share if kind == "all-reduce" else share) * payload


class WireCount(TorchDispatchMode):
    """Counts the collectives within a ``with`` block.

    Attributes:
        calls: by kind.
        payload: bytes by kind: of the whole tensor that is summed, scattered or gathered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.payload: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and func._opname in KINDS:
            tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a])]
            self._count(KINDS[func._opname], max(_bytes(t) for t in tensors if isinstance(t, Tensor)))
        elif func.namespace == "_c10d_functional" and func._opname == "all_gather_into_tensor":
            self._count("all-gather", _bytes(args[0]) * args[1])  # as DTensors do it: a part, and of how many
        return func(*args, **(kwargs or {}))

    def _count(self, kind: str, size: int) -> None:
        self.calls[kind] += 1
        self.payload[kind] += size


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@dataclass(frozen=True)
class Problem:
    """A training step.

    Attributes:
        ranks: p.
        losses: m.
        elements: N parameters.
        parameters: tensors that they are in.
        itemsize: bytes of an element, b.
    """

    ranks: int
    losses: int
    elements: int
    parameters: int = 1
    itemsize: int = 4

    @property
    def padded(self) -> int:
        """Bytes of a gradient that the ranks share evenly."""
        return -(-self.elements // self.ranks) * self.ranks * self.itemsize

    @property
    def gram(self) -> int:
        """Bytes of the Gram matrix."""
        return 8 * self.losses**2


def merge(problem: Problem) -> Counter[str]:
    """Payload of the merge of parts alone."""
    return Counter({"all-reduce": problem.gram})


def replicas(problem: Problem, by_gloo: bool = False) -> Counter[str]:
    """Payload of ``fastconfig.distributed.backward``, by kind; Gloo has other kinds of the same bytes."""
    scatter, gather = ("all-to-all", "broadcast") if by_gloo else ("reduce-scatter", "all-gather")
    return Counter(
        {
            scatter: problem.losses * problem.padded,
            "all-reduce": problem.gram + problem.losses * problem.parameters,
            gather: problem.padded,
        }
    )


def replicas_of_peers(problem: Problem) -> Counter[str]:
    """Payload of one all-reduce for each loss, as in DistributedDataParallel's backward passes."""
    return Counter({"all-reduce": problem.losses * problem.elements * problem.itemsize})


def shards(problem: Problem) -> Counter[str]:
    """Payload of ``fastconfig.backward`` with FSDP2, of one forward pass that all losses share.

    The parameters are gathered for the forward pass and for every loss's backward pass; the gradients of
    every loss are scattered: all that is the engine's. Ours is the Gram matrix.
    """
    gathered, scattered = (1 + problem.losses) * problem.padded, problem.losses * problem.padded
    return merge(problem) + Counter({"all-gather": gathered, "reduce-scatter": scattered})


def shards_of_peers(problem: Problem) -> Counter[str]:
    """Payload with a merge that needs whole gradients: every rank gathers all of them."""
    payload = shards(problem)
    payload["all-gather"] += problem.losses * problem.padded
    del payload["all-reduce"]
    return payload


def bytes_sent(payload: Counter[str], ranks: int) -> float:
    """Bytes that a rank sends in all."""
    return sum(sent(kind, size, ranks) for kind, size in payload.items())
