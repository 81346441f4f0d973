"""Operators with a preference vector: how much each gradient counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..checks import as_tensor, check_rcond
from .base import Rule
from .operator import WeighingOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PreferringRule(Rule):
    """Base of rules in which each gradient counts by its norm and its preference.

    Args:
        weights: (m,) or (B, m) float64, not negative: the preference vector; None is 1/m each.
    """

    def __init__(self, weights: Tensor | None = None, *, rcond: float | None = None) -> None:
        super().__init__(rcond=rcond)
        self.weights = weights

    def shares(self, norms: Tensor) -> Tensor:
        """(..., m): what each unit gradient counts."""
        return norms / norms.shape[-1] if self.weights is None else norms * self.weights


def preferences(weights: Tensor | None, rows: Tensor) -> Tensor:
    """(m,) float64: the preferences of so many rows."""
    m = len(rows)
    return rows.new_full((m,), 1 / m, dtype=torch.float64) if weights is None else weights.double()


class PreferenceOperator(WeighingOperator):
    """Base of operators of a rule that takes ``weights``, with which it weighs the gradients.

    Args:
        pref_vector: (m,) finite numbers, not negative, a tensor or a list; 1/m each by default.
        rcond, process_group: as in :func:`ConFIG_update`.
        own: further settings of the rule.

    Raises:
        TypeError, ValueError: for another ``pref_vector`` or ``rcond``; where gradients come, for another
            number of gradients.
    """

    _kind: ClassVar[type[Rule]]
    pref_vector: Tensor | None = None

    def __init__(
        self,
        pref_vector: Any = None,
        *,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
        **own: Any,
    ) -> None:
        super().__init__(self._kind(rcond=check_rcond(rcond), **own), process_group)
        self._own = own
        self.pref_vector = None if pref_vector is None else as_preferences(pref_vector)

    @property
    def fixed_rule(self) -> Rule | None:
        """The rule, if it is the same for all gradients; None with preferences, for a number of gradients."""
        return self._rule if self.pref_vector is None else None

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule with the preferences, of so many gradients."""
        if self.pref_vector is None:
            return self._rule
        if len(self.pref_vector) != norms[-1]:
            raise ValueError(
                f"pref_vector: got {len(self.pref_vector)} numbers, want {norms[-1]}, one a gradient"
            )
        taken: Any = self._kind
        more = {"rcond": self._rule.rcond, **self._own}
        return self.weighing(self.pref_vector, device, lambda weights: taken(weights=weights, **more))


def as_preferences(pref_vector: Any) -> Tensor:
    """(m,) float64 on the CPU, a copy.

    Raises:
        TypeError, ValueError: for anything but finite numbers that are not negative.
    """
    wanted = "(m,) finite numbers, none negative"
    given = as_tensor("pref_vector", pref_vector, wanted, torch.float64)
    if given.dim() != 1:
        raise ValueError(f"pref_vector: got shape {tuple(given.shape)}, {given.dtype}, want {wanted}")
    copied = given.detach().to("cpu", torch.float64, copy=True)
    if not bool((copied.isfinite() & (copied >= 0)).all()):
        raise ValueError(f"pref_vector: got {copied.tolist()}, want {wanted}")
    return copied
