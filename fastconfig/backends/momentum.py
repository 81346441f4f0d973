"""A momentum step in plain PyTorch around a backend's own gram, coefficients and combine."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..gradients import Update
from ..methods import Rule
from ..momentum.step import EPSILON, Step
from ..numbers import float64_device
from .base import Backend, block_elements


class TorchMomentum(Backend, Protocol):
    """A backend without kernels of its own for :class:`Step`."""

    @torch.no_grad()
    def accumulate(self, step: Step) -> None:
        step.clock.count()
        beta = step.clock.beta_1
        for rows, given in zip(step.momenta.segments, step.grads, strict=True):
            for i, gradient in zip(step.chosen, given, strict=True):
                row = rows[i]
                if row is not None and gradient is not None:
                    row.lerp_(gradient.to(row.dtype), 1 - beta)
                elif row is not None:
                    row.mul_(beta)

    @torch.no_grad()
    def momentum_update(self, step: Step, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        self.accumulate(step)
        momenta = step.momenta
        corrections = 1 / step.clock.decayed(step.device)[:-2]
        gram = self.gram(momenta) * corrections * corrections[:, None]
        c = corrections * self.coefficients(gram, rule, momenta, losses)
        merged = out if step.dtype is momenta.dtype else momenta.new_update()
        self.combine(momenta, c, merged)
        self.rescale(step, merged, out)

    @torch.no_grad()
    def rescale(self, step: Step, merged: Update, out: Update) -> None:
        work = float64_device(step.device)
        beta_1, beta_2 = step.clock.beta_1, step.clock.beta_2
        width = block_elements(work)
        first, second = step.clock.decayed(step.device)[-2:]
        flat = (step.momenta.split(merged), step.fake, step.second, step.momenta.split(out))
        for column in zip(*flat, strict=True):
            for start in range(0, len(column[0]), width):
                u, fake, square, target = (tensor[start : start + width] for tensor in column)
                u = u.to(work, torch.float64)
                now = u * first
                gradient = (now - beta_1 * fake.to(now)) / (1 - beta_1)
                fake.copy_(now)
                estimate = beta_2 * square.to(now) + (1 - beta_2) * gradient.square()
                square.copy_(estimate)
                target.copy_(u / ((estimate / second).sqrt() + EPSILON))
