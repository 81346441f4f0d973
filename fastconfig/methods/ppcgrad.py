"""PPCGrad: PCGrad with all projections taken against the original gradients, so without an order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import reference
from .base import Rule
from .making import check_reduction
from .operator import GramOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PPCGrad(Rule):
    """g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, added up over i.

    Args:
        mean: average the projected gradients instead of adding them up.
    """

    native = "ppcgrad"
    oracle = staticmethod(reference.ppcgrad)

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m = norms.shape[-1]
        conflicts = cosines.clamp(max=0)  # its diagonal is never negative
        x = norms - (norms.unsqueeze(-1) * conflicts).sum(-2)
        return x / m if self.mean else x


class PPCGradOperator(GramOperator):
    """PPCGrad: PCGrad with all projections taken against the original gradients, so without an order.

    g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, added up (or averaged) over i.

    Args:
        reduction: "sum" or "mean" over the projected gradients.
        process_group: as in :func:`ConFIG_update`.

    Raises:
        ValueError: for another reduction.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.PPCGradOperator().calculate_gradient(grads)
        tensor([0.8000, 1.4000])
    """

    def __init__(self, *, reduction: str = "sum", process_group: ProcessGroup | None = None) -> None:
        super().__init__(PPCGrad(check_reduction(reduction) == "mean"), process_group)
