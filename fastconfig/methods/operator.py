"""Operators: gradients -> Gram matrix -> rule -> update (see docs/how.md); their base classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor

from ..checks import abstract, check_gram, check_group, check_losses, losses_beside
from ..gradients import Gradients, GradientsLike, Update
from ..gradients.shards import Grouped
from ..merging import losses_of, merge, short_merge
from ..numbers import float64_device, sent
from ..utils import write_gradient
from .base import Rule, as_rule, coefficients_of
from .groups import GroupsLike, by_groups, by_network, checked_groups
from .watched import watched

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Method = TypeVar("Method", bound=Callable[..., Update])

_BY_RULE: set[Callable[..., Update]] = set()


def by_rule(calculate_gradient: Method) -> Method:
    """Says of an operator's method that it merges by the operator's ``rule_for``, gradients in any form."""
    _BY_RULE.add(calculate_gradient)
    return calculate_gradient


class GradientOperator(Grouped):
    """Base class of operators, which merge m gradients into one.

    A subclass overrides :meth:`calculate_gradient`. An operator can be copied and pickled at any time; with a
    ``process_group`` only copied.

    Attributes:
        process_group: ranks of which each gives its part of every gradient; None where a process has them as
            a whole, and for DTensors, which say it themselves.
        groups: None for one Gram matrix of all parameters. Or groups of these, each with a Gram matrix,
            coefficients and a state of its own: "parameter" takes each one by itself, "module" those of a
            module together; a dict has the parameters of each group, or names of parameters or modules; a
            function gives the group of a parameter's name. Each parameter belongs to exactly one.
        monitor: a :class:`fastconfig.monitor.Monitor` that is told of every step, or None.

    Examples:
        >>> class Largest(fastconfig.GradientOperator):
        ...     def calculate_gradient(self, grads, losses=None):
        ...         return grads[grads.norm(dim=1).argmax()]
        >>> Largest().calculate_gradient(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([0., 2.])
    """

    monitor: Any = None
    _groups: Any = None

    def __init__(self) -> None:
        pass

    @property
    def groups(self) -> GroupsLike:
        return self._groups

    @groups.setter
    def groups(self, groups: GroupsLike) -> None:
        self._groups = checked_groups(groups)

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
        if self._groups is None:
            update = self.calculate_gradient(grads, losses)
        else:
            if torch.compiler.is_compiling():
                from ..graph import outside_the_graph

                rest: Any = {"none_grad_mode": none_grad_mode, "zero_grad_mode": zero_grad_mode}
                outside_the_graph(self.update_gradient, network, grads, losses, **rest)
                return
            check_grouped(self)
            update = by_network(self, network, grads, losses, none_grad_mode == "zero")
        write_gradient(network, update, none_grad_mode, zero_grad_mode)


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
        """The rule, if it is the same for all gradients; None for one that is made for each call."""
        return self._rule if type(self._rule).for_rows is Rule.for_rows else None

    def rule_for(self, grads: Gradients) -> Rule:
        """How coefficients of these gradients follow from their Gram matrix."""
        if (rule := self.fixed_rule) is not None:
            return rule
        norms = (*grads.batch_shape, grads.m)
        return self.rule_at(norms, float64_device(grads.device), grads.shards is not None)

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call; one that draws or has state overrides this, and ``fixed_rule``.

        Args:
            norms: shape of the gradients' norms, (m,) or (B, m).
            device: where G will be.
            spread: whether the gradients are spread over processes, which must all draw alike.
        """
        return self._rule.for_rows(norms[-1], device)

    @torch.no_grad()
    def coefficients(self, gram: Tensor, losses: Any = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """The coefficients alone, of a Gram matrix that is there already; state goes on as with a merge.

        Args:
            gram: (m, m) or (B, m, m), of any floating-point dtype.
            losses: (m,) or (B, m), for a rule that uses them.
            dtype: of the gradients, which sets the rank cut-off; by default it is 1e-13 for a ``gram`` in
                float64 and 10 eps for another, whose entries are no more exact than that.

        Returns:
            (m,) or (B, m) in the dtype of ``gram``.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        check_gram(gram)
        full = gram.detach().to(float64_device(gram.device), torch.float64)
        rule = self.fixed_rule or self.rule_at(tuple(full.shape[:-1]), full.device)
        if gram.dtype is not torch.float64 and rule.rcond is None:
            rule = rule.at_cutoff(10 * torch.finfo(gram.dtype).eps)
        if losses is not None:
            losses = losses_beside(losses, full)
        rule = watched(rule, self.monitor, losses)
        return coefficients_of(rule, full, dtype or torch.float64, losses).to(gram)

    @by_rule
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
        if self._groups is not None:
            return by_groups(self, grads, losses)
        rule = self.fixed_rule
        if torch.compiler.is_compiling():
            from ..graph import can_compile, compiled_update, outside_the_graph

            told = self.monitor is not None
            if rule is None or rule.has_settings or told or not can_compile(grads, self.process_group):
                return outside_the_graph(self.calculate_gradient, grads, losses)
            return compiled_update(grads, str(rule.native), mean=rule.mean, rcond=rule.rcond)
        if rule is not None:
            update = short_merge(grads, rule, losses, self.process_group, self.monitor)
            if update is not None:
                return update
        rows = Gradients(grads, group=self.process_group)
        if losses is not None:
            check_losses(losses, rows.m)
        rule = watched(self.rule_for(rows), self.monitor, losses)
        return merge(rows, rule, losses=losses_of(rule, losses, rows))


class WeighingOperator(GramOperator):
    """Base of operators whose rule has weights of so many gradients; a rule for each device."""

    def weighing(self, weights: Tensor, device: torch.device, make: Callable[[Tensor], Rule]) -> Rule:
        """The rule that ``make`` gives for a copy of the weights, whose address compiled code keeps."""
        made: dict[torch.device, Rule] = vars(self).setdefault("_weighted", {})
        if device not in made:
            made[device] = make(sent(weights.clone(), device))
        return made[device]


def is_ours(operator: GradientOperator) -> bool:
    """Whether it merges as defined here, gradients in any form; a user's own, or subclass, sees (m, N)."""
    return getattr(operator.calculate_gradient, "__func__", None) in _BY_RULE


def fixed_rule_of(operator: Any) -> Rule | None:
    """The rule of an operator, if it is known before the gradients are; None also for what is no rule."""
    return operator.fixed_rule if is_ours(operator) and operator._groups is None else None


def check_grouped(operator: GradientOperator) -> None:
    """Whether an operator with groups can merge by them.

    Raises:
        TypeError: for a user's own, which is given one tensor (m, N).
    """
    if not is_ours(operator):
        raise TypeError(
            f"operator: got groups on a {type(operator).__name__} with a calculate_gradient of its own, want "
            "an operator of this package, or GramOperator(rule)"
        )


def refuse_groups(operator: Any, what: str) -> None:
    """Raise ValueError if an operator has groups, where there is one Gram matrix."""
    if getattr(operator, "_groups", None) is not None:
        raise ValueError(f"operator: got one with groups, want groups = None: {what}")


def rule_of(operator: GradientOperator, grads: Gradients, losses: Any = None) -> Rule | None:
    """How an operator's coefficients follow from the Gram matrix; None if it must see the gradients.

    Args:
        losses: for the operator's monitor.

    Raises:
        TypeError: for one with a monitor that must see the gradients.
    """
    if not is_ours(operator):
        if getattr(operator, "monitor", None) is not None:
            refuse_operator(operator, "with a monitor")
        return None
    ours: Any = operator
    rule = ours.rule_for(grads)
    return None if rule is None else watched(rule, operator.monitor, losses)


def needed_rule(operator: GradientOperator, grads: Gradients, losses: Any = None) -> Rule:
    """:func:`rule_of`, for what has nothing but the Gram matrix.

    Raises:
        TypeError: for an operator that must see the gradients.
    """
    rule = rule_of(operator, grads, losses)
    if rule is None:
        refuse_operator(operator)
    return rule


def refuse_operator(operator: Any, more: str = "") -> NoReturn:
    """Raise TypeError: an operator must see the gradients, where there is nothing but their Gram matrix."""
    kind = f"{type(operator).__name__} {more}".rstrip()
    raise TypeError(
        f"operator: got a {kind} that must see the gradients, want one whose coefficients "
        "follow from their Gram matrix, such as ConFIGOperator() or GramOperator(rule)"
    )
