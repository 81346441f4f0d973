"""What a monitor is given beside Gram matrices: names, numbers and losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..checks import as_tensor, whole


def in_groups(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures of groups of parameters by names that begin with the group's."""
    return {
        key if key == "step" else f"{group}/{key}": value
        for group, found in figures.items()
        for key, value in found.items()
    }


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    wanted = "want one different name a loss, such as ['residual', 'boundary']"
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise TypeError(f"names: got {names!r}, {wanted}")
    listed = tuple(names)
    if not all(isinstance(name, str) for name in listed):
        raise TypeError(f"names: got {listed!r}, {wanted}")
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"names: got {list(listed)!r}, {wanted}")
    return listed


def at_least_1(argument: str, value: int) -> int:
    if whole(argument, value) < 1:
        raise ValueError(f"{argument}: got {value}, want at least 1")
    return int(value)


def _listed(losses: Any, m: int) -> Tensor | list[Any]:
    found = losses.detach().reshape(-1) if isinstance(losses, Tensor) else list(losses)
    if len(found) != m:
        raise ValueError(f"losses: got {len(found)}, want {m}, one a gradient")
    return found


def numbers_of(losses: Any, m: int) -> list[float] | None:
    return None if losses is None else [_number(loss) for loss in _listed(losses, m)]


def _number(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


def tensor_of(losses: Any, m: int, device: torch.device) -> Tensor:
    """(m,) float64 on a device, for which nothing waits if they are there already."""
    found = _listed(losses, m)
    if isinstance(found, Tensor):
        return found.to(device, torch.float64)
    tensors = [
        as_tensor(f"losses[{i}]", x, "a number", torch.float64).detach().reshape(()).to(device, torch.float64)
        for i, x in enumerate(found)
    ]
    return torch.stack(tensors)
