"""A rule from a method's name and settings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .. import methods
from ..numbers import sent
from .base import LENGTHS, Rule

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
    **own: Any,
) -> Rule:
    """A rule by its name, checked, with tensors that are contiguous, on ``device``, in float64 and int64.

    A setting named here that a method's constructor does not take is left out; ``own`` are others, which it
    has to take.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    _want("method", method, (*methods.RULES,))
    _want("length", length, LENGTHS)
    check_reduction(reduction)
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
    rule = methods.RULES[method]
    taken = inspect.signature(rule).parameters
    for name in own:
        if name not in taken:
            raise TypeError(f"{name}: got it for {method!r}, which takes {', '.join(taken) or 'none'}")
    settings: dict[str, Any] = {
        "weights": weights,
        "length": length,
        "track_id": track_id % m,
        "order": order,
        "mean": reduction == "mean",
        "rcond": rcond,
    }
    return rule(**{name: value for name, value in settings.items() if name in taken}, **own)


def check_reduction(reduction: str) -> str:
    """One of REDUCTIONS.

    Raises:
        ValueError: for anything else.
    """
    _want("reduction", reduction, REDUCTIONS)
    return reduction


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
    return sent(value.detach().to(dtype), device).contiguous()
