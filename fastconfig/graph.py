"""Within ``torch.compile``: the update is a registered operator where possible; else the graph breaks.

The operator knows the gradients as one list of tensors: the tensor itself, m vectors, or m tensors of every
parameter in turn (None for a missing one). This module is imported on first use, because registering an
operator loads torch's compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, List, Optional  # noqa: UP035

import torch
from torch import Tensor

from .gradients import Gradients, GradientsLike, Update
from .gradients.shards import any_dtensor
from .length_model import BY_GRAM, LengthModel
from .merging import merge
from .methods import REDUCTIONS, make_rule
from .numbers import float64_device
from .weight_model import EqualWeight, WeightModel


def can_compile(
    grads: GradientsLike,
    process_group: object,
    weight_model: WeightModel | None = None,
    length_model: LengthModel | None = None,
) -> bool:
    """Whether the registered operator can serve: no models of a user's own, one process."""
    if process_group is not None or any_dtensor(grads):
        return False
    return type(weight_model) in (EqualWeight, type(None)) and type(length_model) in (*BY_GRAM, type(None))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def outside_the_graph(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a function outside of the graph; with ``fullgraph=True`` torch's error names this function."""
    return call(*arguments, **keywords)


def compiled_config(grads: GradientsLike, length_model: LengthModel, rcond: float | None) -> Update:
    """ConFIG within ``torch.compile``, by models of this package."""
    length: Any = length_model
    return compiled_update(grads, "config", length=length._length, track_id=length.track_id, rcond=rcond)


def compiled_update(
    grads: GradientsLike,
    method: str,
    *,
    length: str = "projection",
    track_id: int = 0,
    order: Tensor | None = None,
    mean: bool = False,
    rcond: float | None = None,
) -> Update:
    """Merge gradients in any form by one operator of the graph; other arguments as for a Rule.

    Raises:
        TypeError, ValueError: where the operator runs; for a wrong argument, which the message names.
    """
    form, tensors, m = _flattened(grads)
    pieces = torch.ops.fastconfig.merge(tensors, m, form, method, length, track_id, order, mean, rcond)
    if form != "parameters":
        return pieces[0]
    found = iter(pieces)
    columns = [tensors[p * m : (p + 1) * m] for p in range(len(tensors) // m)]
    return [None if all(t is None for t in column) else next(found) for column in columns]


def _flattened(grads: Any) -> tuple[str, list[Tensor | None], int]:
    if isinstance(grads, Tensor):
        return "tensor", [grads], grads.shape[-2]
    rows = list(grads)
    if isinstance(rows[0], Tensor):
        return "vectors", rows, len(rows)
    return "parameters", [tensor for column in zip(*rows, strict=True) for tensor in column], len(rows)


def _restored(tensors: Sequence[Tensor | None], m: int, form: str) -> Any:
    if form == "tensor":
        return tensors[0]
    return list(tensors) if form == "vectors" else [list(tensors[i::m]) for i in range(m)]


@torch.library.custom_op("fastconfig::merge", mutates_args=())
def _merge(
    tensors: Sequence[Optional[Tensor]],  # noqa: UP045  # what the schema is read from
    m: int,
    form: str,
    method: str,
    length: str,
    track_id: int,
    order: Optional[Tensor],  # noqa: UP045
    mean: bool,
    rcond: Optional[float],  # noqa: UP045
) -> List[Tensor]:  # noqa: UP006  # what torch 2.6 reads
    rows = Gradients(_restored(tensors, m, form))
    rule = make_rule(
        method,
        m,
        float64_device(rows.device),
        batch=rows.batch,
        length=length,
        track_id=track_id,
        order=order,
        reduction=REDUCTIONS[mean],
        rcond=rcond,
    )
    return _pieces(merge(rows, rule, rows.new_update(apart=True)))  # what it returns must not alias


def _pieces(update: Update) -> list[Tensor]:
    return [update] if isinstance(update, Tensor) else [piece for piece in update if piece is not None]


@_merge.register_fake
def _(
    tensors: Sequence[Tensor | None],
    m: int,
    form: str,
    method: str,
    length: str,
    track_id: int,
    order: Tensor | None,
    mean: bool,
    rcond: float | None,
) -> list[Tensor]:
    rows = Gradients(_restored(tensors, m, form))
    return _pieces(rows.as_given(rows.new_update(apart=True)))
