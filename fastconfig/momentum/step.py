"""One step of a momentum operator as the backends see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..gradients import Gradients
from .clock import Clock

EPSILON = 1e-8  # beside the root of a second moment
#: momenta, then second and fake; products of the momenta; what counts them
Plain: TypeAlias = tuple[list[Any], Tensor, Clock]


@dataclass
class Step:
    """One step as a backend sees it: flat tensors, a segment of :attr:`momenta` after the other.

    Attributes:
        momenta: m rows of the state, written in place.
        second: for each segment the second moment (n_s,), written in place.
        fake: for each segment the last merged momentum (n_s,) times 1 - beta_1^t, written in place.
        chosen: which k of the momenta are updated, all different.
        grads: for each segment their k gradients (n_s,) of any stride; None counts as zeros.
        dtype: that of the gradients and of the result.
        clock: has counted this step already; has the betas.
        kept: for a backend to keep things from step to step, as long as the state's tensors do not move.
        known: (m, m) float64 on the CPU, products of the momenta before this step; None if unknown.
        gram: the products after it, from a backend that keeps them, possibly in the same memory.
    """

    momenta: Gradients
    second: list[Tensor]
    fake: list[Tensor]
    chosen: tuple[int, ...]
    grads: list[list[Tensor | None]]
    dtype: torch.dtype
    clock: Clock
    kept: dict[str, Any]
    known: Tensor | None = None
    gram: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.momenta.device
