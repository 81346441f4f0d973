"""Any method whose coefficients are found anew in every k-th call only, and kept in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import number, whole
from .base import Rule, as_rule, coefficients_of
from .stateful import StatefulOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CPU = torch.device("cpu")


class Every(Rule):
    """The coefficients of a rule, kept for some calls (``update_weights_every`` of Nash-MTL's code).

    Gradients with NaN or Inf give NaN, and nothing is kept of them.

    Args:
        rule: any rule, or a function G -> c.
        calls: after so many calls they are found anew.
        max_norm: the greatest length of the update, cut in every call; None or 0 leaves it.
        kept: (..., m) float64, which calls change in place.
        count: (1,) float64 on the CPU, the number of calls so far, which each changes in place.
    """

    def __init__(self, rule: Any, calls: int, max_norm: float | None, kept: Tensor, count: Tensor) -> None:
        self.rule = as_rule(rule)
        super().__init__(rcond=self.rule.rcond)
        self.calls, self.max_norm, self.kept, self.count = calls, max_norm, kept, count

    def cutoff(self, dtype: torch.dtype) -> float:
        return self.rule.cutoff(dtype)

    def at_cutoff(self, rcond: float) -> Rule:
        return Every(self.rule.at_cutoff(rcond), self.calls, self.max_norm, self.kept, self.count)

    @torch.no_grad()
    def coefficients(self, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
        finite = gram.diagonal(dim1=-2, dim2=-1).isfinite().all(-1, keepdim=True)
        if int(self.count) % self.calls == 0:
            found = coefficients_of(self.rule, gram, dtype, losses)
            first = not self.count  # then there is nothing else to keep
            self.kept.copy_(found if first else torch.where(finite, found, self.kept))
        self.count += 1
        c = torch.where(finite, self.kept, torch.nan)
        if not self.max_norm:
            return c
        size = gram.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).sqrt()  # squares of 1e200 overflow
        scaled = torch.where(size > 0, gram / size.unsqueeze(-1).square(), 0)
        squared = (c * (scaled @ c.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True).clamp(min=0)
        length = squared.sqrt() * size
        return torch.where(length > self.max_norm, c * (self.max_norm / length), c)


class EveryOperator(StatefulOperator):
    """Any method with coefficients that are found anew in every k-th call only; see :class:`Every`.

    Args:
        rule: any rule, or a function G -> c.
        calls: after so many calls they are found anew, at least 1.
        max_norm: the greatest length of the update, cut in every call; None or 0 leaves it.
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.

    Examples:
        >>> operator = EveryOperator(UPGrad(), 10)
    """

    def __init__(
        self,
        rule: Any,
        calls: int,
        *,
        max_norm: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(as_rule(rule), process_group)
        if whole("calls", calls) < 1:
            raise ValueError(f"calls: got {calls}, want at least 1")
        if max_norm is not None and not number("max_norm", max_norm) >= 0:
            raise ValueError(f"max_norm: got {max_norm}, want None or at least 0")
        self.calls, self.max_norm = int(calls), max_norm

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call, which counts it."""
        if "kept" in self._state and self._state["kept"].shape != norms:
            self.reset()
        kept = self._kept("kept", norms, device)
        return Every(self._rule, self.calls, self.max_norm, kept, self._kept("count", (1,), CPU))
