"""Random weights in every call (arXiv:2111.10603): the baseline that a method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..numbers import sent
from .base import Rule
from .constant import Placed
from .stateful import DrawingOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Random(Rule):
    """sum_i w_i g_i with w = softmax of m normal numbers (Lin et al. 2022, section 3.1 and algorithm 2).

    Args:
        generator: source of the numbers, on the CPU; torch's own by default.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        return sent(drawn(norms.shape, self.generator), norms.device) * norms

    @staticmethod
    def oracle(rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The formula, in float64, with what ``generator`` gives next."""
        normal = torch.randn(len(rows), generator=generator, dtype=torch.float64, device="cpu")
        weights = normal.exp() / normal.exp().sum()
        return (weights[:, None].to(rows.device) * rows.double()).sum(0)


def drawn(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Weights of such a shape that add up to one, on the CPU."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").softmax(-1)


class RandomOperator(DrawingOperator):
    """The gradients with random weights that add up to one, others in every call.

    Args:
        generator: source of the numbers, on the CPU; by default torch's own, or for gradients spread over
            processes one that the operator starts from 0, because all ranks must draw alike.
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Examples:
        >>> operator = fastconfig.RandomOperator(generator=torch.Generator().manual_seed(0))
        >>> update = operator.calculate_gradient(torch.randn(3, 10))
    """

    def __init__(
        self, *, generator: torch.Generator | None = None, process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__(Random(), generator, process_group)

    @property
    def fixed_rule(self) -> Rule | None:
        """None: each call draws."""
        return None

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call."""
        return Placed(sent(drawn(norms, self.source(spread)), device))
