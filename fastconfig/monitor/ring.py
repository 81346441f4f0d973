"""Where a monitor keeps its steps: a ring of rows in the host's memory, and one on a device before it.

A row is the number of the step, G, c and the losses, all float64.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..numbers import capturing, sent

FloatArray = npt.NDArray[np.float64]

_DEVICE_BYTES = 8 << 20  # of a ring on a device
_LEAST = 64  # steps that it holds at least
_STEP, _STORED = 4, 5  # the words that count, after m, every, slots and where the rows lie: csrc/ring.hpp


def width(m: int) -> int:
    """Numbers of a row of m gradients."""
    return 1 + m * m + 2 * m


def split(rows: FloatArray, m: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Steps (n,), G (n, m, m), c (n, m) and losses (n, m) of rows (n, width)."""
    gram, c, losses = np.split(rows[:, 1:], [m * m, m * m + m], axis=1)
    return rows[:, 0], gram.reshape(len(rows), m, m), c, losses


class HostRing:
    """The last ``keep`` rows in the host's memory, which takes them up as they come.

    Attributes:
        address: of the words that compiled code reads and counts up.
    """

    def __init__(self, m: int, every: int, keep: int) -> None:
        self.m, self.every, self.keep = m, every, keep
        self.values = np.empty((keep, width(m)))
        self._words = array("q", [m, every, keep, self.values.ctypes.data, 0, 0])
        self.address = self._words.buffer_info()[0]

    @property
    def step(self) -> int:
        """The number of the next step."""
        return self._words[_STEP]

    @step.setter
    def step(self, step: int) -> None:
        self._words[_STEP] = step

    @property
    def stored(self) -> int:
        """How many rows have come in all."""
        return self._words[_STORED]

    def record(self, gram: Tensor, c: Tensor, losses: list[float] | None) -> None:
        """The next step, of tensors in the host's memory."""
        step = self._words[_STEP]
        self._words[_STEP] = step + 1
        if step % self.every == 0:
            m = self.m
            row = self.values[self._slot()]
            row[0] = step
            row[1 : 1 + m * m] = gram.numpy().reshape(-1)
            row[1 + m * m : 1 + m * m + m] = c.numpy()
            row[1 + m * m + m :] = np.nan if losses is None else losses

    def add_losses(self, step: int, losses: list[float]) -> None:
        """The losses of a step that compiled code has just stored; nothing if it was left out."""
        last = self.values[(self.stored - 1) % self.keep]
        if self.stored and last[0] == step:
            last[-self.m :] = losses

    def extend(self, rows: FloatArray) -> None:
        """Rows as they are, from another ring."""
        kept = rows[-self.keep :]
        self.values[(self.stored + np.arange(len(kept))) % self.keep] = kept
        self._words[_STORED] += len(kept)

    def rows(self, since: int = 0) -> FloatArray:
        """A copy of what is kept of the rows from number ``since`` on, oldest first."""
        first = max(since, self.stored - self.keep, 0)
        return self.values[np.arange(first, self.stored) % self.keep]

    def _slot(self) -> int:
        stored = self._words[_STORED]
        self._words[_STORED] = stored + 1
        return stored % self.keep


class DeviceRing:
    """Rows on a device, written by its own operations: nothing waits for it, in a CUDA graph either.

    Counters are on the device, since the host does not see the replays of a graph. A copy of the ring is
    fetched when half of it is new, and taken up when the next half is.
    """

    def __init__(self, m: int, every: int, keep: int, device: torch.device, step: int) -> None:
        if capturing(device):
            raise RuntimeError(
                "monitor: got its first step in the capture of a CUDA graph, want one step before it"
            )
        self.m, self.every, self.device = m, every, device
        self.slots = max(min(keep, _DEVICE_BYTES // (8 * width(m))), _LEAST)
        # the last row takes what is not kept
        self.values = torch.zeros(self.slots + 1, width(m), dtype=torch.float64, device=device)
        self.counters = sent(torch.tensor([step, 0], dtype=torch.int64, device="cpu"), device)
        self._read = 0  # rows that the host has
        self._calls = 0  # that the host has seen since the last copy
        self._copy: Any = None

    @torch.no_grad()
    def record(self, gram: Tensor, c: Tensor, losses: Tensor | None) -> None:
        """The next step, of tensors on the device."""
        if losses is None:
            losses = torch.full((self.m,), torch.nan, dtype=torch.float64, device=self.device)
        step, stored = self.counters[:1], self.counters[1:]
        row = torch.cat((step.double(), gram.reshape(-1), c, losses))
        slot = stored.remainder(self.slots)
        if self.every == 1:
            self.values.index_copy_(0, slot, row[None])
            self.counters.add_(1)
            return
        due = step.remainder(self.every) == 0
        self.values.index_copy_(0, torch.where(due, slot, self.slots), row[None])
        step.add_(1)
        stored.add_(due)

    def pass_step(self) -> None:
        """Count a step that nothing is known of."""
        self.counters[:1].add_(1)

    def set_step(self, step: int) -> None:
        """The number of the next step."""
        self.counters[:1].fill_(step)

    def fetch_block(self, host: HostRing) -> None:
        """Take up the last copy and start a new one, once half a ring is new; neither waits."""
        self._calls += 1
        if 2 * self._calls >= self.slots * self.every and not capturing(self.device):
            self._take_up(host)  # that was copied half a ring ago
            self._copy, self._calls = self._copied(), 0

    def fetch(self, host: HostRing) -> None:
        """All rows that the host has not; waits for the device."""
        self._take_up(host)
        self._copy, self._calls = self._copied(), 0
        self._take_up(host)

    def _copied(self) -> tuple[Tensor, Tensor, Any]:
        if self.device.type != "cuda":
            return self.values.cpu().clone(), self.counters.cpu().clone(), None
        pinned = [torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True) for t in self._tensors()]
        with torch.cuda.device(self.device):
            for target, source in zip(pinned, self._tensors(), strict=True):
                target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return pinned[0], pinned[1], event

    def _tensors(self) -> tuple[Tensor, Tensor]:
        return self.values, self.counters

    def _take_up(self, host: HostRing) -> None:
        if self._copy is None:
            return
        values, counters, event = self._copy
        self._copy = None
        if event is not None:
            event.synchronize()
        step, stored = counters.tolist()
        first = max(self._read, stored - self.slots)
        host.extend(values.numpy()[np.arange(first, stored) % self.slots])
        host.step, self._read = step, stored
