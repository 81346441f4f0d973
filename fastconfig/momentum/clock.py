"""Counts how many gradients each loss has had, on the host and on a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numbers import float64_device


class Clock:
    """Counts the gradients of each loss, and the updates.

    On a CUDA device the counters live there, so that a CUDA graph counts its replays.

    Attributes:
        counts: gradients of each loss, as far as the host knows.
        updates: updates, as far as the host knows.
    """

    _uncounted: tuple[int, ...] = ()  # counted by the host and not yet by the device

    def __init__(self, m: int, beta_1: float, beta_2: float) -> None:
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.counts = [0] * m
        self.updates = 0
        self._steps: Tensor | None = None

    @property
    def on_host(self) -> bool:
        """Whether only the host counts."""
        return self._steps is None

    def set_steps(self, steps: Tensor | None) -> None:
        """Count in (m + 2) int64 on a device (counts, updates, updates), or with None on the host only."""
        self._steps, self._uncounted = steps, ()

    def counted_steps(self) -> Tensor | None:
        """The device's counters, brought up to the host's."""
        if self._steps is not None and self._uncounted:
            each = self._steps.unbind()
            counted = [each[i] for i in self._uncounted] + list(each[-2:] if self.complete else ())
            torch._foreach_add_(counted, 1)  # one launch
        self._uncounted = ()
        return self._steps

    def leave_to_kernel(self) -> Tensor | None:
        """The device's counters as they are, for a kernel that counts this step itself."""
        self._uncounted = ()
        return self._steps

    @property
    def complete(self) -> bool:
        """Whether every loss has had a gradient."""
        return 0 not in self.counts

    def tick(self, chosen: Sequence[int]) -> None:
        """Count a step's gradients, and an update once every loss has one; the device catches up later."""
        self.counted_steps()
        for i in chosen:
            self.counts[i] += 1
        self.updates += self.complete
        self._uncounted = tuple(chosen)

    def values(self) -> list[float]:
        """1 - beta_1^t for the count t of each loss; then 1 - beta_1^t and 1 - beta_2^t for the updates."""
        first = [1 - self.beta_1**t for t in (*self.counts, self.updates)]
        return [*first, 1 - self.beta_2**self.updates]

    def decayed(self, device: torch.device) -> Tensor:
        """:meth:`values`, (m + 2) float64 on a device, without waiting for it."""
        steps = self.counted_steps()
        if steps is None:
            return torch.tensor(self.values(), dtype=torch.float64, device=float64_device(device))
        first = 1 - self.beta_1 ** steps[:-1].double()
        return torch.cat([first, 1 - self.beta_2 ** steps[-1:].double()])

    def decayed_second(self, device: torch.device) -> Tensor:
        """1 - beta_2^t for the count t of each loss, (m) float64 on a device, without waiting for it."""
        steps = self.counted_steps()
        if steps is None:
            values = [1 - self.beta_2**t for t in self.counts]
            return torch.tensor(values, dtype=torch.float64, device=float64_device(device))
        return 1 - self.beta_2 ** steps[:-2].double()

    def move(self, device: torch.device) -> None:
        """Count on this device from now on, if it runs asynchronously."""
        self.read()
        steps = [*self.counts, self.updates, self.updates]
        on_device = device.type == "cuda"
        self.set_steps(torch.tensor(steps, dtype=torch.int64, device=device) if on_device else None)

    def read(self) -> None:
        """Copy the device's counters to the host; waits for it."""
        steps = self.counted_steps()
        if steps is not None:
            *self.counts, self.updates, _ = steps.tolist()
