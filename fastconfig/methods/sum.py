"""The sum of the gradients: what ``sum(losses).backward()`` follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .constant import Constant
from .operator import GramOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Sum(Constant):
    """sum_i g_i."""

    native = "constant"  # without weights

    def __init__(self) -> None:
        super().__init__()


class SumOperator(GramOperator):
    """The sum of the gradients.

    Args:
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.SumOperator().calculate_gradient(grads)
        tensor([0.5000, 1.0000])
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        super().__init__(Sum(), process_group)
