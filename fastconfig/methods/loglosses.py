"""Any method on the gradients of log L_i: the update does not change when a loss is scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import Rule, as_rule, coefficients_of
from .operator import GramOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class LogLosses(Rule):
    """A rule on G -> D_L^-1 G D_L^-1, and c -> D_L^-1 c: the gradient of log L_i is g_i / L_i.

    This is the log form of MGDA, CAGrad, IMTL-G and others that papers compare with ("FAMO", Liu et al.
    2023, equation 3; Liu et al. 2021, section 3.2). It takes the losses: operators need them in every call.

    Args:
        rule: any rule, or a function G -> c.

    Raises:
        TypeError: for what is no rule.
        ValueError: in a call without losses, or on a CPU with one that is not positive; elsewhere the update
            is NaN then.
    """

    def __init__(self, rule: Any) -> None:
        self.rule = as_rule(rule)
        super().__init__(rcond=self.rule.rcond)

    def cutoff(self, dtype: torch.dtype) -> float:
        return self.rule.cutoff(dtype)

    def at_cutoff(self, rcond: float) -> Rule:
        return LogLosses(self.rule.at_cutoff(rcond))

    @torch.no_grad()
    def coefficients(self, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
        if losses is None:
            raise ValueError(f"losses: got None, want {gram.shape[-1]} of them: this rule divides by them")
        if losses.device.type == "cpu" and bool((losses <= 0).any()):
            raise ValueError(f"losses: got {losses.tolist()}, want positive ones, which have a logarithm")
        inverse = torch.where(losses > 0, 1 / losses, torch.nan)
        scaled = gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
        return coefficients_of(self.rule, scaled, dtype, losses) * inverse


class LogLossesOperator(GramOperator):
    """Any method on the gradients of log L_i; see :class:`LogLosses`.

    Args:
        rule: any rule, or a function G -> c.
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Raises:
        TypeError: for what is no rule.

    Examples:
        >>> from fastconfig.methods import IMTLG
        >>> operator = fastconfig.LogLossesOperator(IMTLG())
        >>> fastconfig.backward(losses, network, operator)
    """

    def __init__(self, rule: Any, process_group: ProcessGroup | None = None) -> None:
        super().__init__(LogLosses(rule), process_group)
