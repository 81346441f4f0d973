"""M-ConFIG: the momentum operators of ``conflictfree.momentum_operator``, with a state that can be saved.

    operator = PseudoMomentumOperator(num_vectors=len(losses))
    for step, batch in enumerate(data):
        index = step % len(losses)
        optimizer.zero_grad()
        losses[index](network, batch).backward()  # one backward pass a step, whatever the number of losses
        operator.update_gradient(network, index, get_gradient_vector(network))
        optimizer.step()

Names, parameters and defaults are conflictfree's. What fails there by mistake works here as documented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union  # also taken from here by star import

import torch
from torch import Tensor

from .backends import choose, short_step
from .grad_operator import *  # noqa: F403  # as conflictfree's module offers them
from .grad_operator import __all__ as _operator_all
from .gradients import Gradients, Update
from .gradients.pairs import in_dtype
from .loss_recorder import LatestLossRecorder, LossRecorder, MomentumLossRecorder
from .merging import losses_of, merge, ring_of
from .methods.groups import Group
from .methods.operator import fixed_rule_of, needed_rule, rule_of
from .methods.within import within
from .momentum.adoption import is_theirs
from .momentum.base import CONFIG as CONFIG
from .momentum.base import MomentumOperator, Resumable
from .momentum.precision import merged_by
from .momentum.step import EPSILON, Step
from .utils import *  # noqa: F403
from .utils import __all__ as _utils_all

__all__ = [
    "LatestLossRecorder",
    "LossRecorder",
    "MomentumLossRecorder",
    "MomentumOperator",
    "Optional",
    "PseudoMomentumOperator",
    "SeparateMomentumOperator",
    "Sequence",
    "Union",
    *_operator_all,
    *_utils_all,
]


class PseudoMomentumOperator(Resumable):
    """M-ConFIG (Liu, Chu and Thuerey 2024, arXiv:2408.11104, algorithm 1): one loss a step.

    Each gradient that comes updates its momentum, m_i <- beta_1 m_i + (1 - beta_1) g_i. All bias-corrected
    momenta are merged to u. The second moment is that of the gradients which would have led from one u to the
    next, and the update is u / (sqrt(second) + 1e-8).

    The update is already scaled as in Adam: use SGD without momentum, with a learning rate for Adam. Updates
    are zero until every loss has had a gradient. The state is m + 2 vectors. A NaN or Inf in a gradient stays
    in it, as in any moving average.

    Args, errors: as :class:`MomentumOperator`.

    Examples:
        >>> operator = PseudoMomentumOperator(num_vectors=len(loss_fns))
        >>> i = step % len(loss_fns)
        >>> fastconfig.backward([loss_fns[i](network, batch)], network, operator, indexes=[i])
    """

    def _other_vectors(self) -> list[str]:
        return ["second", "fake"]

    def calculate_gradient(self, indexes: Any, grads: Any, losses: Any = None) -> Update:
        """Update the momenta of some losses, then merge all momenta; see the base class.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names; the state is as before.
        """
        if torch.compiler.is_compiling():
            from .graph import outside_the_graph

            return outside_the_graph(self.calculate_gradient, indexes, grads, losses)
        update = self._short_step(indexes, grads) if losses is None else None
        if update is not None:
            return update
        chosen, rows, flat, losses, groups = self._take(indexes, grads, losses)
        state, dtype = self._momenta, rows.dtype
        momenta = state.gradients
        step = state.step(flat, chosen, dtype)
        backend = choose(momenta)
        if not state.clock.complete:
            backend.accumulate(step)
            if self.monitor is not None:
                self.monitor.pass_step()
            return momenta.as_given(state.new_update(dtype, zeros=True))
        if groups is not None:
            return momenta.as_given(self._step_by_groups(step, groups, losses))
        rule = rule_of(self.gradient_operator, momenta, losses)
        if rule is None:
            momenta.check_whole()
        out = state.new_update(dtype)
        if rule is not None:
            rule = self._prepared(rule, dtype, momenta, losses)
            backend.momentum_update(step, rule, out, losses_of(rule, losses, momenta))
            state.keep(step)
            return momenta.as_given(out)
        backend.accumulate(step)
        with torch.no_grad():
            decayed = state.clock.decayed(momenta.device)[:-2, None].to(momenta.device)
            corrected = momenta.stacked().div_(decayed)
            merged = merged_by(self.gradient_operator, corrected, dtype, losses, self.monitor)
            backend.rescale(step, state.ordered(momenta.restored(merged)), out)
        return out

    def _step_by_groups(self, step: Step, groups: list[Group], losses: list[Any] | None) -> Update:
        """A step that is counted, in one of each group by itself: its momenta, and what lies beside them."""
        out: Any = self._momenta.new_update(step.dtype)
        at_once = step.clock.on_host  # else a device counts the step, and must not count it for each group
        if not at_once:
            choose(step.momenta).accumulate(step)
        for one, part, segments in self._momenta.parts(groups):
            second, fake = [step.second[s] for s in segments], [step.fake[s] for s in segments]
            grads = [step.grads[s] for s in segments]
            own = Step(part, second, fake, step.chosen, grads, step.dtype, step.clock, {})
            with within(one.name):
                rule = needed_rule(self.gradient_operator, part, losses)
                rule = self._prepared(rule, step.dtype, part, losses)
                backend, pieces = choose(part), [out[p] for p in one.places]
                update = backend.momentum_update if at_once else backend.merge_and_rescale
                update(own, rule, pieces, losses_of(rule, losses, part))
        return out

    def _short_step(self, indexes: Any, grads: Any) -> Tensor | None:
        """Take the step in one compiled call; None if not applicable."""
        state = self._momenta.plain
        if state is None or self.process_group is not None or is_theirs(vars(self)):
            return None
        rule = fixed_rule_of(self.gradient_operator) if self.groups is None else None
        if rule is None or self.gradient_operator.monitor is not None:
            return None
        if (monitor := self.monitor) is None:
            return short_step(state, indexes, grads, rule)
        ring = ring_of(monitor)
        return short_step(state, indexes, grads, rule, ring) if ring else None


class SeparateMomentumOperator(Resumable):
    """Rescale each momentum by a second moment of its own, then merge them.

    conflictfree's authors found it to train worse than :class:`PseudoMomentumOperator`. The state is 3 m
    vectors: the momenta, their second moments, and the rescaled momenta.

    Args, errors: as :class:`MomentumOperator`.

    Examples:
        >>> operator = fastconfig.SeparateMomentumOperator(2)
        >>> for step in range(4):  # one gradient a step, by turns
        ...     update = operator.calculate_gradient(step % 2, torch.randn(10))
    """

    def _other_vectors(self) -> list[str]:
        return [f"{name}_{i}" for name in ("second", "rescaled") for i in range(self.num_vectors)]

    def _adopted(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        raise ValueError("state: got that of conflictfree's SeparateMomentumOperator, want this package's")

    @torch.no_grad()
    def calculate_gradient(self, indexes: Any, grads: Any, losses: Any = None) -> Update:
        """Update the momenta of some losses, then merge all rescaled momenta; see the base class.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names; the state is as before.
        """
        if torch.compiler.is_compiling():
            from .graph import outside_the_graph

            return outside_the_graph(self.calculate_gradient, indexes, grads, losses)
        chosen, rows, flat, losses, groups = self._take(indexes, grads, losses)
        state = self._momenta
        first = state.clock.decayed(rows.device)
        second = state.clock.decayed_second(rows.device)
        for k, i in enumerate(chosen):
            rescaled, square = state.flat(f"rescaled_{i}"), state.flat(f"second_{i}")
            for momentum, s, z, column in zip(state.flat_row(i), square, rescaled, flat, strict=True):
                if momentum is not None:
                    self._rescale(momentum, s, z, column[k], first[i], second[i])
        if not state.clock.complete:
            if self.monitor is not None:
                self.monitor.pass_step()
            return state.gradients.as_given(state.new_update(rows.dtype, zeros=True))
        vectors = state.as_gradients([state.others[f"rescaled_{i}"] for i in range(state.m)])
        if groups is None:
            merged = self._merge(vectors, rows.dtype, losses)
        else:
            merged = self._merge_by_groups(vectors, groups, rows.dtype, losses)
        if isinstance(merged, Tensor):
            return in_dtype(merged, rows.dtype)
        return [None if piece is None else in_dtype(piece, rows.dtype) for piece in merged]

    def _rescale(
        self, momentum: Tensor, square: Tensor, rescaled: Tensor, gradient: Tensor | None, *decayed: Tensor
    ) -> None:
        """Update both moments with a gradient, then their corrected ratio; all in place."""
        first, second = (factor.to(momentum) for factor in decayed)
        if gradient is None:
            momentum.mul_(self.beta_1)
            square.mul_(self.beta_2)
        else:
            gradient = gradient.to(momentum.dtype)
            momentum.lerp_(gradient, 1 - self.beta_1)
            square.mul_(self.beta_2).addcmul_(gradient, gradient, value=1 - self.beta_2)
        torch.div(square, second, out=rescaled).sqrt_().add_(EPSILON).mul_(first)
        torch.div(momentum, rescaled, out=rescaled)

    def _merge_by_groups(
        self, rescaled: Gradients, groups: list[Group], given: torch.dtype, losses: list[Any] | None
    ) -> Update:
        out: Any = self._momenta.new_update(rescaled.dtype)
        for one, part, _ in self._momenta.parts(groups, rescaled):
            with within(one.name):
                rule = needed_rule(self.gradient_operator, part, losses)
                rule = self._prepared(rule, given, part, losses)
                merge(part, rule, [out[p] for p in one.places], losses_of(rule, losses, part))
        return rescaled.as_given(out)

    def _merge(self, rescaled: Gradients, given: torch.dtype, losses: list[Any] | None) -> Update:
        rule = rule_of(self.gradient_operator, rescaled, losses)
        if rule is not None:
            rule = self._prepared(rule, given, rescaled, losses)
            return merge(rescaled, rule, losses=losses_of(rule, losses, rescaled))
        merged = merged_by(self.gradient_operator, rescaled.stacked(), given, losses, self.monitor)
        return rescaled.restored(merged)
