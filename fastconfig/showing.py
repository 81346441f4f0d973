"""What operators, rules and models print as: the call that makes one like it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

_SHORT = 8  # numbers of a tensor that are written out
_UNKNOWN = object()


class Shown:
    """Prints as its constructor's call, with the arguments that are not the default.

    An argument is looked up where the constructor keeps it: as an attribute of its name, with or without an
    underscore, of the object or of its rule.
    """

    def __repr__(self) -> str:
        given = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = _kept(self, name)
            needed = parameter.default is inspect.Parameter.empty
            if value is _UNKNOWN or (not needed and _same(value, parameter.default)):
                continue
            if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                continue
            given.append(_text(value) if needed else f"{name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(given)})"


def _kept(shown: Any, name: str) -> Any:
    for holder in (shown, vars(shown).get("_rule"), vars(shown).get("rule")):
        for key in (name, f"_{name}"):
            if holder is not None and key in dir(holder):
                return getattr(holder, key)
    return _UNKNOWN


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        value = value.item()
    return value is default or (type(value) is type(default) and value == default)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() > _SHORT or value.device.type != "cpu":
            return f"<tensor {tuple(value.shape)} on {value.device}>"
        return str(value.tolist())
    if isinstance(value, (list, tuple)) and len(value) > _SHORT:
        return f"<{type(value).__name__} of {len(value)}>"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    if type(value).__repr__ == object.__repr__:  # type: ignore[comparison-overlap]
        return f"<{type(value).__name__}>"
    return repr(value)
