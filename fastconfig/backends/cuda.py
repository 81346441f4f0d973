"""CUDA: the compiled kernels of kernels/cuda, one C++ call an update; no host synchronisation, no copies."""

from __future__ import annotations

import importlib
import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..gradients import TYPES, Gradients, GradientsLike, Update
from ..methods.base import Rule
from ..momentum.step import Step
from ..numbers import DTYPES, KINDS
from .base import Backend, device_cutoff
from .table import address, entries, tensor_entry

_GRAM, _COMBINE = 1, 2  # steps of _cuda.run
_ACCUMULATE, _RESCALE = 1, 2  # parts of _cuda.momentum
_NOTHING = nullcontext()
_NO_TABLES = bytearray(8), None  # of groups, which compiled code asks to be larger
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class CudaBackend(Backend):
    """Gram, coefficients, combine, the fused update and momentum steps in CUDA, for up to 64 gradients.

    FASTCONFIG_CUDA_ONE_LAUNCH=0 turns the update in one launch off, FASTCONFIG_CUDA_OVERLAP=0 launches that
    begin before the one they follow has ended.

    Raises:
        RuntimeError: if fastconfig was built without CUDA, or there is no driver or device; with the reason.
    """

    name = "cuda"

    def __init__(self) -> None:
        try:
            _cuda = importlib.import_module("fastconfig._cuda")
        except ModuleNotFoundError:
            raise RuntimeError("built without CUDA (there was no nvcc, or FASTCONFIG_CUDA=OFF)") from None
        problem = _cuda.problem()
        if problem is not None:
            raise RuntimeError(problem)
        exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)  # torch 2.10 or newer
        self._emulated = _cuda.device_type == "cpu"  # in tests
        if exchange is not None:
            _cuda.attach(exchange, None if self._emulated else torch._C._cuda_getDevice)
        on = [os.environ.get(f"FASTCONFIG_CUDA_{name}") != "0" for name in ("ONE_LAUNCH", "OVERLAP")]
        _cuda.options(*on)
        self._cuda = _cuda
        self._reads_tensors = exchange is not None
        # of a device: whether it computes float64 at a usable rate; or why it is not served
        self._float64: dict[int, bool | str] = {}
        self._scratch: dict[tuple[int, int], Tensor] = {}  # device and stream -> bytes
        # the same of groups, with what the host knows of its first bytes: the last tables
        self._tables: dict[tuple[int, int], tuple[bytearray, Tensor | None]] = {}

    def unsupported(self, grads: Gradients) -> str | None:
        if grads.device_type != self._cuda.device_type:
            return f"it serves CUDA devices, the gradients are on {grads.device}"
        float64 = self._device(grads.device.index or 0)
        if isinstance(float64, str):
            return float64
        most = self._cuda.most if float64 else self._cuda.few
        if grads.m > most:
            return f"it takes up to {most} gradients on this device, got {grads.m}"
        return None

    def unsupported_device(self, device: torch.device) -> str | None:
        if device.type != self._cuda.device_type:
            return f"it serves CUDA devices, not {device}"
        float64 = self._device(device.index or 0)
        return float64 if isinstance(float64, str) else None

    def gram(self, grads: Gradients) -> Tensor:
        gram = torch.empty(*grads.batch_shape, grads.m, grads.m, dtype=torch.float64, device=grads.device)
        self._run(grads, None, _GRAM, gram=gram.data_ptr())
        return gram

    def coefficients(
        self, gram: Tensor, rule: Rule, grads: Gradients, losses: Tensor | None = None
    ) -> Tensor:
        if rule.native is None:
            return super().coefficients(gram, rule, grads, losses)
        gram, m = gram.contiguous(), grads.m
        c = torch.empty(gram.shape[:-1], dtype=torch.float64, device=gram.device)
        index = gram.device.index or 0
        given = gram.data_ptr(), c.data_ptr(), m, c.numel() // m, index
        last = rule.native_address, self._cutoff(grads, rule)
        self._launch(gram.device, lambda *memory: self._cuda.solve(*given, *memory, *last))
        return c

    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        self._run(grads, out, _COMBINE, c=c.contiguous().data_ptr())

    def update(self, grads: Gradients, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        if rule.native is not None:
            self._run(grads, out, _GRAM + _COMBINE, rule.native_address, rcond=self._cutoff(grads, rule))
        else:
            super().update(grads, rule, out, losses)

    def update_groups(
        self, grads: Gradients, groups: list[list[int]], rules: list[Rule], out: Update
    ) -> bool:
        if not rules:
            return True
        rows: Any = grads.rows
        if not (self._reads_tensors and grads.plain):
            rows = array("q", [word for entry in entries(grads, out) for word in entry])
            present = [p for p, shape in enumerate(grads.shapes) if shape is not None]
            numbers = {p: number for number, p in enumerate(present)}
            groups = [[numbers[p] for p in places if p in numbers] for places in groups]
        index = grads.device.index or 0
        given = rows, out, groups, [rule.native_address for rule in rules], grads.m, KINDS[grads.dtype], index
        rcond = self._cutoff(grads, rules[0])
        with self._on(index):
            stream = self._stream(index)
            key = None if self._capturing() else (index, stream)  # a CUDA graph has memory of its own
            known, memory = _NO_TABLES if key is None else self._tables.get(key, _NO_TABLES)
            where = (0, 0) if memory is None else (memory.data_ptr(), memory.numel())
            done = self._cuda.run_groups(*given, known, rcond, stream, *where)
            if isinstance(done, tuple):
                known, size = bytearray(done[0]), done[1]
                memory = torch.empty(size, dtype=torch.uint8, device=grads.device)
                if key is not None:
                    self._tables[key] = known, memory
                done = self._cuda.run_groups(*given, known, rcond, stream, memory.data_ptr(), size)
        return done is None

    def short_update(self, grads: GradientsLike, rule: Rule, ring: int = 0) -> Update | None:
        if ring:  # which is in the host's memory
            return None
        return self._cuda.update(grads, TYPES, rule.native_address, _cutoffs(rule), self._scratch)

    def merge_into(
        self, rows: list[Sequence[Tensor | None]], parameters: list[Tensor], rule: Rule, ring: int = 0
    ) -> list[Tensor] | None:
        if ring:
            return None
        last = TYPES, rule.native_address, _cutoffs(rule), self._scratch
        return self._cuda.merge_into(rows, parameters, *last)

    def accumulate(self, step: Step) -> None:
        self._step(step, _state_words(step), None, _ACCUMULATE)

    def momentum_update(self, step: Step, rule: Rule, out: Update, losses: Tensor | None = None) -> None:
        if rule.native is not None:
            last = rule.native_address, self._cutoff(step.momenta, rule)
            self._step(step, _state_words(step), out, _ACCUMULATE + _RESCALE, *last)
        else:
            super().momentum_update(step, rule, out, losses)

    def rescale(self, step: Step, merged: Update, out: Update) -> None:
        words = array("q")
        for u, second, fake in zip(_addresses(merged), step.second, step.fake, strict=True):
            words.extend((second.numel(), u, second.data_ptr(), fake.data_ptr()))
        self._step(step, words, out, _RESCALE)

    def _step(
        self,
        step: Step,
        state: array[int],
        out: Update | None,
        parts: int,
        rule: int = 0,
        rcond: float = 0.0,
    ) -> None:
        clock, momenta = step.clock, step.momenta
        accumulates = parts != _RESCALE
        chosen = step.chosen if accumulates else ()
        given = array("q", chosen)
        for s, target in enumerate([0] * len(step.second) if out is None else _addresses(out)):
            given.append(target)
            if accumulates:
                gradients = step.grads[s]
                given.extend([0 if gradient is None else address(gradient) for gradient in gradients])
                given.extend([1 if gradient is None else gradient.stride(0) for gradient in gradients])
        m = momenta.m if accumulates else 1
        steps = clock.leave_to_kernel() if accumulates else None
        # those of a row that is merged already are the updates' alone
        decayed = clock.decayed(step.device)[momenta.m - m :] if steps is None else steps
        shape = len(chosen), m, KINDS[momenta.dtype], KINDS[step.dtype], parts, int(clock.complete)
        counters = (0, decayed.data_ptr()) if steps is None else (steps.data_ptr(), 0)
        last = rule, *counters, rcond, clock.beta_1, clock.beta_2
        index = step.device.index or 0
        self._launch(
            step.device, lambda *memory: self._cuda.momentum(state, given, *shape, index, *memory, *last)
        )

    def _run(
        self,
        grads: Gradients,
        out: Update | None,
        steps: int,
        rule: int = 0,
        gram: int = 0,
        c: int = 0,
        rcond: float = 0.0,
    ) -> None:
        index = grads.device.index or 0
        rows = self._source(grads, out)
        last = rule, gram, c, rcond
        self._launch(grads.device, lambda *memory: self._cuda.run(rows, out, steps, index, *memory, *last))

    def _launch(self, device: torch.device, launch: Callable[[int, int, int], int]) -> None:
        """Call with the stream, scratch memory and its bytes; again with more if some are missing."""
        index = device.index or 0
        with self._on(index):
            stream = self._stream(index)
            key = None if self._capturing() else (index, stream)
            scratch = self._scratch.get(key) if key is not None else None
            memory, size = (0, 0) if scratch is None else (scratch.data_ptr(), scratch.numel())
            missing = launch(stream, memory, size)
            if missing:
                # in a CUDA graph of the graph's own; otherwise kept for the next call on the stream
                scratch = torch.empty(missing, dtype=torch.uint8, device=device)
                if key is not None:
                    self._scratch[key] = scratch
                launch(stream, scratch.data_ptr(), missing)

    def _source(self, grads: Gradients, out: Update | None) -> Any:
        """The rows in a form that _cuda.run reads."""
        rows = grads.rows
        if self._reads_tensors and (grads.plain or isinstance(rows, Tensor)):
            return rows
        kind = KINDS[grads.dtype]
        if not isinstance(rows, Tensor):
            words = [word for entry in entries(grads, out) for word in entry]
            return array("q", words), grads.m, kind, 1, 0, 0
        between = (0, 0) if grads.batch is None else (rows.stride(0), grads.n)
        steps = (elements * rows.element_size() for elements in between)
        return array("q", tensor_entry(rows, out)), grads.m, kind, grads.problems, *steps

    def _device(self, index: int) -> bool | str:
        found = self._float64.get(index)
        if found is None:
            try:
                found = bool(self._cuda.device(index)[3])
            except RuntimeError as error:
                found = str(error)
            self._float64[index] = found
        return found

    def _cutoff(self, grads: Gradients, rule: Rule) -> float:
        return device_cutoff(rule, grads.dtype, self._device(grads.device.index or 0) is True)

    def _on(self, index: int) -> AbstractContextManager[object]:
        """Makes a device the current one; nothing to do in most calls."""
        if self._emulated or torch.cuda.current_device() == index:
            return _NOTHING
        return torch.cuda.device(index)

    def _stream(self, index: int) -> int:
        if self._emulated:
            return 0
        if _raw_stream is not None:  # without an object made of it
            return int(_raw_stream(index))
        return int(torch.cuda.current_stream(index).cuda_stream)

    def _capturing(self) -> bool:
        return not self._emulated and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=64)
def _cutoffs(rule: Rule) -> tuple[float, ...]:
    """The rank cut-off for each dtype: on devices with fast float64, then on the others."""
    return tuple(float(device_cutoff(rule, dtype, float64)) for float64 in (True, False) for dtype in DTYPES)


def _state_words(step: Step) -> array[int]:
    """Each segment's length and the addresses of its state, in the order of csrc/cuda_momentum.cpp."""
    words = step.kept.get("cuda")
    if words is None:
        words = step.kept["cuda"] = array("q")
        for rows, second, fake in zip(step.momenta.segments, step.second, step.fake, strict=True):
            words.append(second.numel())
            words.extend(0 if row is None else address(row) for row in rows)
            words.extend((second.data_ptr(), fake.data_ptr()))
    return words


def _addresses(update: Update) -> list[int]:
    """The address of each segment."""
    tensors = [update] if isinstance(update, Tensor) else update
    return [tensor.data_ptr() for tensor in tensors if tensor is not None]
