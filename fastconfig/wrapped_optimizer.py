"""An optimizer around another one, for schedulers, scalers, checkpoints and trainers."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from .checks import got


class _NoOptimizer(TypeError, AttributeError):
    """There is no wrapped optimizer; an AttributeError, so that ``hasattr`` is False."""


class WrappedOptimizer(Optimizer):
    """An optimizer that passes everything on to the wrapped one: groups, state, defaults, hooks, steps.

    Args:
        optimizer: the optimizer to wrap; None for an object that is used without one.

    Raises:
        TypeError: if it is no optimizer.
    """

    _step_supports_amp_scaling = False  # a GradScaler looks for Inf itself, whatever the wrapped one does

    def __init__(self, optimizer: Optimizer | None) -> None:
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: got {got(optimizer)}, want a torch.optim.Optimizer")
        self._optimizer = optimizer

    @property
    def optimizer(self) -> Optimizer:
        """The wrapped optimizer.

        Raises:
            TypeError: if there is none.
        """
        if self._optimizer is None:
            raise _NoOptimizer(f"optimizer: got none, want {_kind(self)}(optimizer)")
        return self._optimizer

    @property
    def _optim(self) -> Optimizer:
        """:attr:`optimizer`, under the name that the widely copied PCGrad file gives it."""
        return self.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups; so for everything below."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.optimizer.defaults

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def __getattr__(self, name: str) -> Any:
        inner = vars(self).get("_optimizer")
        if inner is None and isinstance(getattr(type(self), name, None), property):
            raise _NoOptimizer(f"optimizer: got none, want {_kind(self)}(optimizer)")
        if inner is None or name.startswith("__"):
            raise AttributeError(f"{_kind(self)!r} object has no attribute {name!r}")
        return getattr(inner, name)

    def __getstate__(self) -> dict[str, Any]:
        # a scheduler puts its own step on the object that it steps, bound to that very object
        return {name: value for name, value in vars(self).items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        return f"{_kind(self)}({self._optimizer!r})"


def _kind(value: object) -> str:
    return type(value).__name__
