"""The door between the methods and the hardware."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..gradients import Gradients, GradientsLike, Update
from ..methods.base import Rule
from ..momentum.step import EPSILON, Plain, Step
from ..numbers import float64_device


class Backend(ABC):
    """What serves gram, coefficients, combine, the whole update and momentum steps on some device.

    All but gram and combine has a default here, made of these and of plain PyTorch.
    """

    name: str

    @abstractmethod
    def unsupported(self, grads: Gradients) -> str | None:
        """Why these gradients cannot be served, or None."""

    def unsupported_device(self, device: torch.device) -> str | None:
        """Why no gradients on this device can be served, or None."""
        return None

    @abstractmethod
    def gram(self, grads: Gradients) -> Tensor:
        """(m, m) or (B, m, m) float64 products of the gradients, on their device."""

    def coefficients(
        self, gram: Tensor, rule: Rule, grads: Gradients, losses: Tensor | None = None
    ) -> Tensor:
        """(m,) or (B, m) float64: by torch operations or on the host, where a backend has nothing faster."""
        return rule.served_by(self, gram, grads, losses)

    @abstractmethod
    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        """Write sum_i c_i g_i to ``out``, which has the form of ``grads.new_update()``."""

    def update(self, grads: Gradients, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        """The three steps: at once, where the backend has the rule in compiled code."""
        gram = self.gram(grads)
        self.combine(grads, self.coefficients(gram, rule, grads, losses), out)

    def update_groups(
        self, grads: Gradients, groups: list[list[int]], rules: list[Rule], out: Update
    ) -> bool:
        """The updates of groups of parameters, each by its own Gram matrix and rule, if there is one call.

        Args:
            grads: per-parameter lists of one dtype and device, all in this process.
            groups: of each group the places of its parameters.
            rules: one a group, in compiled code.
            out: as in :meth:`update`.

        Returns:
            Whether it was done.
        """
        return False

    def short_update(self, grads: GradientsLike, rule: Rule, ring: int = 0) -> Update | None:
        """Merge short gradients in one call; None if not applicable.

        Args:
            ring: address of the words of a monitor's ring, which takes the step; 0 for none.
        """
        return None

    def merge_into(
        self, rows: list[Sequence[Tensor | None]], parameters: list[Tensor], rule: Rule, ring: int = 0
    ) -> list[Tensor] | None:
        """Merge short per-parameter gradients straight into ``.grad``.

        Returns:
            The tensors written, one for each parameter that any loss reaches; None if not applicable.
        """
        return None

    def short_step(self, state: Plain, indexes: Any, grads: Any, rule: Rule, ring: int = 0) -> Tensor | None:
        """Take a whole momentum step in one call; None if not applicable."""
        return None

    @torch.no_grad()
    def accumulate(self, step: Step) -> None:
        """m_i <- beta_1 m_i + (1 - beta_1) g_i for the gradients that came."""
        step.clock.counted_steps()
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
        """:meth:`accumulate`, merge the bias-corrected momenta, and :meth:`rescale` to ``out``.

        Bytes, in vectors of N elements: a pass reads m momenta and k gradients and writes k momenta; a pass
        reads m momenta and two vectors and writes these two and the result.
        """
        self.accumulate(step)
        self.merge_and_rescale(step, rule, out, losses)

    @torch.no_grad()
    def merge_and_rescale(self, step: Step, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        """Merge the momenta and rescale the result: the part of a step after :meth:`accumulate`."""
        momenta = step.momenta
        corrections = 1 / step.clock.decayed(step.device)[:-2]
        gram = self.gram(momenta) * corrections * corrections[:, None]
        c = corrections * self.coefficients(gram, rule, momenta, losses)
        merged = out if step.dtype is momenta.dtype else momenta.new_update()
        self.combine(momenta, c, merged)
        self.rescale(step, merged, out)

    @torch.no_grad()
    def rescale(self, step: Step, merged: Update, out: Update) -> None:
        """Second moment from ``merged`` u, then u / (sqrt(second) + 1e-8) to ``out``.

        fake_t = (1 - beta_1^t) u; the gradient that u would have taken is (fake_t - beta_1 fake_(t-1)) /
        (1 - beta_1), and second <- beta_2 second + (1 - beta_2) times its square. ``merged`` has the form and
        dtype of ``step.momenta.new_update()``, ``out`` the gradients' dtype; they may be the same.
        """
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


def block_elements(device: torch.device) -> int:
    """Elements of a float64 block that plain PyTorch takes at a time: on a CPU it stays in cache."""
    return 1 << 16 if device.type == "cpu" else 1 << 22


_CHAIN_CUTOFF = 1e-7  # smallest eigenvalue that float32 chains of products resolve


def device_cutoff(rule: Rule, dtype: torch.dtype, float64: bool) -> float:
    """The eigenvalue cut-off; not below what float32 products resolve, where a device takes those."""
    smallest = rule.cutoff(dtype)
    if rule.rcond is None and dtype is not torch.float64 and not float64:
        return max(smallest, _CHAIN_CUTOFF)
    return smallest


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run; the message says why.

    Examples:
        >>> try:
        ...     fastconfig.use_backend("cuda")
        ... except fastconfig.BackendUnavailable as error:
        ...     reason = str(error)
    """
