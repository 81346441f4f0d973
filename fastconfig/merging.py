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
    grads: GradientsLike, rule: Rule, losses: Sequence[Any] | None, group: ProcessGroup | None
) -> Update | None:
    """The update in one compiled call, or None: then the way that checks and explains everything."""
    return short_update(grads, rule) if losses is None and group is None else None


def merge(grads: Gradients, rule: Rule, out: Update | None = None, losses: Tensor | None = None) -> Update:
    """The update of gradients that are checked already; in ``out``, if there is one that fits."""
    update = grads.new_update() if out is None else out
    choose(grads).update(grads, rule, update, losses)
    return grads.as_given(update)


def losses_of(rule: Rule, losses: Sequence[Any] | None, grads: Gradients) -> Tensor | None:
    """(m,) or (B, m) float64 beside the Gram matrix, for a rule that may use them; else None."""
    if losses is None or rule.native is not None:
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
    return torch.stack(values, -1)
