"""The merge of any rule, below all methods: gradients -> Gram matrix -> coefficients -> update."""

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
    """The update in one compiled call, or None: then the way that checks and explains everything."""
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
    """The update of gradients that are checked already; in ``out``, if there is one that fits."""
    update = grads.new_update() if out is None else out
    choose(grads).update(grads, rule, update, losses)
    return grads.as_given(update)


def coefficients(grads: Gradients, rule: Rule, losses: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """(m,) or (B, m) float64: the coefficients alone, of gradients that are checked already.

    Args:
        grads: the gradients; nothing of their size is made.
        rule: gives them.
        losses: (m,) or (B, m) float64, for a rule that uses them.
        scale: a factor of the Gram matrix.
    """
    backend = choose(grads)
    gram = backend.gram(grads)
    return backend.coefficients(gram if scale == 1 else gram * scale, rule, grads, losses)


@torch.no_grad()
def combined(grads: Gradients, c: Tensor) -> Update:
    """sum_i c_i g_i with (m,) or (B, m) float64 coefficients that are there already."""
    update = grads.new_update()
    choose(grads).combine(grads, c.to(float64_device(grads.device)), update)
    return grads.as_given(update)


def losses_of(
    rule: Rule, losses: Sequence[Any] | None, grads: Gradients, group: ProcessGroup | None = None
) -> Tensor | None:
    """(m,) or (B, m) float64 beside the Gram matrix, for a rule that may use them; else None.

    Args:
        group: whose ranks each give their own losses, of which the mean counts; by default those that
            the gradients are spread over.
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
