"""The merge by any rule: gradients -> Gram matrix -> coefficients -> update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backends import choose, short_update
from .checks import as_tensor
from .gradients import Gradients, GradientsLike, Update
from .numbers import float64_device

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .methods import Rule


def short_merge(
    grads: GradientsLike,
    rule: Rule,
    losses: Sequence[Any] | None,
    group: ProcessGroup | None,
    monitor: Any = None,
) -> Update | None:
    """Merge in one compiled call; None if not applicable."""
    if losses is not None or group is not None:
        return None
    if monitor is None:
        return short_update(grads, rule)
    ring = ring_of(monitor)
    return short_update(grads, rule, ring) if ring else None


def ring_of(monitor: Any) -> int:
    """Where compiled code finds the ring of a monitor; 0 as long as steps come to its ``record`` alone."""
    return getattr(monitor, "address", 0)


def merge(grads: Gradients, rule: Rule, out: Update | None = None, losses: Tensor | None = None) -> Update:
    """Merge checked gradients, into ``out`` if it is given and fits."""
    update = grads.new_update() if out is None else out
    choose(grads).update(grads, rule, update, losses)
    return grads.as_given(update)


def coefficients(grads: Gradients, rule: Rule, losses: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """The coefficients alone, (m,) or (B, m) float64, of checked gradients.

    Args:
        grads: the gradients; nothing of their size is allocated.
        rule: computes them.
        losses: (m,) or (B, m) float64, for a rule that uses them.
        scale: a factor of the Gram matrix.
    """
    backend = choose(grads)
    gram = backend.gram(grads)
    return backend.coefficients(gram if scale == 1 else gram * scale, rule, grads, losses)


@torch.no_grad()
def combined(grads: Gradients, c: Tensor) -> Update:
    """sum_i c_i g_i with given coefficients, (m,) or (B, m) float64."""
    update = grads.new_update()
    choose(grads).combine(grads, c.to(float64_device(grads.device)), update)
    return grads.as_given(update)


def losses_of(
    rule: Rule, losses: Sequence[Any] | None, grads: Gradients, group: ProcessGroup | None = None
) -> Tensor | None:
    """The losses as float64, (m,) or (B, m), on the Gram matrix's device; None if the rule uses none.

    Args:
        group: ranks over which the losses are averaged; by default those that the gradients are spread over.
    """
    if losses is None or not rule.takes_losses:
        return None
    device, shape = float64_device(grads.device), grads.batch_shape
    values = []
    for i, loss in enumerate(losses):
        value = as_tensor(f"losses[{i}]", loss, "a number", torch.float64).detach()
        if value.numel() != 1 and value.shape != shape:
            wanted = "one number" + (f" or {shape}" if shape else "")
            raise ValueError(f"losses[{i}]: got shape {tuple(value.shape)}, want {wanted}")
        values.append(
            value.to(device, torch.float64).reshape(shape if value.shape == shape else ()).expand(shape)
        )
    stacked = torch.stack(values, -1)
    groups = [group] if group is not None else [] if grads.shards is None else grads.shards.all_groups()
    if groups:
        from .ranks.collectives import mean_of  # not in every build of torch

        for each in groups:
            stacked = mean_of(stacked, each, "the losses")
    return stacked
