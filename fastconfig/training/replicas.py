"""Gradients of replicas, averaged over the ranks, and the update of the averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from ..gradients import Gradients, Update
from .passes import Row

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: gives the update of gradients; in the room that is made by a call, if it can
Merge: TypeAlias = "Callable[[Gradients, Callable[[], Update]], Update]"


def exchanged(
    rows: Iterable[Row],
    parameters: list[Tensor],
    group: ProcessGroup,
    merging: Merge,
    by_parameter: bool = False,
) -> tuple[list[Tensor | None], list[bool]]:
    """The update of gradients averaged over the ranks; a row is sent as soon as it is there.

    Args:
        by_parameter: as in :meth:`fastconfig.ranks.exchange.Exchange.merged`.

    Returns:
        A tensor a parameter, None where no rank has a gradient; and which parameters every loss reaches.
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
