"""Operators that draw random numbers, or that keep state from call to call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import check_generator, got
from .base import Rule
from .operator import GramOperator
from .within import state_name

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class DrawingOperator(GramOperator):
    """Base class of operators that draw random numbers.

    Args:
        generator: their source, on the CPU; by default torch's own, or for gradients spread over processes
            one that the operator starts from 0, because all ranks must draw alike.
    """

    generator: torch.Generator | None = None

    def __init__(
        self, rule: Rule, generator: torch.Generator | None, process_group: ProcessGroup | None
    ) -> None:
        super().__init__(rule, process_group)
        check_generator(generator)
        self.generator = generator

    def source(self, spread: bool) -> torch.Generator | None:
        """Whence to draw for gradients that are ``spread`` over processes, or not."""
        if self.generator is None and spread:
            self.generator = torch.Generator("cpu").manual_seed(0)
        return self.generator

    def random_order(self, norms: tuple[int, ...], spread: bool) -> Tensor:
        """(..., m, m) int64 on the CPU: each row an order of the m gradients."""
        shape = (*norms, norms[-1])
        source = self.source(spread)
        return torch.rand(shape, generator=source, dtype=torch.float32, device="cpu").argsort(-1)


class StatefulOperator(GramOperator):
    """Base class of operators whose rule keeps state: tensors that each call changes in place.

    The state starts anew when the number of gradients or problems changes. It is made on the device of the
    first gradients, and follows them to another. Groups have a state each, which goes by their names.
    """

    def __init__(self, rule: Rule, *given: Any) -> None:
        super().__init__(rule, *given)
        self._state: dict[str, Tensor] = {}

    @property
    def fixed_rule(self) -> Rule | None:
        """None: each call changes the state."""
        return None

    def _kept(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """A tensor of the state, zeros at first."""
        name = state_name(name)
        found = self._state.get(name)
        if found is None or found.shape != shape:
            found = torch.zeros(shape, dtype=torch.float64, device=device)
        self._state[name] = found = found.to(device)
        return found

    def reset(self) -> None:
        """Forget the state."""
        self._state.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state, for :meth:`load_state_dict`."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`, whose tensors are copied.

        Raises:
            TypeError: for what is none.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: got {got(state)}, want a state_dict()")
        wanted = f"those of a {type(self).__name__}.state_dict(), float64"
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.dtype is not torch.float64:
                raise TypeError(f"state[{name!r}]: got {got(value)}, want {wanted}")
        self._state = {name: value.clone() for name, value in state.items()}

    def __getstate__(self) -> dict[str, Any]:
        """With a state of its own: calls change it in place."""
        return vars(self) | {"_state": self.state_dict()}
