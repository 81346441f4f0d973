"""The collectives that this package starts itself; errors say which one failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..gradients.memory_order import new_tensor

__all__ = ["CollectiveError"]

# torch 2.13 has new names for both
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class CollectiveError(RuntimeError):
    """A collective failed because a rank died, hangs, or sends something else; the message names it."""


@contextmanager
def named(what: str, group: ProcessGroup | None) -> Iterator[None]:
    """Add the collective's name to its errors.

    Raises:
        CollectiveError: for any RuntimeError, as torch.distributed raises.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CollectiveError):
            raise
        size = dist.get_world_size(group)
        raise CollectiveError(
            f"{what} over {size} ranks failed on rank {dist.get_rank(group)}: {error}"
        ) from error


def check_collective(what: str, error: RuntimeError) -> None:
    """Raise CollectiveError if an error of other code means that a collective failed."""
    if isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "NCCL" in str(error):
        raise CollectiveError(f"{what} failed: {error}") from error


def summed(total: Tensor, group: ProcessGroup, what: str) -> None:
    """Replace a tensor by its sum over the ranks; the same bits on all of them."""
    with named(f"all-reduce of {what} {tuple(total.shape)}", group):
        dist.all_reduce(total, group=group)


def mean_of(value: Tensor, group: ProcessGroup, what: str) -> Tensor:
    """The mean of a tensor over the ranks; the same bits on all of them."""
    mean = value / dist.get_world_size(group)
    summed(mean, group, what)
    return mean


def agreed(total: Tensor, group: ProcessGroup, what: str) -> None:
    """Replace a tensor by that of the group's first rank."""
    with named(f"broadcast of {what} {tuple(total.shape)}", group):
        dist.broadcast(total, dist.get_global_rank(group, 0), group=group)


class Pending:
    """A running collective; ``finish`` makes the result, and until then keeps its inputs alive."""

    def __init__(self, work: dist.Work, what: str, group: ProcessGroup, finish: Callable[[], object]) -> None:
        self._work, self._what, self._group, self._finish = work, what, group, finish

    def wait(self) -> None:
        with named(self._what, self._group):
            self._work.wait()
        self._finish()
        self._finish = lambda: None  # what it held may go


def scatter_sum(part: Tensor, whole: Tensor, group: ProcessGroup, what: str) -> Pending:
    """Start a reduce-scatter: this rank's part of the sum of ``whole``, which must not change meanwhile."""
    what = f"reduce-scatter of {what} ({whole.numel()} elements)"
    with named(what, group):
        if not _by_gloo(whole, group):
            work = _reduce_scatter(part, whole, group=group, async_op=True)
            return Pending(work, what, group, lambda: (part, whole))
        parts = new_tensor(whole.shape, whole.dtype, whole.device)
        work = dist.all_to_all_single(parts, whole, group=group, async_op=True)
    ranks = dist.get_world_size(group)
    return Pending(work, what, group, lambda: (torch.sum(parts.view(ranks, -1), 0, out=part), whole))


def begin_any(flags: Tensor, group: ProcessGroup, what: str) -> Pending:
    """Start an all-reduce of uint8 flags: one where any rank has one."""
    what = f"all-reduce of {what} {tuple(flags.shape)}"
    with named(what, group):
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=group, async_op=True)
    return Pending(work, what, group, lambda: flags)


def gather_parts(whole: Tensor, group: ProcessGroup, what: str) -> None:
    """All-gather: fill ``whole`` with every rank's part; parts have equal lengths."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    parts = whole.view(ranks, -1)
    with named(f"all-gather of {what} ({whole.numel()} elements)", group):
        if not _by_gloo(whole, group):
            _all_gather(whole, parts[rank], group=group)
            return
        sources = [dist.get_global_rank(group, r) for r in range(ranks)]
        works = [
            dist.broadcast(part, source, group=group, async_op=True)
            for part, source in zip(parts, sources, strict=True)
        ]
        for work in works:
            work.wait()


def _by_gloo(tensor: Tensor, group: ProcessGroup) -> bool:
    """Whether Gloo sends it.

    Gloo implements reduce-scatter as an all-reduce, and its all-gather copies. At N = 1e7 an all-to-all with
    a sum, and a broadcast of every part, are 2 to 3 times as fast (2 and 4 ranks, one machine).
    """
    return tensor.device.type == "cpu" and "gloo" in dist.get_backend(group)
