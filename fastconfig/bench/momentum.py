"""Steps of M-ConFIG, one gradient a call in turn: this package's, conflictfree's, and one in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..gradients import GradientsLike
from ..momentum.step import EPSILON
from ..momentum_operator import PseudoMomentumOperator

MOMENTUM = "PseudoMomentumOperator"
#: m -> one step: the index of a gradient and the gradient
Maker = Callable[[int], Callable[[int, Any], Any]]


def schedule(m: int) -> Iterator[tuple[int, int]]:
    """Whose turn it is, and which gradient it is given, in the steps that are held against the oracle."""
    yield from ((i, i) for i in range(m))
    yield from ((i, (i + 1) % m) for i in range(min(m, 3)))


class Steps:
    """A call is a step with one gradient; the first one makes the state, with all gradients.

    Args:
        make: a new operator.
        grads: m gradients in any form.
        flat: give per-parameter gradients as vectors, to who knows no others.
    """

    def __init__(self, make: Maker, grads: GradientsLike, *, flat: bool) -> None:
        self.make = make
        self.rows: list[Any] = list(grads)
        self.flat = flat and not isinstance(self.rows[0], Tensor)
        self.step: Callable[[int, Any], Any] | None = None
        self.turn = 0

    def gradient(self, i: int) -> Any:
        row = self.rows[i]
        return torch.cat([tensor.reshape(-1) for tensor in row if tensor is not None]) if self.flat else row

    def __call__(self) -> Any:
        m = len(self.rows)
        if self.step is None:
            self.step = self.make(m)
            for i in range(m):
                self.step(i, self.gradient(i))
        self.turn = (self.turn + 1) % m
        return self.step(self.turn, self.gradient(self.turn))

    def answer(self) -> Any:
        """The last update of :func:`schedule` by a new operator."""
        step, result = self.make(len(self.rows)), None
        for i, j in schedule(len(self.rows)):
            result = step(i, self.gradient(j))
        return result


def ours(m: int) -> Callable[[int, Any], Any]:
    return PseudoMomentumOperator(m).calculate_gradient


class PlainMomentum:
    """The algorithm in torch's own operations: momenta as one tensor, merged through their Gram matrix."""

    def __init__(self, m: int, merge: Callable[[Tensor], Tensor]) -> None:
        self.merge = merge
        self.counts, self.updates = [0] * m, 0
        self.momenta: Tensor | None = None

    @torch.no_grad()
    def __call__(self, i: int, row: Tensor) -> Tensor:
        if self.momenta is None:
            self.momenta = row.new_zeros(len(self.counts), len(row))
            self.second, self.fake = torch.zeros_like(row), torch.zeros_like(row)
        self.counts[i] += 1
        self.momenta[i].lerp_(row, 0.1)
        if 0 in self.counts:
            return torch.zeros_like(row)
        self.updates += 1
        decayed = torch.tensor([1 - 0.9**t for t in self.counts], dtype=row.dtype, device=row.device)
        u = self.merge(self.momenta / decayed[:, None])
        fake = u * (1 - 0.9**self.updates)
        gradient = fake.sub(self.fake, alpha=0.9).div_(0.1)
        self.fake = fake
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        return u.div_((self.second / (1 - 0.999**self.updates)).sqrt_().add_(EPSILON))
