"""A weighted sum with weights of one's own: linear scalarization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import as_tensor
from .base import Rule
from .operator import GramOperator

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
        weights: (m,) or (B, m) float64 where the Gram matrix is; None is ones.
    """

    native = "constant"

    def __init__(self, weights: Tensor | None) -> None:
        super().__init__()
        self.weights = None if weights is None else weights.contiguous()

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        return norms if self.weights is None else self.weights * norms


class ConstantOperator(GramOperator):
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
        self._by_device: dict[torch.device, Rule] = {}

    @property
    def fixed_rule(self) -> Rule | None:
        """None: the weights are for a number of gradients."""
        return None

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule with its weights on a device."""
        weights = self._rule.weights
        if weights is not None and len(weights) != norms[-1]:
            raise ValueError(f"weights: got {len(weights)} of them for {norms[-1]} gradients")
        if device not in self._by_device:
            kept = None if weights is None else weights.to(device, copy=True)  # compiled code has its address
            self._by_device[device] = Placed(kept)
        return self._by_device[device]
