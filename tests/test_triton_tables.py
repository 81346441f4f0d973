"""Address tables of the Triton backend on a CUDA device that is not there."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch


def test_a_table_is_written_by_kernels_before_any_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is first needed while a CUDA graph is captured cannot be loaded there."""
    pytest.importorskip("triton")
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
