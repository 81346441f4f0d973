"""ConFIG as a function.

A user's own model, written for conflictfree, is called with the (m, N) tensor that it expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import (
    check_flag,
    check_group,
    check_length_model,
    check_losses,
    check_rcond,
    check_weight_model,
    got,
)
from .gradients import Gradients, GradientsLike, Update
from .length_model import PROJECTION, LengthModel, length_rule
from .merging import merge, short_merge
from .methods import ConFIG, Rule, make_rule
from .methods.watched import Held, watched
from .network import joined
from .numbers import CPU, float64_device
from .weight_model import EQUAL, WeightModel, direction_weights, is_equal

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ConFIG_update", "ConFIG_update_double"]

PLAIN = ConFIG()  # of the default models, which have no state: known without looking at them


def ConFIG_update_double(
    grad_1: Tensor | Sequence[Tensor],
    grad_2: Tensor | None = None,
    weight_model: WeightModel = EQUAL,
    length_model: LengthModel = PROJECTION,
    losses: Sequence[Any] | None = None,
) -> Update:
    """ConFIG update of two gradients; the same answer as :func:`ConFIG_update`.

    Args:
        grad_1: (N,) the first gradient; or both, as a sequence of two or a tensor (2, N).
        grad_2: (N,) the second gradient; None if ``grad_1`` holds both.
        weight_model: direction weights.
        length_model: length of the update.
        losses: the two losses, for models that use them.

    Returns:
        (N,) update.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.

    Examples:
        >>> fastconfig.ConFIG_update_double(torch.tensor([1.1, 0.0]), torch.tensor([0.0, 2.3]))
        tensor([1.7000, 1.7000])
    """
    pair: Any = [grad_1, grad_2]
    grads = Gradients(grad_1, "grad_1") if grad_2 is None else Gradients(pair, ("grad_1", "grad_2"))
    if grads.m != 2:
        raise ValueError(f"grad_1: got {grads.m} gradients and no grad_2, want 2 in all")
    return config_update(grads, weight_model, length_model, losses)


def ConFIG_update(
    grads: GradientsLike,
    weight_model: WeightModel = EQUAL,
    length_model: LengthModel = PROJECTION,
    use_least_square: bool = True,
    losses: Sequence[Any] | None = None,
    *,
    rcond: float | None = None,
    process_group: ProcessGroup | None = None,
) -> Update:
    """The ConFIG update (Liu, Chu and Thuerey 2024, arXiv:2408.11104, equations 2 and 3).

    Its cosines with the gradients are in the ratio of the direction weights: with equal weights they are all
    equal, and positive if the gradients are independent.

    Args:
        grads: m gradients of N elements: a tensor (m, N) or (B, m, N), a sequence of m vectors (N,), or of
            m sequences of per-parameter tensors (None counts as zeros). float32, float64, bfloat16 or
            float16; any strides; never modified.
        weight_model: direction weights; equal by default.
        length_model: length of the update; the sum of projections by default.
        use_least_square: accepted for compatibility with conflictfree; it changes nothing.
        losses: the m losses, for models that use them.
        rcond: cut-off on the eigenvalues of the normalised Gram matrix relative to the largest; by default
            float64 1e-13, float32 1e-10, float16 1e-7, bfloat16 6e-6.
        process_group: for gradients in plain tensors that are spread over ranks: each rank passes its part
            and gets that part of the update. DTensors need none.

    Returns:
        The update in the form, dtype and device of the gradients: (N,), (B, N), or a list of tensors. All
        NaN if any gradient has NaN or Inf; zero if all are zero or the weights have no solution (opposed
        gradients). No graph is kept.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
        CollectiveError: if a rank died or hangs.

    Examples:
        >>> grads = []
        >>> for loss_fn in loss_fns:
        ...     network.zero_grad()
        ...     loss_fn(network, batch).backward()
        ...     grads.append(fastconfig.get_gradient_vector(network))
        >>> fastconfig.apply_gradient_vector(network, fastconfig.ConFIG_update(grads))
    """
    if torch.compiler.is_compiling():
        from .graph import can_compile, compiled_config, outside_the_graph

        if can_compile(grads, process_group, weight_model, length_model):
            return compiled_config(grads, length_model, rcond)
        rest: dict[str, Any] = {"losses": losses, "rcond": rcond, "process_group": process_group}
        return outside_the_graph(ConFIG_update, grads, weight_model, length_model, **rest)
    if use_least_square is not True:
        check_flag("use_least_square", use_least_square)  # not the losses, which come next
    if weight_model is EQUAL and length_model is PROJECTION and rcond is None:
        update = short_merge(grads, PLAIN, losses, process_group)
        if update is not None:
            return update
    if process_group is not None:
        check_group(process_group)
    rows = Gradients(grads, group=process_group)
    return config_update(rows, weight_model, length_model, losses, rcond)


def config_update(
    grads: Gradients,
    weight_model: WeightModel,
    length_model: LengthModel,
    losses: Sequence[Any] | None,
    rcond: float | None = None,
    monitor: Any = None,
) -> Update:
    """:func:`ConFIG_update` of gradients that are checked already; a monitor is told of the step."""
    if losses is not None:
        check_losses(losses, grads.m)
    if weight_model is EQUAL and length_model is PROJECTION and rcond is None:
        return merge(grads, watched(PLAIN, monitor, losses))
    if not isinstance(weight_model, WeightModel):
        check_weight_model(weight_model)
    if not isinstance(length_model, LengthModel):
        check_length_model(length_model)
    if rcond is not None:
        check_rcond(rcond)
    length = length_rule(length_model)
    if grads.batch is not None and (length is None or not is_equal(weight_model)):
        if monitor is not None:
            monitor.check(grads.m, grads.batch_shape)
        return _one_by_one(grads, weight_model, length_model, losses, rcond)
    weights = direction_weights(weight_model, grads, losses)
    rule = _config_rule(grads, weights, *(length or ("none", 0)), rcond)
    if length is not None:
        return merge(grads, watched(rule, monitor, losses))
    told = None if monitor is None else Held(monitor)
    update = merge(grads, watched(rule, told, losses))
    target = update if isinstance(update, Tensor) else joined([t for t in update if t is not None])
    with torch.no_grad():
        scaled = length_model.rescale_length(target_vector=target, gradients=grads.stacked(), losses=losses)
    if not isinstance(scaled, Tensor):
        name = type(length_model).__name__
        raise TypeError(f"length_model: got {got(scaled)} from {name}.rescale_length, want a tensor (N,)")
    if told is not None:
        told.release(_factor(scaled, target))
    return grads.restored(scaled.to(grads.dtype))


@torch.no_grad()
def _factor(scaled: Tensor, target: Tensor) -> Tensor:
    """(): how many times as long a vector became; float64."""
    along, own = (torch.linalg.vector_norm(vector, dtype=torch.float64) for vector in (scaled, target))
    sign = (scaled.to(target).double() @ target.double()).sign()
    return torch.where(own > 0, sign * along / own, 1)


def _config_rule(
    grads: Gradients, weights: Tensor | None, length: str, track_id: int, rcond: float | None
) -> Rule:
    if weights is None:
        return unweighted_rule(grads.m, length, track_id, rcond)
    device = float64_device(grads.device)
    return make_rule(
        "config", grads.m, device, weights=weights, length=length, track_id=track_id, rcond=rcond
    )


@lru_cache(maxsize=64)
def unweighted_rule(m: int, length: str, track_id: int, rcond: float | None) -> Rule:
    """The rule of ConFIG with equal weights."""
    return make_rule("config", m, CPU, length=length, track_id=track_id, rcond=rcond)


def _one_by_one(grads: Gradients, *rest: Any) -> Update:
    """Solve the problems of a batch one by one, because a user's own model takes (m, N) tensors."""
    grads.check_whole()
    assert isinstance(grads.rows, Tensor)
    updates = [config_update(Gradients(problem), *rest) for problem in grads.rows]
    return torch.stack(updates) if updates else grads.new_update()  # type: ignore[arg-type]
