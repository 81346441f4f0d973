"""The methods, one a file: :data:`RULES` by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import got
from .base import LENGTHS, ByFunction, Rule, native_coefficients
from .config import ConFIG, tracked
from .imtlg import IMTLG
from .pcgrad import PCGrad
from .ppcgrad import PPCGrad
from .solvers import pinv_apply

__all__ = [
    "IMTLG",
    "LENGTHS",
    "REDUCTIONS",
    "RULES",
    "ByFunction",
    "ConFIG",
    "PCGrad",
    "PPCGrad",
    "Rule",
    "as_rule",
    "make_rule",
    "native_coefficients",
    "pinv_apply",
    "tracked",
]

RULES: dict[str, type[Rule]] = {"config": ConFIG, "pcgrad": PCGrad, "ppcgrad": PPCGrad, "imtlg": IMTLG}
REDUCTIONS = ("sum", "mean")


def make_rule(
    method: str,
    m: int,
    device: torch.device,
    *,
    batch: int | None = None,
    weights: Tensor | None = None,
    length: str = "projection",
    track_id: int = 0,
    order: Tensor | None = None,
    reduction: str = "sum",
    rcond: float | None = None,
) -> Rule:
    """A rule by its name, checked, with tensors that are contiguous, on ``device``, in float64 and int64.

    A setting that a method does not know is left out.

    Raises:
        ValueError: naming the argument, what came and what is wanted.
    """
    _want("method", method, (*RULES,))
    _want("length", length, LENGTHS)
    _want("reduction", reduction, REDUCTIONS)
    if length == "specific" and not -m <= track_id < m:
        raise ValueError(f"track_id: got {track_id}, want {-m}..{m - 1} for {m} gradients")
    if rcond is not None and not 0 <= rcond < 1:
        raise ValueError(f"rcond: got {rcond}, want None or a number from 0 to 1 (1 excluded)")
    if weights is not None:
        weights = _fit("weights", weights, (m,), batch, torch.float64, device)
    if order is not None:
        order = _fit("order", order, (m, m), batch, torch.int64, device)
        ascending = torch.arange(m, device=device).expand_as(order)
        if device.type == "cpu" and not torch.equal(order.sort(-1).values, ascending):
            raise ValueError(f"order: got {order.tolist()}, want permutations of 0..{m - 1} as rows")
    settings: dict[str, Any]
    match method:
        case "config":
            settings = {"weights": weights, "length": length, "track_id": track_id % m, "rcond": rcond}
        case "pcgrad":
            settings = {"order": order, "mean": reduction == "mean"}
        case "ppcgrad":
            settings = {"mean": reduction == "mean"}
        case _:
            settings = {"rcond": rcond}
    return RULES[method](**settings)


def as_rule(rule: Any) -> Rule:
    """A rule as it is, or one made of a function G -> c.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, type) or not callable(rule):
        raise TypeError(f"rule: got {got(rule)}, want a Rule, such as ConFIG(), or a function G -> c")
    return ByFunction(rule)


def _want(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{argument}: got {value!r}, want one of {names}")


def _fit(
    argument: str,
    value: Tensor,
    shape: tuple[int, ...],
    batch: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    shapes = [shape] if batch is None else [shape, (batch, *shape)]
    if tuple(value.shape) not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise ValueError(f"{argument}: got shape {tuple(value.shape)}, want {wanted}")
    return value.detach().to(device=device, dtype=dtype).contiguous()
