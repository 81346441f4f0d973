"""Any method whose coefficients are found anew in every k-th call only, and kept in between."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import number, whole
from .base import Rule, as_rule, coefficients_of
from .operator import GradientOperator, is_ours, refuse_groups, refuse_operator
from .stateful import StatefulOperator
from .watched import watched
from .within import state_name

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CPU = torch.device("cpu")
_INNER = "operator."  # before the names of the state of an operator within


class Every(Rule):
    """The coefficients of a rule, kept for some calls (``update_weights_every`` of Nash-MTL's code).

    Gradients with NaN or Inf give NaN, and nothing is kept of them: where nothing else is there to keep, the
    next call finds them anew.

    Args:
        rule: any rule, or a function G -> c.
        calls: after so many calls they are found anew.
        max_norm: the greatest length of the update, cut in every call; None or 0 leaves it.
        kept: (..., m) float64, which calls change in place.
        count: (1,) float64 on the CPU, the number of calls so far, which each changes in place.
    """

    def __init__(self, rule: Any, calls: int, max_norm: float | None, kept: Tensor, count: Tensor) -> None:
        self.rule = as_rule(rule)
        super().__init__(rcond=self.rule.rcond)
        self.calls, self.max_norm, self.kept, self.count = calls, max_norm, kept, count

    def cutoff(self, dtype: torch.dtype) -> float:
        return self.rule.cutoff(dtype)

    def at_cutoff(self, rcond: float) -> Rule:
        return Every(self.rule.at_cutoff(rcond), self.calls, self.max_norm, self.kept, self.count)

    @torch.no_grad()
    def coefficients(self, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
        finite = gram.diagonal(dim1=-2, dim2=-1).isfinite().all(-1, keepdim=True)
        if int(self.count) % self.calls == 0:
            found = coefficients_of(self.rule, gram, dtype, losses)
            first = not self.count  # then there is nothing else to keep
            sound = finite & found.isfinite().all(-1, keepdim=True)
            self.kept.copy_(found if first else torch.where(sound, found, self.kept))
        self.count += 1
        c = torch.where(finite, self.kept, torch.nan)
        if not self.max_norm:
            return c
        size = gram.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).sqrt()  # squares of 1e200 overflow
        scaled = torch.where(size > 0, gram / size.unsqueeze(-1).square(), 0)
        squared = (c * (scaled @ c.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True).clamp(min=0)
        length = squared.sqrt() * size
        return torch.where(length > self.max_norm, c * (self.max_norm / length), c)


class ByOperator(Rule):
    """An operator as a rule: each time that of the operator's next call.

    Args:
        operator: one whose coefficients follow from the Gram matrix.
        spread: whether the gradients are spread over processes, which must all draw alike.
    """

    def __init__(self, operator: GradientOperator, spread: bool = False, rcond: float | None = None) -> None:
        super().__init__(rcond=rcond)
        self.operator, self.spread = operator, spread

    @torch.no_grad()
    def coefficients(self, gram: Tensor, dtype: torch.dtype, losses: Tensor | None = None) -> Tensor:
        operator: Any = self.operator
        refuse_groups(operator, "those of the EveryOperator around it count")
        rule = operator.fixed_rule or operator.rule_at(tuple(gram.shape[:-1]), gram.device, self.spread)
        if rule is None:
            refuse_operator(operator)
        rule = watched(rule if self.rcond is None else rule.at_cutoff(self.rcond), operator.monitor, losses)
        return coefficients_of(rule, gram, dtype, losses)

    def at_cutoff(self, rcond: float) -> Rule:
        return ByOperator(self.operator, self.spread, rcond)


class EveryOperator(StatefulOperator):
    """Any method with coefficients that are found anew in every k-th call only; see :class:`Every`.

    In between, ``fastconfig.backward`` runs one backward pass of the weighted sum of the losses instead of m,
    ``mtl_backward`` one through the trunk, and ``weights`` none; all ranks find them anew together. With
    ``groups``, whose coefficients differ, every step has all backward passes.

    Args:
        rule: any rule, a function G -> c, or an operator whose coefficients follow from the Gram matrix.
        calls: after so many calls they are found anew, at least 1.
        max_norm: the greatest length of the update, cut in every call; None or 0 leaves it.
        process_group: as in :func:`fastconfig.ConFIG_update`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.

    Examples:
        >>> operator = EveryOperator(ConFIGOperator(), 10)
        >>> fastconfig.backward(losses, network, operator)
    """

    def __init__(
        self,
        rule: Any,
        calls: int,
        *,
        max_norm: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if isinstance(rule, GradientOperator):
            if not is_ours(rule):
                refuse_operator(rule)
            process_group = rule.process_group if process_group is None else process_group
            rule = ByOperator(rule)
        super().__init__(rule, process_group)
        if whole("calls", calls) < 1:
            raise ValueError(f"calls: got {calls}, want at least 1")
        if max_norm is not None and not number("max_norm", max_norm) >= 0:
            raise ValueError(f"max_norm: got {max_norm}, want None or at least 0")
        self.calls, self.max_norm = int(calls), max_norm

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call, which counts it."""
        if not self._is_sound(norms):
            for name in ("kept", "count"):
                self._state.pop(state_name(name), None)
        kept = self._kept("kept", norms, device)
        rule = ByOperator(self._inner, spread) if self._inner is not None else self._rule
        return Every(rule, self.calls, self.max_norm, kept, self._kept("count", (1,), CPU))

    def kept(self, norms: tuple[int, ...]) -> Tensor | None:
        """The coefficients of the next call, which is counted, if they follow from no Gram matrix; else None.

        Args:
            norms: shape of the gradients' norms, (m,) or (B, m).

        Returns:
            (m,) or (B, m) float64.
        """
        if self._groups is not None or self.max_norm or not self._is_sound(norms):
            return None
        if int(self._state["count"]) % self.calls == 0:
            return None
        self._state["count"] += 1
        if self.monitor is not None:
            self.monitor.pass_step()
        return self._state["kept"].clone()

    def _is_sound(self, norms: tuple[int, ...]) -> bool:
        """Whether there are coefficients of such gradients; NaN may be left by the very first ones only."""
        kept, count = (self._state.get(state_name(name)) for name in ("kept", "count"))
        if kept is None or count is None or kept.shape != norms or not count:
            return False
        return int(count) > 1 or not kept.isnan().any()

    @property
    def _inner(self) -> GradientOperator | None:
        return self._rule.operator if isinstance(self._rule, ByOperator) else None

    def reset(self) -> None:
        """Forget the state, also that of an operator within."""
        super().reset()
        if isinstance(self._inner, StatefulOperator):
            self._inner.reset()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state, also of an operator within, for :meth:`load_state_dict`."""
        found = super().state_dict()
        if isinstance(self._inner, StatefulOperator):
            found |= {_INNER + name: value for name, value in self._inner.state_dict().items()}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`, whose tensors are copied.

        Raises:
            TypeError: for what is none.
        """
        super().load_state_dict(state)
        inner = {name: self._state.pop(name) for name in list(self._state) if name.startswith(_INNER)}
        if isinstance(self._inner, StatefulOperator):
            self._inner.load_state_dict({name.removeprefix(_INNER): value for name, value in inner.items()})

    def __getstate__(self) -> dict[str, Any]:
        """With a state of its own, also of an operator within."""
        found = vars(self) | {"_state": super().state_dict()}
        return found if self._inner is None else found | {"_rule": ByOperator(copy(self._inner))}


def kept_coefficients(operator: Any, m: int) -> Tensor | None:
    """(m,) float64: what an operator takes for gradients whatever they are, in this step; else None."""
    if isinstance(operator, EveryOperator) and is_ours(operator):
        return operator.kept((m,))
    return None
