"""Several processes: an older name of ``backward``, and the error that a lost rank raises.

The Gram matrix is a sum over the parts of the gradients. One all-reduce of m x m numbers gives all ranks the
same coefficients, and each rank combines its own part:

    fastconfig.backward(losses, model)   # in fully_shard (FSDP2), tensor parallelism, DistributedDataParallel
    ConFIGOperator(process_group=group).calculate_gradient(...)   # parts that are plain tensors

docs/scaling.md counts the bytes.
"""

from __future__ import annotations

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from . import training
from .momentum_operator import CONFIG
from .ranks.collectives import CollectiveError
from .training.step import Operator

__all__ = ["CollectiveError", "backward"]


def backward(
    ddp_model: DistributedDataParallel, losses: Any, operator: Operator = CONFIG, **rest: Any
) -> None:
    """:func:`fastconfig.backward` with its first two arguments exchanged.

    Raises:
        TypeError, ValueError, CollectiveError: as there.
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        got = type(ddp_model).__name__
        raise TypeError(f"ddp_model: got a {got}, want a torch.nn.parallel.DistributedDataParallel")
    training.backward(losses, ddp_model, operator, **rest)
