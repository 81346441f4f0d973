"""The names of ``conflictfree.grad_operator``, and PPCGradOperator: ConFIG's here, others in methods/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .checks import check_flag, check_group, check_length_model, check_rcond, check_weight_model
from .config_update import PLAIN, ConFIG_update, ConFIG_update_double, config_update, unweighted_rule
from .gradients import Gradients, GradientsLike, Update
from .length_model import *  # noqa: F403  # as conflictfree's module offers them
from .length_model import PROJECTION, LengthModel, length_rule
from .length_model import __all__ as _length_all
from .merging import short_merge
from .methods import GradientOperator, GramOperator, IMTLGOperator, PCGradOperator, PPCGradOperator, Rule
from .methods.groups import by_groups
from .methods.operator import by_rule
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


class ConFIGOperator(GradientOperator):
    """ConFIG as an operator; see :func:`ConFIG_update`.

    Args:
        weight_model: direction weights; equal by default.
        length_model: length of the update; the sum of projections by default.
        allow_simplified_model, use_least_square: accepted for compatibility with conflictfree; they change
            nothing.
        rcond, process_group: as in :func:`ConFIG_update`.

    Raises:
        TypeError, ValueError: for a wrong argument, such as a class in place of a model.

    Examples:
        >>> operator = fastconfig.ConFIGOperator(length_model=fastconfig.TrackMinimum())
        >>> operator.calculate_gradient(torch.tensor([[1.1, 0.0], [0.0, 2.3]]))
        tensor([1.1000, 1.1000])
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

    @by_rule
    def calculate_gradient(self, grads: GradientsLike, losses: Sequence[Any] | None = None) -> Update:
        """The ConFIG update; arguments, result and errors as in :func:`ConFIG_update`."""
        if self._groups is not None:
            return by_groups(self, grads, losses)
        weight_model, length_model, group = self.weight_model, self.length_model, self.process_group
        if self.monitor is not None:
            return self._watched(grads, losses)
        return ConFIG_update(
            grads, weight_model, length_model, True, losses, rcond=self.rcond, process_group=group
        )

    def _watched(self, grads: GradientsLike, losses: Sequence[Any] | None) -> Update:
        """The same, of which the monitor is told."""
        if torch.compiler.is_compiling():
            from .graph import outside_the_graph

            return outside_the_graph(self.calculate_gradient, grads, losses)
        group, monitor = self.process_group, self.monitor
        if (rule := self.fixed_rule) is not None:
            update = short_merge(grads, rule, losses, group, monitor)
            if update is not None:
                return update
        rows = Gradients(grads, group=group)
        return config_update(rows, self.weight_model, self.length_model, losses, self.rcond, monitor)

    @property
    def fixed_rule(self) -> Rule | None:
        """The rule with the default models; None with others."""
        plain = self.weight_model is EQUAL and self.length_model is PROJECTION and self.rcond is None
        return PLAIN if plain else None

    def rule_for(self, grads: Gradients) -> Rule | None:
        """The rule for these gradients; None with a model that must see them."""
        return self.rule_at((grads.m,), grads.device)

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule | None:
        """The rule for gradients whose norms have this shape, (m,) or (B, m)."""
        if (rule := self.fixed_rule) is not None:
            return rule
        length = length_rule(self.length_model)
        if length is None or not is_equal(self.weight_model):
            return None
        return unweighted_rule(norms[-1], *length, self.rcond)
