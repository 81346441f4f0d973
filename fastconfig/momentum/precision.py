"""Merge momenta with the rank cut-off of the gradients that they average, if their own dtype is finer."""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..grad_operator import ConFIGOperator
from ..methods import GradientOperator, Rule
from ..methods.operator import is_ours, refuse_operator
from ..methods.watched import Watched
from ..numbers import cutoff


def merged_by(
    operator: GradientOperator,
    rows: Tensor,
    given: torch.dtype,
    losses: list[Any] | None,
    monitor: Any = None,
) -> Tensor:
    """Merge by an operator that sees the rows: (N,) in their dtype; ``given`` is the gradients' dtype.

    Raises:
        ValueError: if it returns another shape.
        TypeError: with a monitor, if nobody knows its coefficients.
    """
    if monitor is not None:
        if not is_ours(operator):
            refuse_operator(operator, "with a monitor")
        if operator.monitor is not None:
            raise ValueError("monitor: got one of the operator and one of its gradient_operator, want one")
        operator = copy(operator)
        operator.monitor = monitor
    if is_ours(operator) and isinstance(operator, ConFIGOperator) and operator.rcond is None:
        operator = copy(operator)  # with a user's models, which do not say how exact the gradients were
        operator.rcond = max(cutoff(given), cutoff(rows.dtype))
    merged = operator.calculate_gradient(rows, losses)
    if not isinstance(merged, Tensor) or merged.shape != rows.shape[1:]:
        got = f"shape {tuple(merged.shape)}" if isinstance(merged, Tensor) else f"a {type(merged).__name__}"
        raise ValueError(
            f"gradient_operator: got {got} from {type(operator).__name__}.calculate_gradient, "
            f"want ({rows.shape[1]},)"
        )
    return merged.detach().to(rows.dtype)


def at_precision(rule: Rule, given: torch.dtype, held: torch.dtype) -> Rule:
    """The rule with the cut-off of the gradients' dtype, if that is coarser than the state's."""
    if isinstance(rule, Watched):
        return Watched(at_precision(rule.rule, given, held), rule.monitor, rule.losses)
    if given is held or rule.rcond is not None or cutoff(given) <= cutoff(held):
        return rule
    return _with_cutoff(rule, cutoff(given))


@lru_cache(maxsize=16)
def _with_cutoff(rule: Rule, rcond: float) -> Rule:
    return rule.at_cutoff(rcond)
