"""Checks of a call's rows; errors name the wrong row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..numbers import DTYPES, dtype_names
from ..transforms import refuse_transforms
from .shards import Shards


def names_of(argument: str | Sequence[str], m: int) -> Sequence[str]:
    return [f"{argument}[{i}]" for i in range(m)] if isinstance(argument, str) else argument


def check_no_group(shards: Shards | None, argument: str | Sequence[str]) -> None:
    if shards is not None and shards.group is not None:
        raise ValueError(
            f"{argument}: got DTensors and a process_group, want one: DTensors say how they are spread"
        )


def dense(row: Any) -> Any:
    """A row with sparse tensors, which embeddings give, made dense."""
    if isinstance(row, Tensor):
        return row if row.layout is torch.strided else row.to_dense()
    return tuple(map(dense, row)) if isinstance(row, (list, tuple)) else row


def check_dense(tensor: Tensor, name: str, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    refuse_transforms(name)
    if tensor.layout is not torch.strided:
        refuse(name, f"a sparse tensor ({tensor.layout})", "a dense one: call .to_dense() first")
    if tensor.dtype not in dtypes:
        refuse(name, f"dtype {tensor.dtype}", f"one of {dtype_names(dtypes)}")


def refuse_mixed(tensor: Tensor, first: Tensor, name: str, first_name: str) -> NoReturn:
    check_dense(tensor, name)
    if tensor.dtype != first.dtype:
        refuse(name, f"dtype {tensor.dtype}", f"{first.dtype} like {first_name}")
    raise ValueError(f"{name}: got device {tensor.device}, want {first.device} like {first_name}")


def refuse(name: str, got: str, wanted: str) -> NoReturn:
    raise TypeError(f"{name}: got {got}, want {wanted}")


def kind_of(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
