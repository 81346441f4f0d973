"""GPU: the kernels of kernels/triton; no host synchronisation, no gradient is copied."""

from __future__ import annotations

import subprocess
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from .. import backends
from ..gradients import Gradients, Update
from ..kernels.triton.coefficients import METHODS
from ..kernels.triton.shapes import MOST, SMALL
from ..methods.base import Rule
from ..momentum.step import Step
from .base import Backend, BackendUnavailable, device_cutoff
from .pytorch import PyTorchBackend
from .triton_launch import INTERPRETED, VERSION, Call, captured_table, solve, uses_float64

_OLDEST = (3, 2)
_FLOAT64_TILES = (3, 5)  # the first Triton that multiplies float64 tiles
_PROBLEMS = 65535  # of a batch: what a grid's second dimension holds
_FAR = 1 << 31  # elements
_TABLES = 16  # address tables that are kept

# What stops Triton from compiling: no C compiler for its launcher, no room on the device, a bug of its own.
_FAILURES = (TritonError, ImportError, OSError, subprocess.CalledProcessError)


def _why(error: Exception) -> str | None:
    """What to tell of an error if Triton could not compile; None for any other."""
    if isinstance(error, _FAILURES):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, RuntimeError) and "compiler" in str(error):
        return str(error)
    return None


def _or_pytorch(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the backend; plain PyTorch's beyond what it takes, and where Triton fails to compile."""

    @wraps(step)
    def run(self: TritonBackend, *given: Any) -> Any:
        grads = next(each for each in given if isinstance(each, Gradients))
        if self.takes(grads):
            try:
                return step(self, *given)
            except Exception as error:
                reason = _why(error)
                if reason is None:
                    raise
                backends.registry.withdraw(self.name, reason)
        backends.registry.last = self._pytorch
        return getattr(self._pytorch, step.__name__)(*given)

    return run


class TritonBackend(Backend):
    """Gram, coefficients and combine in Triton.

    Beyond ``most`` gradients (64; 8 before Triton 3.5) plain PyTorch serves.
    """

    name = "triton"

    def __init__(self) -> None:
        if VERSION < _OLDEST:
            raise RuntimeError(f"Triton is {triton.__version__}, want 3.2 or newer")
        self.most = MOST if VERSION >= _FLOAT64_TILES else SMALL
        self._tables: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._ready: set[int] = set()  # devices that captured_table has run on
        self._pytorch = PyTorchBackend()

    def takes(self, grads: Gradients) -> bool:
        """Whether the kernels serve these; else plain PyTorch does."""
        if grads.m > self.most or (grads.batch or 0) > _PROBLEMS:
            return False
        # gram counts columns behind the end of a row in 32 bits, and a missing row ends at once
        return grads.n < _FAR or not any(row is None for segment in grads.segments for row in segment)

    def unsupported(self, grads: Gradients) -> str | None:
        if grads.device_type == "cuda" or (INTERPRETED and grads.device_type == "cpu"):
            return None
        return f"it serves CUDA devices, the gradients are on {grads.device}"

    def unsupported_device(self, device: torch.device) -> str | None:
        served = device.type == "cuda" or (INTERPRETED and device.type == "cpu")
        return None if served else f"it serves CUDA devices, not {device}"

    @_or_pytorch
    def gram(self, grads: Gradients) -> Tensor:
        with _on(grads.device):
            call = Call(grads, None, self.table)
            return call.gram(call.partials())

    @_or_pytorch
    def coefficients(
        self, gram: Tensor, rule: Rule, grads: Gradients, losses: Tensor | None = None
    ) -> Tensor:
        if rule.native not in METHODS:
            return super().coefficients(gram, rule, grads, losses)
        with _on(grads.device):
            rcond = device_cutoff(rule, grads.dtype, uses_float64(grads.device))
            return solve(gram.contiguous(), rule, rcond)

    @_or_pytorch
    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        with _on(grads.device):
            Call(grads, out, self.table).combine(c.contiguous())

    @_or_pytorch
    def update(self, grads: Gradients, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        if rule.native not in METHODS:
            super().update(grads, rule, out, losses)
            return
        with _on(grads.device):
            Call(grads, out, self.table).update(rule)

    def momentum_update(self, step: Step, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        try:
            super().momentum_update(step, rule, out, losses)
        except BackendUnavailable:  # the momenta are averaged by now: finish the step
            averaged = replace(step, chosen=(), grads=[[] for _ in step.grads])
            self._pytorch.momentum_update(averaged, rule, out, losses)
            raise

    def table(self, words: list[int], device: torch.device) -> Tensor:
        """int64 words in device memory, without waiting for the device."""
        if device.type == "cpu":
            return torch.tensor(words, dtype=torch.int64, device="cpu")
        if torch.cuda.is_current_stream_capturing():
            return captured_table(words, device)
        index = device.index or 0
        if index not in self._ready:
            # in a CUDA graph's capture, where it is called for, a driver does not load a kernel
            captured_table([0], device)
            self._ready.add(index)
        key = (torch.cuda.current_stream(device).cuda_stream, index, *words)
        found = self._tables.get(key)
        if found is None:
            pinned = torch.tensor(words, dtype=torch.int64, device="cpu", pin_memory=True)
            found = self._tables[key] = pinned.to(device, non_blocking=True)
            if len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(key)
        return found


def _on(device: torch.device) -> torch.cuda.device:
    """Triton launches on the current device; nothing to do for -1."""
    return torch.cuda.device(device if device.type == "cuda" else -1)
