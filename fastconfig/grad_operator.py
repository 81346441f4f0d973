"""ConFIG, PCGrad, PPCGrad and IMTL-G: the names of ``conflictfree.grad_operator``, and PPCGradOperator.

All are gradients -> Gram matrix -> coefficients -> update (see docs/design.md); a model that a user wrote
for conflictfree, on the full vectors, is called with the (m, N) tensor that it expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from .backends import choose
from .compiling import can_compile, compiled_config, compiled_update, outside_the_graph
from .gradients import Gradients, GradientsLike, Update
from .length_model import *  # noqa: F403  # as conflictfree's module offers them
from .length_model import LengthModel, ProjectionLength, length_rule
from .length_model import __all__ as _length_all
from .methods import Rule, make_rule
from .networks import joined
from .numbers import float64_device
from .utils import write_gradient
from .weight_model import *  # noqa: F403
from .weight_model import EqualWeight, WeightModel, direction_weights, is_equal
from .weight_model import __all__ as _weight_all

__all__ = [
    "ConFIGOperator",
    "ConFIG_update",
    "ConFIG_update_double",
    "GradientOperator",
    "IMTLGOperator",
    "PCGradOperator",
    "PPCGradOperator",
    *_length_all,
    *_weight_all,
]

# The default models have no state, and their rule is known without looking at them.
_EQUAL, _PROJECTION, _PLAIN = EqualWeight(), ProjectionLength(), Rule()
_CPU = torch.device("cpu")


def ConFIG_update_double(
    grad_1: Tensor | Sequence[Tensor],
    grad_2: Tensor | None = None,
    weight_model: WeightModel = _EQUAL,
    length_model: LengthModel = _PROJECTION,
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
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    pair: Any = [grad_1, grad_2]
    grads = Gradients(grad_1, "grad_1") if grad_2 is None else Gradients(pair, ("grad_1", "grad_2"))
    if grads.m != 2:
        raise ValueError(f"grad_1: got {grads.m} gradients and no grad_2, want 2 in all")
    return _config_update(grads, weight_model, length_model, losses)


def ConFIG_update(
    grads: GradientsLike,
    weight_model: WeightModel = _EQUAL,
    length_model: LengthModel = _PROJECTION,
    use_least_square: bool = True,
    losses: Sequence[Any] | None = None,
    *,
    rcond: float | None = None,
) -> Update:
    """The ConFIG update (Liu, Chu and Thuerey 2024, arXiv:2408.11104, equations 2 and 3).

    Its projections on the unit gradients are in the ratio of the direction weights: with equal weights its
    cosines with all gradients are equal, and positive where the gradients are independent.

    Args:
        grads: m gradients of N elements: a tensor (m, N) or (B, m, N), a sequence of m vectors (N,), or of
            m sequences of per-parameter tensors (None counts as zeros). float32, float64, bfloat16 or
            float16; any strides; never modified.
        weight_model: direction weights; equal by default.
        length_model: length of the update; the sum of projections by default.
        use_least_square: accepted for conflictfree's sake; both of its ways have the same answer here.
        losses: the m losses, for models that use them.
        rcond: cut-off on the eigenvalues of the normalised Gram matrix relative to the largest; by default
            float64 1e-13, float32 1e-10, float16 1e-7, bfloat16 6e-6.

    Returns:
        The update in the form, dtype and device of the gradients: (N,), (B, N), or a list of tensors. All
        NaN if any gradient has NaN or Inf; zero if all are zero or the weights have no solution (opposed
        gradients). No graph is kept.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.

    Examples:
        >>> grads = [get_gradient_vector(network) for ...]  # after each loss's backward()
        >>> apply_gradient_vector(network, ConFIG_update(grads))
    """
    if torch.compiler.is_compiling():
        if can_compile(weight_model, length_model):
            return compiled_config(grads, length_model, rcond)
        return outside_the_graph(ConFIG_update, grads, weight_model, length_model, losses=losses, rcond=rcond)
    return _config_update(Gradients(grads), weight_model, length_model, losses, rcond)


def _config_update(
    grads: Gradients,
    weight_model: WeightModel,
    length_model: LengthModel,
    losses: Sequence[Any] | None,
    rcond: float | None = None,
) -> Update:
    if losses is not None:
        _check_losses(losses, grads.m)
    if weight_model is _EQUAL and length_model is _PROJECTION and rcond is None:
        return merge(grads, _PLAIN)
    length = length_rule(length_model)
    if grads.batch is not None and (length is None or not is_equal(weight_model)):
        return _one_by_one(grads, weight_model, length_model, losses, rcond)
    weights = direction_weights(weight_model, grads, losses)
    update = merge(grads, _config_rule(grads, weights, *(length or ("none", 0)), rcond))
    if length is not None:
        return update
    target = update if isinstance(update, Tensor) else joined([t for t in update if t is not None])
    with torch.no_grad():
        scaled = length_model.rescale_length(target_vector=target, gradients=grads.stacked(), losses=losses)
    return grads.restored(scaled.to(grads.dtype))


def _config_rule(
    grads: Gradients, weights: Tensor | None, length: str, track_id: int, rcond: float | None
) -> Rule:
    if weights is None:
        return _unweighted_rule(grads.m, length, track_id, rcond)
    device = float64_device(grads.device)
    return make_rule(
        "config", grads.m, device, weights=weights, length=length, track_id=track_id, rcond=rcond
    )


@lru_cache(maxsize=64)
def _unweighted_rule(m: int, length: str, track_id: int, rcond: float | None) -> Rule:
    return make_rule("config", m, _CPU, length=length, track_id=track_id, rcond=rcond)


def merge(grads: Gradients, rule: Rule, out: Update | None = None) -> Update:
    """The update of gradients that are checked already; in ``out``, if there is one that fits."""
    update = grads.new_update() if out is None else out
    choose(grads).update(grads, rule, update)
    return update


def _one_by_one(grads: Gradients, *rest: Any) -> Update:
    """Problems of a batch in turn: a user's own model knows (m, N) tensors only."""
    assert isinstance(grads.rows, Tensor)
    updates = [_config_update(Gradients(problem), *rest) for problem in grads.rows]
    return torch.stack(updates) if updates else grads.new_update()  # type: ignore[arg-type]


def _check_losses(losses: Sequence[Any], m: int) -> None:
    try:
        count = len(losses)
    except TypeError:
        raise TypeError(
            f"losses: got a {type(losses).__name__} without length, want a sequence of {m} losses"
        ) from None
    if count != m:
        raise ValueError(f"losses: got {count}, want {m}: one a gradient")


class GradientOperator:
    """Base class of operators, which merge m gradients into one.

    A subclass overrides :meth:`calculate_gradient`.
    """

    def __init__(self) -> None:
        pass

    def calculate_gradient(self, grads: GradientsLike, losses: Sequence[Any] | None = None) -> Update:
        """Merge the gradients.

        Args:
            grads: m gradients, in any of the forms of :func:`ConFIG_update`.
            losses: the m losses, for models that use them.

        Returns:
            The merged gradient, in the form of the gradients.

        Raises:
            NotImplementedError: always; a subclass overrides it.
        """
        raise NotImplementedError("calculate_gradient method must be implemented")

    def update_gradient(
        self,
        network: torch.nn.Module,
        grads: GradientsLike,
        losses: Sequence[Any] | None = None,
        *,
        none_grad_mode: Literal["zero", "skip"] = "skip",
        zero_grad_mode: Literal["skip", "pad_zero", "pad_value"] = "pad_value",
    ) -> None:
        """Merge the gradients and write the result to the network's ``.grad``.

        Args:
            network: the network.
            grads: as in :meth:`calculate_gradient`; per-parameter sequences follow
                ``network.parameters()``, and a parameter that no loss has a gradient for is left alone.
            losses: the m losses, for models that use them.
            none_grad_mode, zero_grad_mode: as in :func:`fastconfig.utils.apply_gradient_vector`; use
                "zero" where the vectors were taken with "zero".

        Raises:
            ValueError: if the result does not fit the network; nothing is written then.
        """
        write_gradient(network, self.calculate_gradient(grads, losses), none_grad_mode, zero_grad_mode)


class ConFIGOperator(GradientOperator):
    """ConFIG as an operator; see :func:`ConFIG_update`.

    Args:
        weight_model: direction weights; equal by default.
        length_model: length of the update; the sum of projections by default.
        allow_simplified_model: accepted for conflictfree's sake; two gradients have the same answer
            either way here.
        use_least_square: likewise.
        rcond: as in :func:`ConFIG_update`.
    """

    def __init__(
        self,
        weight_model: WeightModel = _EQUAL,
        length_model: LengthModel = _PROJECTION,
        allow_simplified_model: bool = True,
        use_least_square: bool = True,
        *,
        rcond: float | None = None,
    ) -> None:
        super().__init__()
        self.weight_model = weight_model
        self.length_model = length_model
        self.allow_simplified_model = allow_simplified_model
        self.use_least_square = use_least_square
        self.rcond = rcond

    def calculate_gradient(self, grads: GradientsLike, losses: Sequence[Any] | None = None) -> Update:
        """The ConFIG update; arguments, result and errors as in :func:`ConFIG_update`."""
        if torch.compiler.is_compiling():
            if can_compile(self.weight_model, self.length_model):
                return compiled_config(grads, self.length_model, self.rcond)
            return outside_the_graph(self.calculate_gradient, grads, losses)
        return _config_update(Gradients(grads), self.weight_model, self.length_model, losses, self.rcond)

    def rule_for(self, grads: Gradients) -> Rule | None:
        """How coefficients follow from the Gram matrix; None with a model that sees the gradients."""
        if self.weight_model is _EQUAL and self.length_model is _PROJECTION and self.rcond is None:
            return _PLAIN
        length = length_rule(self.length_model)
        if length is None or not is_equal(self.weight_model):
            return None
        return _unweighted_rule(grads.m, *length, self.rcond)


class _GramOperator(GradientOperator):
    """An operator that is one rule on the Gram matrix."""

    _rule: Rule

    def rule_for(self, grads: Gradients) -> Rule:
        """How coefficients of these gradients follow from their Gram matrix."""
        return self._rule

    def calculate_gradient(self, grads: GradientsLike, losses: Sequence[Any] | None = None) -> Update:
        """Merge the gradients.

        Args:
            grads: m gradients, in any of the forms of :func:`ConFIG_update`.
            losses: not used.

        Returns:
            The merged gradient in the form, dtype and device of the gradients; all NaN if any gradient has
            NaN or Inf.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        if torch.compiler.is_compiling():
            rule = self._rule
            return compiled_update(grads, rule.method, mean=rule.mean, rcond=rule.rcond)
        rows = Gradients(grads)
        if losses is not None:
            _check_losses(losses, rows.m)
        return merge(rows, self.rule_for(rows))


def is_ours(operator: GradientOperator) -> bool:
    """Whether it merges as defined here, gradients in any form; a user's own, or subclass, sees (m, N)."""
    return getattr(operator.calculate_gradient, "__func__", None) in _OURS


def rule_of(operator: GradientOperator, grads: Gradients) -> Rule | None:
    """How an operator's coefficients follow from the Gram matrix; None if it must see the gradients."""
    ours: Any = operator
    return ours.rule_for(grads) if is_ours(operator) else None


class PCGradOperator(_GramOperator):
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Each gradient in turn loses its component along every original gradient that it (as projected so far)
    conflicts with; then all are added up.

    Args:
        reduction: "sum" (the paper's) or "mean" over the projected gradients.
        shuffle: visit the other gradients in random order, as the paper does; conflictfree's order 0..m-1
            by default.
        generator: source of the random order, on the CPU; torch's default one by default.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(
        self,
        *,
        reduction: str = "sum",
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._rule = make_rule("pcgrad", 1, _CPU, reduction=reduction)
        self.shuffle = shuffle
        self.generator = generator

    def calculate_gradient(
        self,
        grads: GradientsLike,
        losses: Sequence[Any] | None = None,
        *,
        order: Tensor | None = None,
    ) -> Update:
        """Merge the gradients.

        Args:
            grads: m gradients, in any of the forms of :func:`ConFIG_update`.
            losses: not used.
            order: (m, m) or (B, m, m): row i lists the gradients in the order in which gradient i is
                projected against them (i itself is skipped); overrides ``shuffle``.

        Returns:
            The merged gradient, in the form of the gradients.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        if torch.compiler.is_compiling():
            if self.shuffle and order is None:
                return outside_the_graph(self.calculate_gradient, grads, losses)
            return compiled_update(grads, "pcgrad", order=order, mean=self._rule.mean)
        rows = Gradients(grads)
        if losses is not None:
            _check_losses(losses, rows.m)
        return merge(rows, self.rule_for(rows, order))

    def rule_for(self, grads: Gradients, order: Tensor | None = None) -> Rule:
        """How coefficients of these gradients follow from G; in a new random order with ``shuffle``."""
        if order is None and not self.shuffle:
            return self._rule
        if order is None:
            order = torch.rand(*grads.batch_shape, grads.m, grads.m, generator=self.generator).argsort(-1)
        reduction = "mean" if self._rule.mean else "sum"
        device = float64_device(grads.device)
        return make_rule("pcgrad", grads.m, device, batch=grads.batch, order=order, reduction=reduction)


class PPCGradOperator(_GramOperator):
    """PPCGrad: PCGrad with all projections taken against the original gradients, so without an order.

    g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, added up (or averaged) over i.

    Args:
        reduction: "sum" or "mean" over the projected gradients.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, *, reduction: str = "sum") -> None:
        super().__init__()
        self._rule = make_rule("ppcgrad", 1, _CPU, reduction=reduction)


class IMTLGOperator(_GramOperator):
    """IMTL-G (Liu et al. 2021, "Towards Impartial Multi-task Learning", section 3.1).

    The combination whose coefficients sum to one and whose projections on all unit gradients are equal; the
    minimum-norm one if gradients depend on each other, zero if there is none (opposed gradients).

    Args:
        rcond: as in :func:`ConFIG_update`.
    """

    def __init__(self, *, rcond: float | None = None) -> None:
        super().__init__()
        self._rule = make_rule("imtlg", 1, _CPU, rcond=rcond)


_OURS: tuple[Any, ...] = tuple(
    kind.calculate_gradient for kind in (ConFIGOperator, _GramOperator, PCGradOperator)
)
