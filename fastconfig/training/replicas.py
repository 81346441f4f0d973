"""Gradients of replicas, averaged over the ranks, and the update of the averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from ..gradients import Gradients, Update
from .passes import Row

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: merges gradients, into the tensors that a call makes if it can
Merge: TypeAlias = "Callable[[Gradients, Callable[[], Update]], Update]"


def exchanged(
    rows: Iterable[Row],
    parameters: list[Tensor],
    group: ProcessGroup,
    merging: Merge,
    by_parameter: bool = False,
) -> tuple[list[Tensor | None], list[bool]]:
    """Average gradients over the ranks and merge them; a row is sent as soon as it is computed.

    Args:
        by_parameter: as in :meth:`fastconfig.ranks.exchange.Exchange.merged`.

    Returns:
        One tensor for each parameter, None where no rank has a gradient; and which parameters every loss
        reaches.
    """
    from ..ranks.exchange import Exchange  # loads torch's DTensors

    exchange = Exchange(parameters, group)
    for i, row in enumerate(rows):
        exchange.send(row, f"losses[{i}]")
    found = exchange.merged(lambda grads, out: merging(grads, lambda: out), by_parameter)
    return found, exchange.everywhere


def averaged(row: Row, parameters: list[Tensor], group: ProcessGroup, name: str) -> Sequence[Tensor | None]:
    """A gradient averaged over the ranks."""
    from ..ranks.exchange import Exchange

    return Exchange(parameters, group).averaged(row, name) if parameters else row
