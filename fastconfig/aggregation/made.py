"""Aggregators and weightings of methods that TorchJD does not have: made from the method's operator."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from .. import methods
from ..methods.stateful import StatefulOperator
from .base import GramianWeightedAggregator, StatefulAggregator, StatefulWeighting, Weighting

_OF_OPERATORS = ("process_group", "rcond")  # which aggregators do not take


@cache
def made(kind: str) -> tuple[type, type]:
    """The aggregator and the weighting of a method, with the parameters of its operator.

    Args:
        kind: name of the rule, as in :data:`fastconfig.methods.METHODS`.
    """
    operator = getattr(methods, f"{kind}Operator")
    stateful = issubclass(operator, StatefulOperator)
    given = inspect.signature(operator)
    left = [each for name, each in given.parameters.items() if name not in _OF_OPERATORS]
    signature = given.replace(parameters=left)

    def weigh(self: Any, *args: Any, **settings: Any) -> None:
        bound = signature.bind(*args, **settings)
        bound.apply_defaults()
        base.__init__(self, **bound.arguments)

    def merge(self: Any, *args: Any, **settings: Any) -> None:
        merging.__init__(self, weighting(*args, **settings))

    base = StatefulWeighting if stateful else Weighting
    merging = StatefulAggregator if stateful else GramianWeightedAggregator
    shared = {"__module__": __package__, "__signature__": signature}
    about = f"The weights of :class:`{kind}`; its parameters."
    weighting = type(
        f"{kind}Weighting",
        (base,),
        shared | {"__doc__": about, "__init__": weigh, "_operator": operator},
    )
    about = f"{kind}; see :class:`fastconfig.methods.{kind}Operator`, whose parameters it has."
    return type(kind, (merging,), shared | {"__doc__": about, "__init__": merge}), weighting
