"""ConFIG, PCGrad, PPCGrad and IMTL-G: the names of ``conflictfree.grad_operator``, and PPCGradOperator.

All are gradients -> Gram matrix -> coefficients -> update (see docs/design.md); config_update.py does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .checks import (
    abstract,
    as_order,
    check_flag,
    check_generator,
    check_group,
    check_length_model,
    check_losses,
    check_rcond,
    check_weight_model,
)
from .compiling import can_compile, compiled_update, outside_the_graph
from .config_update import (
    CPU,
    PLAIN,
    ConFIG_update,
    ConFIG_update_double,
    losses_of,
    merge,
    short_merge,
    unweighted_rule,
)
from .gradients import Gradients, GradientsLike, Update
from .gradients.shards import Grouped
from .length_model import *  # noqa: F403  # as conflictfree's module offers them
from .length_model import PROJECTION, LengthModel, length_rule
from .length_model import __all__ as _length_all
from .methods import IMTLG, PCGrad, Rule, as_rule, make_rule
from .numbers import float64_device
from .utils import write_gradient
from .weight_model import *  # noqa: F403
from .weight_model import EQUAL, WeightModel, is_equal
from .weight_model import __all__ as _weight_all

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "ConFIGOperator",
    "ConFIG_update",
    "ConFIG_update_double",
    "GradientOperator",
    "GramOperator",
    "IMTLGOperator",
    "PCGradOperator",
    "PPCGradOperator",
    *_length_all,
    *_weight_all,
]


class GradientOperator(Grouped):
    """Base class of operators, which merge m gradients into one.

    A subclass overrides :meth:`calculate_gradient`. An operator can be copied and pickled at any time; with a
    ``process_group`` only copied.

    Attributes:
        process_group: ranks of which each gives its part of every gradient; None where a process has them as
            a whole, and for DTensors, which say it themselves.
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
        raise abstract(self, "calculate_gradient")

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
        rcond, process_group: as in :func:`ConFIG_update`.

    Raises:
        TypeError, ValueError: for a class, a name or the other model in place of a model, and the like.
    """

    rcond: float | None = None  # also of conflictfree's objects, unpickled

    def __init__(
        self,
        weight_model: WeightModel = EQUAL,
        length_model: LengthModel = PROJECTION,
        allow_simplified_model: bool = True,
        use_least_square: bool = True,
        *,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_weight_model(weight_model)
        check_length_model(length_model)
        check_flag("allow_simplified_model", allow_simplified_model)
        check_flag("use_least_square", use_least_square)
        check_rcond(rcond)
        check_group(process_group)
        self.weight_model = weight_model
        self.length_model = length_model
        self.allow_simplified_model = allow_simplified_model
        self.use_least_square = use_least_square
        self.rcond = rcond
        self.process_group = process_group

    def calculate_gradient(self, grads: GradientsLike, losses: Sequence[Any] | None = None) -> Update:
        """The ConFIG update; arguments, result and errors as in :func:`ConFIG_update`."""
        models, group = (self.weight_model, self.length_model), self.process_group
        return ConFIG_update(grads, *models, losses=losses, rcond=self.rcond, process_group=group)

    @property
    def fixed_rule(self) -> Rule | None:
        """The rule with the default models; None with others."""
        plain = self.weight_model is EQUAL and self.length_model is PROJECTION and self.rcond is None
        return PLAIN if plain else None

    def rule_for(self, grads: Gradients) -> Rule | None:
        """How coefficients follow from the Gram matrix; None with a model that sees the gradients."""
        if (rule := self.fixed_rule) is not None:
            return rule
        length = length_rule(self.length_model)
        if length is None or not is_equal(self.weight_model):
            return None
        return unweighted_rule(grads.m, *length, self.rcond)


class GramOperator(GradientOperator):
    """An operator that is one rule on the Gram matrix: gradients -> G -> c -> sum_i c_i g_i.

    Args:
        rule: a :class:`fastconfig.Rule`; or any callable that takes the Gram matrix (m, m), float64 on the
            gradients' device, and returns m coefficients, such as a TorchJD ``Weighting``.
        process_group: as in :func:`ConFIG_update`.

    Raises:
        TypeError: for what is no rule.

    Examples:
        >>> operator = GramOperator(lambda gram: 1 / gram.diagonal().sqrt())  # the sum of unit gradients
        >>> fastconfig.backward(losses, network, operator)
    """

    _rule: Rule  # of the class for conflictfree's objects, unpickled

    def __init__(
        self, rule: Rule | Callable[[Tensor], Any], process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__()
        check_group(process_group)
        self._rule = as_rule(rule)
        self.process_group = process_group

    @property
    def fixed_rule(self) -> Rule | None:
        """The rule, if it is the same for all gradients."""
        return self._rule

    def rule_for(self, grads: Gradients) -> Rule:
        """How coefficients of these gradients follow from their Gram matrix."""
        return self._rule

    def calculate_gradient(self, grads: GradientsLike, losses: Sequence[Any] | None = None) -> Update:
        """Merge the gradients.

        Args:
            grads: m gradients, in any of the forms of :func:`ConFIG_update`.
            losses: the m losses, for a rule that uses them.

        Returns:
            The merged gradient in the form, dtype and device of the gradients; all NaN if any gradient has
            NaN or Inf.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        rule = self._rule
        if torch.compiler.is_compiling():
            if rule.native is None or not can_compile(grads, self.process_group):
                return outside_the_graph(self.calculate_gradient, grads, losses)
            return compiled_update(grads, rule.native, mean=rule.mean, rcond=rule.rcond)
        update = short_merge(grads, rule, losses, self.process_group)
        if update is not None:
            return update
        rows = Gradients(grads, group=self.process_group)
        if losses is not None:
            check_losses(losses, rows.m)
        rule = self.rule_for(rows)
        return merge(rows, rule, losses=losses_of(rule, losses, rows))


def is_ours(operator: GradientOperator) -> bool:
    """Whether it merges as defined here, gradients in any form; a user's own, or subclass, sees (m, N)."""
    return getattr(operator.calculate_gradient, "__func__", None) in _OURS


def fixed_rule_of(operator: Any) -> Rule | None:
    """The rule of an operator, if it is known before the gradients are; None also for what is no rule."""
    return operator.fixed_rule if is_ours(operator) else None


def rule_of(operator: GradientOperator, grads: Gradients) -> Rule | None:
    """How an operator's coefficients follow from the Gram matrix; None if it must see the gradients."""
    ours: Any = operator
    return ours.rule_for(grads) if is_ours(operator) else None


class PCGradOperator(GramOperator):
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Each gradient in turn loses its component along every original gradient that it (as projected so far)
    conflicts with; then all are added up.

    Args:
        reduction: "sum" (the paper's) or "mean" over the projected gradients.
        shuffle: visit the other gradients in random order, as the paper does; conflictfree's order 0..m-1
            by default.
        generator: source of the random order, on the CPU; by default torch's own, or for gradients spread
            over processes one that the operator starts from 0, because all ranks must draw alike.
        process_group: as in :func:`ConFIG_update`.

    Raises:
        TypeError, ValueError: for another reduction, and what is no flag or generator.
    """

    _rule, shuffle, generator = PCGrad(), False, None

    def __init__(
        self,
        *,
        reduction: str = "sum",
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(make_rule("pcgrad", 1, CPU, reduction=reduction), process_group)
        check_flag("shuffle", shuffle)
        check_generator(generator)
        self.shuffle = shuffle
        self.generator = generator

    def calculate_gradient(
        self,
        grads: GradientsLike,
        losses: Sequence[Any] | None = None,
        *,
        order: Any = None,
    ) -> Update:
        """Merge the gradients.

        Args:
            grads: m gradients, in any of the forms of :func:`ConFIG_update`.
            losses: not used.
            order: (m, m) or (B, m, m) integers, a tensor or nested lists: row i lists the gradients in the
                order in which gradient i is projected against them (i itself is skipped); overrides
                ``shuffle``.

        Returns:
            The merged gradient, in the form of the gradients.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        if order is None and not self.shuffle:
            return super().calculate_gradient(grads, losses)
        if order is not None:
            order = as_order(order)
        if torch.compiler.is_compiling():
            if order is None or not can_compile(grads, self.process_group):
                return outside_the_graph(self.calculate_gradient, grads, losses, order=order)
            return compiled_update(grads, "pcgrad", order=order, mean=self._rule.mean)
        rows = Gradients(grads, group=self.process_group)
        if losses is not None:
            check_losses(losses, rows.m)
        return merge(rows, self.rule_for(rows, order))

    @property
    def fixed_rule(self) -> Rule | None:
        """The rule, if it is the same for all gradients; None with ``shuffle``."""
        return None if self.shuffle else self._rule

    def rule_for(self, grads: Gradients, order: Tensor | None = None) -> Rule:
        """How coefficients of these gradients follow from G; in a new random order with ``shuffle``."""
        if order is None and not self.shuffle:
            return self._rule
        if order is not None:
            order = as_order(order)
        else:
            if self.generator is None and grads.shards is not None:
                self.generator = torch.Generator("cpu").manual_seed(0)
            shape = (*grads.batch_shape, grads.m, grads.m)
            drawn = torch.rand(shape, generator=self.generator, dtype=torch.float32, device=CPU)
            order = drawn.argsort(-1)
        reduction = "mean" if self._rule.mean else "sum"
        device = float64_device(grads.device)
        given: Any = {"batch": grads.batch, "order": order, "reduction": reduction}
        if order.device.type == "cpu" != device.type:
            make_rule("pcgrad", grads.m, CPU, **given)  # looks for permutations, which a device is not asked
        return make_rule("pcgrad", grads.m, device, **given)


class PPCGradOperator(GramOperator):
    """PPCGrad: PCGrad with all projections taken against the original gradients, so without an order.

    g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, added up (or averaged) over i.

    Args:
        reduction: "sum" or "mean" over the projected gradients.
        process_group: as in :func:`ConFIG_update`.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, *, reduction: str = "sum", process_group: ProcessGroup | None = None) -> None:
        super().__init__(make_rule("ppcgrad", 1, CPU, reduction=reduction), process_group)


class IMTLGOperator(GramOperator):
    """IMTL-G (Liu et al. 2021, "Towards Impartial Multi-task Learning", section 3.1).

    The combination whose coefficients sum to one and whose projections on all unit gradients are equal; the
    minimum-norm one if gradients depend on each other, zero if there is none (opposed gradients).

    Args:
        rcond, process_group: as in :func:`ConFIG_update`.
    """

    _rule = IMTLG()

    def __init__(self, *, rcond: float | None = None, process_group: ProcessGroup | None = None) -> None:
        super().__init__(IMTLG(rcond=check_rcond(rcond)), process_group)


_OURS: tuple[Any, ...] = tuple(
    kind.calculate_gradient for kind in (ConFIGOperator, GramOperator, PCGradOperator)
)
