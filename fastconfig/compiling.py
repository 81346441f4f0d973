"""Within ``torch.compile``: the registered operator of compiled.py where it will do; else the graph breaks.

compiled.py is imported on first use, because registering an operator loads torch's compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .gradients import GradientsLike, Update
from .gradients.shards import any_dtensor
from .length_model import BY_GRAM, LengthModel
from .weight_model import EqualWeight, WeightModel


def can_compile(
    grads: GradientsLike,
    process_group: object,
    weight_model: WeightModel | None = None,
    length_model: LengthModel | None = None,
) -> bool:
    """Whether the registered operator serves this: not a user's own models, nor several processes."""
    if process_group is not None or any_dtensor(grads):
        return False
    return type(weight_model) in (EqualWeight, type(None)) and type(length_model) in (*BY_GRAM, type(None))


def compiled_config(grads: GradientsLike, length_model: LengthModel, rcond: float | None) -> Update:
    """ConFIG within ``torch.compile``, by models of this package."""
    length: Any = length_model
    return compiled_update(grads, "config", length=length._length, track_id=length.track_id, rcond=rcond)


def compiled_update(grads: GradientsLike, method: str, **rule: Any) -> Update:
    """The update as one operator of the graph, which is registered on first use."""
    from . import compiled

    return compiled.merge(grads, method, **rule)


def outside_the_graph(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """A call within ``torch.compile`` of what cannot be compiled: the graph breaks there."""
    from . import compiled

    return compiled.eagerly(call, *arguments, **keywords)
