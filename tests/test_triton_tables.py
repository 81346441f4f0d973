"""Address tables of the Triton backend on a CUDA device that is not there."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastconfig.gradients import Gradients

triton = pytest.importorskip("triton")
tl = triton.language
_rows = importlib.import_module("fastconfig.kernels.triton.rows")
columns_left, length_at = _rows.columns_left, _rows.length_at


@triton.jit
def _left(starts, lengths, out, T: tl.constexpr, V: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0)
    start = tl.load(starts + i)
    tl.store(out + i, columns_left(start, length_at(tl.load(lengths + i), start), T, V))


def test_a_table_is_written_by_kernels_before_any_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is first needed while a CUDA graph is captured cannot be loaded there."""
    triton_gpu = importlib.import_module("fastconfig.backends.triton_gpu")
    written: list[Any] = []
    monkeypatch.setattr(triton_gpu, "captured_table", lambda words, device: written.append(device.index))
    cuda = SimpleNamespace(
        is_current_stream_capturing=lambda: False, current_stream=lambda d: SimpleNamespace(cuda_stream=7)
    )
    pinned = SimpleNamespace(to=lambda device, non_blocking: "a table")
    monkeypatch.setattr(
        triton_gpu, "torch", SimpleNamespace(cuda=cuda, int64=None, tensor=lambda *a, **k: pinned)
    )
    backend = triton_gpu.TritonBackend()
    for index in (0, 0, 1, 0):
        assert backend.table([1, 2], torch.device("cuda", index)) == "a table"
    assert written == [0, 1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
def test_a_row_may_end_far_before_a_tile() -> None:
    """A missing row has length 0: what lies 2^31 columns behind its end is not in it."""
    if not importlib.import_module("fastconfig.backends.triton_launch").INTERPRETED:
        pytest.skip("needs Triton's interpreter")
    starts = torch.tensor([0, 1 << 31, (1 << 31) + 4096, 1 << 33, (1 << 33) + 5])
    rest = [7, (1 << 31) + 9, 0, 1 << 40, (1 << 33) + 5]
    for lengths, wanted in (([0] * 5, [0] * 5), (rest, [7, 9, 0, 64, 0])):
        out = torch.full((5,), -1, dtype=torch.int32)
        _left[(5,)](starts, torch.tensor(lengths), out, T=16, V=4)
        assert out.tolist() == wanted


def test_missing_rows_of_more_elements_than_32_bits_count_are_left_to_pytorch() -> None:
    backend = importlib.import_module("fastconfig.backends.triton_gpu").TritonBackend()
    for n, rest, taken in (
        (1 << 31, None, False),
        ((1 << 31) - 8, None, True),
        (1 << 31, torch.zeros(1), True),
    ):
        long = torch.zeros(1).expand(n)
        grads = Gradients(
            [[long, torch.zeros(7)], [rest if rest is None else rest.expand(n), torch.zeros(7)]]
        )
        assert backend.takes(grads) == taken
