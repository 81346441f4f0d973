"""A rule whose Gram matrix and coefficients go to a monitor, on every backend and in every loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import got
from .base import Rule, coefficients_of
from .within import group_name


class Watched(Rule):
    """Another rule, of which a monitor keeps what it takes and what it gives.

    Args:
        rule: gives the coefficients.
        monitor: a :class:`fastconfig.monitor.Monitor`, or what has its ``record``.
        losses: as the operator was given them; those that the rule takes itself count before them.
    """

    def __init__(self, rule: Rule, monitor: Any, losses: Any = None) -> None:
        super().__init__(rcond=rule.rcond)
        self.rule, self.monitor, self.losses = rule, monitor, losses

    @property
    def takes_losses(self) -> bool:
        return self.rule.takes_losses

    @property
    def unwatched(self) -> Rule:
        return self.rule.unwatched

    def cutoff(self, dtype: torch.dtype) -> float:
        return self.rule.cutoff(dtype)

    def at_cutoff(self, rcond: float) -> Rule:
        return Watched(self.rule.at_cutoff(rcond), self.monitor, self.losses)

    def served_by(self, backend: Any, gram: Tensor, grads: Any, losses: Tensor | None) -> Tensor:
        c: Tensor = backend.coefficients(gram, self.rule, grads, losses)
        return self._recorded(gram, c, losses)

    @torch.no_grad()
    def coefficients(self, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
        return self._recorded(gram, coefficients_of(self.rule, gram, dtype, losses), losses)

    def _recorded(self, gram: Tensor, c: Tensor, losses: Tensor | None) -> Tensor:
        self.monitor.record(gram, c, self.losses if losses is None else losses)
        return c


class Held:
    """A monitor that keeps one step until it is known how long the update is.

    Args:
        monitor: to which the step goes on.

    Raises:
        TypeError: for what is no monitor.
    """

    def __init__(self, monitor: Any) -> None:
        self.monitor = _of_group(monitor)
        self._step: Any = None

    def group(self, name: str) -> Held:
        """Itself: it has asked for the group's already."""
        return self

    def record(self, gram: Tensor, c: Tensor, losses: Any) -> None:
        self._step = gram, c, losses

    @torch.no_grad()
    def release(self, factor: Tensor | float) -> None:
        """The step, with coefficients times a number, or a tensor () of the gradients' device."""
        gram, c, losses = self._step
        self.monitor.record(gram, c * (factor.to(c) if isinstance(factor, Tensor) else factor), losses)


def check_monitor(monitor: Any) -> None:
    """Raise TypeError for what is no monitor."""
    if isinstance(monitor, type) or not callable(getattr(monitor, "record", None)):
        raise TypeError(f"operator.monitor: got {got(monitor)}, want a fastconfig.monitor.Monitor or None")


def watched(rule: Rule, monitor: Any, losses: Any = None) -> Rule:
    """The rule as it is without a monitor; else one that tells it.

    Raises:
        TypeError: for what is no monitor.
    """
    if monitor is None:
        return rule
    return Watched(rule, _of_group(monitor), losses)


def _of_group(monitor: Any) -> Any:
    """The monitor of the group of parameters that is merged, or of all parameters."""
    check_monitor(monitor)
    name = group_name()
    return monitor if name is None else monitor.group(name)
