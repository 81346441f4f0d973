"""Existing conflictfree code, unchanged, on this package: ``accelerate``. script.py has the command."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType, TracebackType
from typing import Any

__all__ = ["Acceleration", "accelerate"]

_MODULES = ("grad_operator", "weight_model", "length_model", "utils", "momentum_operator", "loss_recorder")


class Acceleration:
    """What :func:`accelerate` replaced; ends with :meth:`undo`, or with a ``with`` block.

    Attributes:
        names: of the functions and classes that are replaced, as ``module.name``.
        modules: in which they are, beside conflictfree's own: those that had imported them already.
    """

    def __init__(self, names: list[str], places: list[tuple[ModuleType, str, Any, Any]]) -> None:
        self.names = names
        self._places = places
        found = {module.__name__ for module, *_ in places}
        self.modules = sorted(name for name in found if name.partition(".")[0] != "conflictfree")

    def undo(self) -> None:
        """Put conflictfree's own back, once; objects made meanwhile, and names set meanwhile, stay."""
        while self._places:
            module, name, theirs, ours = self._places.pop()
            if vars(module).get(name) is ours:
                setattr(module, name, theirs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Acceleration:
        return self  # what it replaced is there once

    def __reduce__(self) -> Any:
        raise TypeError("Acceleration: got one to pickle, want accelerate() called in the other process")

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        also = f", also in {', '.join(self.modules)}" if self.modules else ""
        return f"fastconfig serves {len(self.names)} names of conflictfree{also}: {', '.join(self.names)}"


def accelerate() -> Acceleration:
    """Replace the functions and classes of an installed conflictfree by this package's of the same names.

    In its modules, and in every module that has imported them by name. Objects that exist already stay what
    they are: call it before operators are made. Calling it twice replaces nothing more. Processes that are
    started by spawn or forkserver import everything anew: call it in them too, or use ``fastconfig run``.

    Pickles of conflictfree's objects become this package's, momentum with its state.

    Returns:
        What was replaced; print it to see, ``undo()`` it to go back.

    Raises:
        ModuleNotFoundError: if conflictfree is not installed.
    """
    names: list[str] = []
    ours: dict[int, tuple[Any, Any]] = {}  # theirs by identity: theirs, ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its docstrings' escape sequences, when it is first compiled
        importlib.import_module("conflictfree")
        for module in _MODULES:
            theirs = importlib.import_module(f"conflictfree.{module}")
            own = importlib.import_module(f"fastconfig.{module}")
            for name, value in vars(theirs).items():
                defined = getattr(value, "__module__", None) == theirs.__name__
                if defined and not name.startswith("_") and hasattr(own, name):
                    ours[id(value)] = value, getattr(own, name)
                    names.append(f"{module}.{name}")
    places: list[tuple[ModuleType, str, Any, Any]] = []
    for holder in [module for module in sys.modules.values() if isinstance(module, ModuleType)]:
        for name, value in list(vars(holder).items()):
            if id(value) in ours:
                own = ours[id(value)][1]
                places.append((holder, name, value, own))
                setattr(holder, name, own)
    return Acceleration(names, places)
