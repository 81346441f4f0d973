"""FairGrad: the alpha-fair update, G c = c^(-1 / alpha) (arXiv:2402.15638)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..checks import check_rcond, not_negative
from .base import Rule
from .newton import fair_point, nash_point
from .operator import GramOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class FairGrad(Rule):
    """c > 0 with G c = c^(-1 / alpha), entry by entry.

    Ban and Ji 2024, "Fair Resource Allocation in Multi-Task Learning", equation 4: the update v is, up to its
    length, that of the greatest sum_i (g_i . v)^(1 - alpha) / (1 - alpha). alpha is their fairness: 1 is
    Nash-MTL without its ``max_norm``, 2 the least potential delay; the larger it is, the more the least
    g_i . v counts. alpha = 0 is, as in TorchJD, the mean of the gradients. The authors have no default;
    LibMTL's is 1.

    The equation is solved to rounding for alpha from 1/4 to 5 and norms over twelve decades; far beyond both,
    and for large alpha between nearly opposed gradients of very different norms, the 200 steps may not be
    enough, and c is what they have come to. Without compiled code, as on a GPU, 60 steps are taken without a
    look at the values: enough for alpha from 1/2 to 2. The authors and TorchJD take SciPy's least squares,
    whose answer depends on the overall scale. The update follows the gradients' scale to the power of
    (1 - alpha) / (1 + alpha).

    Where a combination of the gradients with coefficients that are not negative vanishes (opposed gradients)
    there is no such c; they are Pareto stationary, and the update is zero, as decided for Nash-MTL. Zero
    gradients drop out.

    Args:
        alpha: >= 0.
    """

    native = "fairgrad"
    rank_dtype = torch.float64

    def __init__(self, alpha: float = 1.0, *, rcond: float | None = None) -> None:
        super().__init__(rcond=rcond)
        self.alpha = not_negative("alpha", alpha)
        self.parameters = (self.alpha,)

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        if self.alpha == 0:
            return norms / norms.shape[-1]
        alive = norms > 0
        b, exists = nash_point(cosines, alive, rcond)
        if self.alpha == 1:
            return torch.where(exists, b, 0)
        power = 1 / self.alpha
        most = norms.amax(-1, keepdim=True)
        log_weights = torch.where(alive, (power - 1) * (norms / most).log(), 0)
        b = fair_point(cosines, torch.where(exists, b, 1), log_weights, power)
        return torch.where(exists, b * most.pow((power - 1) / (power + 1)), 0)

    @staticmethod
    def oracle(rows: Tensor, alpha: float = 1.0, *, rcond: float | None = None) -> Tensor:
        """v of the greatest sum_i (g_i . v)^(1 - alpha) / (1 - alpha) - |v|^2 / 2, on the rows.

        Args:
            rows: (m, N) gradients.
            alpha: >= 0.
            rcond: cut-off on the squared length of the shortest convex combination of the unit gradients.

        Returns:
            (N,) float64.
        """
        return reference.fair(rows, alpha, rcond=rcond)


class FairGradOperator(GramOperator):
    """FairGrad (Ban and Ji 2024, arXiv:2402.15638): the alpha-fair update.

    Opposed gradients give zero. What is exact and where the limits are:
    :class:`fastconfig.methods.FairGrad`.

    Args:
        alpha: >= 0; 1 is Nash-MTL, 2 the least potential delay; with more, the gradient that gains least
            counts more.
        rcond, process_group: as in :func:`ConFIG_update`; rcond is 1e-13 by default.

    Raises:
        TypeError, ValueError: for an ``alpha`` that is no number, or negative.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.FairGradOperator(alpha=1.0).calculate_gradient(grads)
        tensor([0.7435, 1.2030])
    """

    _rule = FairGrad()

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(FairGrad(alpha, rcond=check_rcond(rcond)), process_group)
