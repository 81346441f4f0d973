"""A weighted sum with weights of one's own: linear scalarization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import as_tensor
from .base import Rule
from .operator import WeighingOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Constant(Rule):
    """sum_i w_i g_i.

    Args:
        weights: (m,) numbers, a tensor or a list; None is ones.

    Raises:
        TypeError, ValueError: for what are none.
    """

    weighs = True

    def __init__(self, weights: Any = None) -> None:
        super().__init__()
        if weights is not None:
            weights = as_tensor("weights", weights, "(m,) numbers", torch.float64).detach()
            if weights.dim() != 1:
                raise ValueError(f"weights: got shape {tuple(weights.shape)}, want (m,) real numbers")
            weights = weights.double()
        self.weights = weights

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        if self.weights is None:
            return norms
        if len(self.weights) != norms.shape[-1]:
            raise ValueError(f"weights: got {len(self.weights)} of them for {norms.shape[-1]} gradients")
        return self.placed(self.weights, norms.device) * norms

    @staticmethod
    def oracle(rows: Tensor, weights: Any = None) -> Tensor:
        """The formula, in float64."""
        full = rows.double()
        if weights is None:
            return full.sum(0)
        return torch.as_tensor(weights, dtype=torch.float64, device=full.device) @ full


class Placed(Constant):
    """The same for compiled code, which asks nothing.

    Args:
        weights: (m,) or (B, m) float64 where the Gram matrix is.
    """

    native = "constant"

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights.contiguous()

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        assert self.weights is not None
        return self.weights * norms


class ConstantOperator(WeighingOperator):
    """A weighted sum of the gradients.

    Args:
        weights: (m,) numbers, a tensor or a list.
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Raises:
        TypeError, ValueError: for what are none; and where there is another number of gradients.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.ConstantOperator([0.25, 0.75]).calculate_gradient(grads)
        tensor([-0.1250,  0.7500])
    """

    def __init__(self, weights: Any, process_group: ProcessGroup | None = None) -> None:
        super().__init__(Constant(weights), process_group)

    @property
    def fixed_rule(self) -> Rule | None:
        """None: the weights are for a number of gradients."""
        return None

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule with its weights on a device."""
        weights = self._rule.weights
        if weights is not None and len(weights) != norms[-1]:
            raise ValueError(f"weights: got {len(weights)} of them for {norms[-1]} gradients")
        return self._rule if weights is None else self.weighing(weights, device, Placed)
