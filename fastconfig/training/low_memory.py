"""The merged gradient in a memory of some two vectors of all parameters instead of m + 1, for more time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..backends import choose
from ..gradients import Gradients
from ..gradients.pairs import real_numel
from ..merging import losses_of
from ..methods.base import coefficients_of
from ..methods.operator import GradientOperator, is_ours, refuse_groups, refuse_operator
from ..methods.watched import watched
from ..numbers import cutoff, float64_device
from .passes import Row, group_of, of_weighted_sum, passes


def check_low(operator: Any, parameters: list[Tensor], replicated: bool, spread: bool) -> None:
    """Whether the low memory's way gives what the usual one gives.

    Raises:
        TypeError, ValueError: naming what stands in the way.
    """
    if not (isinstance(operator, GradientOperator) and is_ours(operator)):
        refuse_operator(operator)
    refuse_groups(operator, "memory='low' has one weighted pass for all parameters")
    if replicated or spread or group_of(operator) is not None:
        what = "DistributedDataParallel" if replicated else "DTensors" if spread else "a process_group"
        raise ValueError(
            f"memory: got 'low' with {what}, want None: the ranks share the gradients' memory already"
        )
    for p, par in enumerate(parameters):
        if par._backward_hooks:
            raise ValueError(
                f"memory: got 'low' and a hook on parameter {p} of shape {tuple(par.shape)}, want None: it "
                "would see the weighted sum beside each loss's own gradient"
            )


def merged_low(values: list[Tensor], parameters: list[Tensor], operator: Any, retain_graph: bool) -> Row:
    """The merged gradient: coefficients from some of the parameters at a time, then one weighted pass.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    kept = [True] * len(values)
    c = coefficients_low(lambda some: passes(values, some, kept), values, parameters, operator)
    return of_weighted_sum(values, c, parameters, retain_graph, False)


def coefficients_low(
    rows_of: Callable[[list[Tensor]], Iterable[Row]],
    values: list[Tensor],
    parameters: list[Tensor],
    operator: Any,
) -> Tensor:
    """Coefficients, (m,) float64, from G summed over some of the parameters at a time.

    At any time m gradients of about N / m elements are there, or those of the one parameter that is larger.

    Args:
        rows_of: the m gradients of some parameters; the graph must stay.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    m = len(values)
    gram: Tensor | None = None
    losses: Tensor | None = None
    rule, dtype, connected = None, torch.float64, [False] * m
    for chunk in _chunks(parameters, sum(map(real_numel, parameters)) // m):
        rows = list(rows_of(chunk))
        present = [any(gradient is not None for gradient in row) for row in rows]
        connected = [a or b for a, b in zip(connected, present, strict=True)]
        if not any(present):
            continue
        grads = Gradients(rows)
        part = choose(grads).gram(grads)
        if gram is None:
            rule = operator.fixed_rule or operator.rule_at((m,), float64_device(grads.device))
            if rule is None:
                refuse_operator(operator)
            rule = watched(rule, operator.monitor, values)
            gram, losses = part, losses_of(rule, values, grads)
        else:
            gram = gram + part.to(gram.device)
        dtype = max(dtype, grads.dtype, key=cutoff)
        del rows, grads
    if gram is None or rule is None or not all(connected):
        raise ValueError(
            f"losses[{connected.index(False)}]: got a loss that depends on none of the parameters"
        )
    return coefficients_of(rule, gram, dtype, losses)


def _chunks(parameters: list[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Parameters that follow each other, up to so many elements, and one at least."""
    chunk: list[Tensor] = []
    size = 0
    for par in parameters:
        if chunk and size + real_numel(par) > most:
            yield chunk
            chunk, size = [], 0
        chunk.append(par)
        size += real_numel(par)
    yield chunk
