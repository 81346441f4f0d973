"""The mean of the gradients: the baseline of most papers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .base import Rule
from .operator import GramOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Mean(Rule):
    """(1/m) sum_i g_i; zero gradients count in m."""

    native = "mean"
    weighs = True

    def __init__(self) -> None:
        super().__init__()

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        return norms / norms.shape[-1]

    @staticmethod
    def oracle(rows: Tensor) -> Tensor:
        """The formula, in float64."""
        return rows.double().mean(0)


class MeanOperator(GramOperator):
    """The mean of the gradients.

    Args:
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.MeanOperator().calculate_gradient(grads)
        tensor([0.2500, 0.5000])
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        super().__init__(Mean(), process_group)
