"""Run existing code for conflictfree or TorchJD on this package; commands/script.py has the command."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType, TracebackType
from typing import Any

__all__ = ["Acceleration", "accelerate"]

_MODULES = ("grad_operator", "weight_model", "length_model", "utils", "momentum_operator", "loss_recorder")


class Acceleration:
    """What :func:`accelerate` replaced. ``undo()`` puts it back, and so does the end of a ``with`` block.

    Attributes:
        package: the package whose names were replaced.
        names: the replaced functions and classes, as ``module.name``.
        modules: other modules that had imported them and were changed, too.
    """

    def __init__(
        self, package: str, names: list[str], places: list[tuple[ModuleType, str, Any, Any]]
    ) -> None:
        self.package = package
        self.names = names
        self._places = places
        found = {module.__name__ for module, *_ in places}
        self.modules = sorted(name for name in found if name.partition(".")[0] != package)

    def undo(self) -> None:
        """Put the package's own names back. Objects made meanwhile stay, and so do names set meanwhile."""
        while self._places:
            module, name, theirs, ours = self._places.pop()
            if vars(module).get(name) is ours:
                setattr(module, name, theirs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Acceleration:
        return self  # what it replaced is there once

    def __reduce__(self) -> Any:
        raise TypeError("Acceleration: cannot be pickled, want accelerate() called in the other process")

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    @property
    def summary(self) -> str:
        """How many names, in one line."""
        also = f", also in {', '.join(self.modules)}" if self.modules else ""
        return f"fastconfig serves {len(self.names)} names of {self.package}{also}"

    def __str__(self) -> str:
        return f"{self.summary}: {', '.join(self.names)}"


def accelerate(package: str = "conflictfree") -> Acceleration:
    """Replace the functions and classes of an installed package by those of the same names here.

    This changes the package's modules, and every module that has imported the names. Existing objects stay as
    they are, so call it before operators are made. A second call changes nothing. Processes started by spawn
    or forkserver import everything anew: call it in them, too, or use ``fastconfig run``.

    All of conflictfree is replaced, and its pickles load as objects of this package, momentum with its state.
    Of TorchJD the aggregators and weightings in :mod:`fastconfig.aggregation` are replaced, and
    ``jac_to_grad``; TorchJD's ``backward`` and ``mtl_backward`` still make the Jacobians.

    Args:
        package: "conflictfree" or "torchjd".

    Returns:
        What was replaced. Print it to see; call its ``undo()`` to go back.

    Raises:
        ValueError: for another package.
        ModuleNotFoundError: if it is not installed.

    Examples:
        >>> with fastconfig.accelerate() as acceleration:
        ...     from conflictfree.grad_operator import ConFIG_update
        >>> ConFIG_update.__module__
        'fastconfig.config_update'
    """
    if package not in _PAIRS:
        raise ValueError(f"package: got {package!r}, want one of {', '.join(map(repr, _PAIRS))}")
    names: list[str] = []
    ours: dict[int, tuple[Any, Any]] = {}  # theirs by identity: theirs, ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of docstrings' escape sequences, when they are first compiled
        importlib.import_module(package)
        for name, value, own in _PAIRS[package]():
            ours[id(value)] = value, own
            names.append(name)
    places: list[tuple[ModuleType, str, Any, Any]] = []
    for holder in [module for module in sys.modules.values() if isinstance(module, ModuleType)]:
        for name, value in list(vars(holder).items()):
            if id(value) in ours:
                own = ours[id(value)][1]
                places.append((holder, name, value, own))
                setattr(holder, name, own)
    return Acceleration(package, names, places)


def _of_conflictfree() -> Iterator[tuple[str, Any, Any]]:
    for module in _MODULES:
        theirs = importlib.import_module(f"conflictfree.{module}")
        own = importlib.import_module(f"fastconfig.{module}")
        for name, value in vars(theirs).items():
            defined = getattr(value, "__module__", None) == theirs.__name__
            if defined and not name.startswith("_") and hasattr(own, name):
                yield f"{module}.{name}", value, getattr(own, name)


def _of_torchjd() -> Iterator[tuple[str, Any, Any]]:
    """TorchJD's base classes stay, for users' subclasses; ours are registered as subclasses of them."""
    own = importlib.import_module("fastconfig.aggregation")
    theirs = importlib.import_module("torchjd.aggregation")
    bases = [name for name in own.__all__ if name in _BASES]
    for name in bases:
        if hasattr(theirs, name):  # TorchJD before 0.9 keeps some to itself
            getattr(theirs, name).register(getattr(own, name))
    for name in own.__all__:
        value = getattr(theirs, name, None)
        if name not in _BASES and isinstance(value, type) and value.__module__.startswith("torchjd"):
            yield f"aggregation.{name}", value, getattr(own, name)
    autojac = importlib.import_module("torchjd.autojac")
    yield from _merging_of(autojac.jac_to_grad, own)


def _merging_of(theirs: Any, own: Any) -> Iterator[tuple[str, Any, Any]]:
    if not theirs.__module__.startswith("torchjd"):
        return  # replaced already

    @wraps(theirs)
    def jac_to_grad(tensors: Any, /, aggregator: Any, **keywords: Any) -> Any:
        merging = own.jac_to_grad if isinstance(aggregator, own.Aggregator) else theirs
        return merging(tensors, aggregator, **keywords)

    jac_to_grad.__module__ = __name__
    yield "autojac.jac_to_grad", theirs, jac_to_grad


_BASES = ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Weighting")
_PAIRS: dict[str, Callable[[], Iterator[tuple[str, Any, Any]]]] = {
    "conflictfree": _of_conflictfree,
    "torchjd": _of_torchjd,
}
