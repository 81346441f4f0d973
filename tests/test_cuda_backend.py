"""The CUDA backend where it cannot run, what it takes, and what it is told."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import emulated
import pytest
import torch
from inputs import relative_error
from pairs import slow

from fastconfig import ConFIG_update, backends, ops, reference, use_backend
from fastconfig.backends import cuda
from fastconfig.backends.base import BackendUnavailable
from fastconfig.config_update import PLAIN
from fastconfig.merging import merge
from fastconfig.momentum_operator import PseudoMomentumOperator

ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test does to the backends is undone after it."""
    monkeypatch.setattr(backends, "registry", backends.Registry())


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The emulated kernels."""
    module = emulated.module(True)
    monkeypatch.setitem(sys.modules, "fastconfig._cuda", module)
    yield module
    module.options(True, True)


class Spy:
    """A module of kernels that keeps what it was told."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.runs: list[tuple[Any, ...]] = []
        self.missing: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def run(self, *given: Any) -> int:
        self.runs.append(given)
        self.missing.append(self.module.run(*given))
        return self.missing[-1]


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastconfig._cuda", None)
    name, reason = backends.explain("cuda")[0]
    assert name == "cuda"
    assert reason is not None
    assert "built without CUDA" in reason
    with pytest.raises(BackendUnavailable, match=r"'cuda' cannot run here: .*built without CUDA"):
        use_backend("cuda")


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "importlib", SimpleNamespace(import_module=broken))
    with pytest.raises(BackendUnavailable, match=r"ImportError: libcuda\.so\.1"):
        backends.load("cuda")


@pytest.mark.skipif(ON_GPU, reason="there is a CUDA device")
def test_no_driver_or_device() -> None:
    try:
        built = importlib.import_module("fastconfig._cuda")
    except ModuleNotFoundError:
        pytest.skip("built without CUDA")
    assert built.device_type == "cuda"
    assert isinstance(built.problem(), str)
    with pytest.raises(BackendUnavailable, match=r"'cuda' cannot run here: RuntimeError: .*CUDA"):
        backends.load("cuda")


def test_one_line_says_what_serves_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fastconfig._cuda", None)
    monkeypatch.setitem(backends.registry.preference, "cpu", ("cuda", "pytorch"))
    rows = torch.randn(3, 100)
    with use_backend("auto"), caplog.at_level(logging.WARNING, "fastconfig"):
        for _ in range(3):
            assert torch.isfinite(ConFIG_update(rows)).all()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "backend 'cuda' cannot run here and is passed over: RuntimeError: built without CUDA"
    )


def test_cuda_comes_first_and_leaves_others_what_it_does_not_take(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name for name, _ in backends.explain("cuda")] == ["cuda", "triton", "pytorch"]
    monkeypatch.setitem(backends.registry.preference, "cpu", ("cuda", "pytorch"))
    with use_backend("auto"):
        assert backends.choose(ops.Gradients(torch.randn(64, 5))).name == "cuda"
        assert backends.choose(ops.Gradients(torch.randn(65, 5))).name == "pytorch"
        assert torch.isfinite(ConFIG_update(torch.randn(65, 100))).all()
    with (
        use_backend("cuda"),
        pytest.raises(BackendUnavailable, match="up to 64 gradients on this device, got 65"),
    ):
        ConFIG_update(torch.randn(65, 100))


@slow  # which builds the kernels once more
def test_a_device_with_little_float64_takes_few_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastconfig._cuda", emulated.module(False))
    with (
        use_backend("cuda"),
        pytest.raises(BackendUnavailable, match="up to 8 gradients on this device, got 9"),
    ):
        ConFIG_update(torch.randn(9, 100))


def test_a_device_that_no_kernel_runs_on(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def device(index: int) -> None:
        raise RuntimeError("kernels for this device: cudaErrorNoKernelImageForDevice")

    spy = Spy(kernels)
    spy.device = device  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastconfig._cuda", spy)
    with use_backend("cuda"), pytest.raises(BackendUnavailable, match="NoKernelImage"):
        ConFIG_update(torch.randn(3, 100))


@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [
        (3, 7 * 1024 + 6, torch.float32),
        (2, 4 * 1024 - 1, torch.float64),
        pytest.param(4, 5 * 1024 - 2, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_a_thread_keeps_several_vectors(kernels: ModuleType, m: int, n: int, dtype: torch.dtype) -> None:
    """Of each row; the last one is not whole."""
    rows = list(torch.randn(m, n, dtype=dtype))
    rows[1] = torch.zeros_like(rows[1])
    exact = reference.config(torch.stack(rows))
    with use_backend("cuda"):
        assert relative_error(ConFIG_update(rows), exact) <= (1e-7 if dtype == torch.float32 else 1e-13)
        rows[0][n - 1] = torch.nan
        assert ConFIG_update(rows).isnan().all()


def test_scratch_memory_is_kept(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(kernels)
    monkeypatch.setitem(sys.modules, "fastconfig._cuda", spy)
    grads = ops.Gradients([torch.randn(5000)] * 3)
    with use_backend("cuda"):
        for _ in range(3):
            merge(grads, PLAIN)
    assert [missing > 0 for missing in spy.missing] == [True, False, False, False]


def test_a_parameter_with_a_step(kernels: ModuleType) -> None:
    """A vector with gaps among other parameters, of an update and of momentum steps."""
    full = torch.randn(3, 23, dtype=torch.float64)
    rows = [[torch.stack([row[:9]] * 2, 1)[:, 0], row[9:].view(2, 7)] for row in full]
    operator, exact = PseudoMomentumOperator(3), reference.Momentum(3)
    with use_backend("cuda"):
        found = torch.cat([piece.reshape(-1) for piece in ConFIG_update(rows)])
        assert relative_error(found, reference.config(full)) <= 1e-12
        for chosen in ([0, 1, 2], [1]):
            update = operator.calculate_gradient(chosen, [rows[i] for i in chosen])
            found = torch.cat([piece.reshape(-1) for piece in update])
            assert relative_error(found, exact.step(chosen, full[chosen])) <= 1e-9


@pytest.mark.parametrize("quick", [True, False])
def test_a_device_that_refuses_the_one_launch_gets_two(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """As under MPS and in green contexts; it is asked once."""
    grads = [torch.randn(5000) for _ in range(3)]
    try:
        with use_backend("cuda"):
            backend = backends.load("cuda")
            if not quick:
                monkeypatch.setattr(backend, "short_update", lambda *_: None)
            whole = ConFIG_update(grads)
            kernels.options(False, True)
            launches = ConFIG_update(grads)
            kernels.options(True, True)
            monkeypatch.setenv("FASTCONFIG_EMULATED_REFUSES", "1")
            assert torch.equal(ConFIG_update(grads), launches)
            monkeypatch.delenv("FASTCONFIG_EMULATED_REFUSES")
            assert torch.equal(ConFIG_update(grads), launches)
            kernels.options(True, True)
            assert torch.equal(ConFIG_update(grads), whole)
    finally:
        kernels.options(True, True)


def test_tensors_of_an_older_torch_are_read_in_python(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with use_backend("cuda"):
        backend = backends.load("cuda")
        monkeypatch.setattr(backend, "short_update", lambda *_: None)
        for grads in (torch.randn(3, 1500), [torch.randn(1500) for _ in range(3)]):
            monkeypatch.setattr(backend, "_reads_tensors", True)
            wanted = ConFIG_update(grads)
            monkeypatch.setattr(backend, "_reads_tensors", False)
            assert torch.equal(ConFIG_update(grads), wanted)
        assert ConFIG_update(torch.randn(0, 3, 100)).shape == (0, 100)
        batch = torch.randn(4, 3, 100)
        assert torch.equal(ConFIG_update(batch), torch.stack([ConFIG_update(rows) for rows in batch]))


def test_environment_turns_forms_off(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[bool, bool]] = []
    spy = Spy(kernels)
    spy.options = lambda *given: told.append(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastconfig._cuda", spy)
    cuda.CudaBackend()
    monkeypatch.setenv("FASTCONFIG_CUDA_ONE_LAUNCH", "0")
    monkeypatch.setenv("FASTCONFIG_CUDA_OVERLAP", "0")
    cuda.CudaBackend()
    assert told == [(True, True), (False, False)]


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        (torch.randn(5), ValueError, "1 dimensions, want 2 or 3"),
        ([torch.randn(5), torch.randn(5).double()], TypeError, "different or unknown dtypes"),
        (torch.ones(2, 5, dtype=torch.int32), TypeError, "different or unknown dtypes"),
        ([torch.randn(5)] * 65, ValueError, r"got 65 gradients, want 1\.\.64"),
        ([], ValueError, r"got 0 gradients, want 1\.\.64"),
    ],
)
def test_the_module_checks_what_it_reads(
    kernels: ModuleType, rows: Any, error: type[Exception], match: str
) -> None:
    backends.load("cuda")
    out = torch.empty(5)
    with pytest.raises(error, match=match):
        kernels.run(rows, out, 3, 0, 0, 0, 0, 0, 0, 0, 0.0)
    with pytest.raises(TypeError, match="run takes 11 arguments"):
        kernels.run(rows, out)
