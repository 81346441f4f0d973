"""The Triton backend where Triton is missing, too old or fails; and its launch shapes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from inputs import METHODS, relative_error, rounding_bound

pytest.importorskip("triton")

from triton.errors import TritonError

from fastconfig import ConFIG_update, backends, reference, use_backend
from fastconfig.backends import triton_gpu, triton_launch
from fastconfig.backends.base import BackendUnavailable
from fastconfig.kernels.triton import coefficients as coefficients_triton
from fastconfig.kernels.triton import combine as combine_triton
from fastconfig.kernels.triton import gram as gram_triton
from fastconfig.kernels.triton import partials as partials_triton
from fastconfig.kernels.triton.shapes import MOST, SMALL, float64_is_usable, shape
from fastconfig.momentum_operator import PseudoMomentumOperator

# as in test_gpu_kernels.py
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton"),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton serves; what a test withdraws comes back after it."""
    backends.load("triton")
    monkeypatch.setattr(backends, "registry", backends.Registry())
    with use_backend("triton"):
        yield


class Broken:
    """A kernel that does not compile."""

    def __getitem__(self, grid: object) -> Any:
        raise TritonError("no room")


def test_a_kernel_that_does_not_compile_leaves_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = torch.randn(3, 500)
    exact = METHODS["config-projection"].oracle(rows)
    monkeypatch.setattr(gram_triton, "gram_small", Broken())
    monkeypatch.setitem(backends.registry.preference, DEVICE.type, ("triton", "pytorch"))
    with use_backend("auto"), caplog.at_level(logging.WARNING, "fastconfig"):
        for _ in range(3):
            assert relative_error(ConFIG_update(list(rows.to(DEVICE))).cpu(), exact) <= 1e-6
    assert [record.getMessage() for record in caplog.records] == [
        "backend 'triton' cannot run here and is passed over: TritonError: no room"
    ]
    assert backends.explain(DEVICE.type)[0] == ("triton", "TritonError: no room")


def test_a_kernel_that_does_not_compile_raises_if_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gram_triton, "gram_small", Broken())
    with pytest.raises(BackendUnavailable, match=r"'triton' cannot run here: TritonError: no room"):
        ConFIG_update(torch.randn(3, 50, device=DEVICE))


# of the launches of a step
@pytest.mark.parametrize(
    ("module", "kernel"),
    [
        (gram_triton, "gram_small"),
        (partials_triton, "sum_rows"),
        (coefficients_triton, "coefficients"),
        (combine_triton, "combine"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_momentum_step_whose_kernel_does_not_compile_is_taken_once(
    named: bool, module: Any, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = 3
    operator, exact = PseudoMomentumOperator(m), reference.Momentum(m)
    every = list(range(m))
    rows = torch.randn(m, 60)
    operator.calculate_gradient(every, rows.to(DEVICE))
    exact.step(every, rows)
    monkeypatch.setattr(module, kernel, Broken())
    monkeypatch.setitem(backends.registry.preference, DEVICE.type, ("triton", "pytorch"))
    for _ in range(2):
        rows = torch.randn(2, 60)
        wanted = exact.step([1, 0], rows)
        if named:
            with pytest.raises(BackendUnavailable, match="TritonError: no room"):
                operator.calculate_gradient([1, 0], rows.to(DEVICE))
            named = False
            continue
        with use_backend("auto"):
            assert relative_error(operator.calculate_gradient([1, 0], rows.to(DEVICE)).cpu(), wanted) <= 1e-5


def test_more_momenta_than_the_kernels_take() -> None:
    m = MOST + 1
    operator, exact = PseudoMomentumOperator(m), reference.Momentum(m)
    for indexes in (list(range(m)), [64, 3]):
        rows = torch.randn(len(indexes), 200)
        update = operator.calculate_gradient(indexes, rows.to(DEVICE)).cpu()
        assert relative_error(update, exact.step(indexes, rows)) <= 1e-5


def test_a_missing_triton_leaves_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, triton_gpu.__name__)
    monkeypatch.setattr(backends, "registry", backends.Registry())
    with use_backend("auto"):
        _, (name, reason), (other, fine) = backends.explain("cuda")
    assert (name, other, fine) == ("triton", "pytorch", None)
    assert reason is not None
    assert "triton" in reason
    with pytest.raises(BackendUnavailable, match=r"'triton' cannot run here: .*triton"):
        backends.load("triton")


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_gpu, "VERSION", (3, 1))
    with pytest.raises(RuntimeError, match=r"want 3\.2 or newer"):
        triton_gpu.TritonBackend()


def test_float64_where_it_is_usable() -> None:
    usable = {(8, 0), (9, 0), (10, 0)}
    little = {(7, 5), (8, 6), (8, 9), (10, 3), (12, 0)}
    assert all(float64_is_usable("cuda", capability) for capability in usable)
    assert not any(float64_is_usable("cuda", capability) for capability in little)


@pytest.mark.parametrize("m", range(1, MOST + 1))
def test_launch_shapes(m: int) -> None:
    for itemsize in (2, 4, 8):
        for whole in (True, False):
            for chunks, problems in ((0, 1), (1, 1), (1000, 1), (3, 7), (10**6, 1000)):
                plan = shape(m, chunks, problems, itemsize, whole, True, 132)
                assert m <= plan.rows <= max(4, 2 * m - 1)
                assert plan.width % (plan.threads * plan.vector) == 0
                assert all(1 <= programs <= max(1, chunks) for programs in plan.programs)
                # 16 bytes a thread, or half where its registers hold no more products
                size = 8 if itemsize == 2 and plan.rows == 8 else 16
                assert not whole or plan.vector * itemsize == size
                assert plan.programs[1] == plan.programs[0] * plan.sharers
                # one program of the second launch reads all partials: at most a quarter of a MiB of them
                assert m > SMALL or 8 * m * m * plan.programs[0] <= 1 << 18


def test_more_gradients_than_the_kernels_take() -> None:
    rows = torch.randn(MOST + 1, 200)
    for method in ("config-projection", "pcgrad"):
        exact = METHODS[method].oracle(rows)
        update = METHODS[method].ours(list(rows.to(DEVICE))).cpu()
        assert relative_error(update, exact) <= rounding_bound(rows, exact)


@pytest.mark.parametrize("m", [3, 9])
def test_more_chunks_than_programs(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of chunks, shared by programs of the second pass, that begin and end within a segment."""
    monkeypatch.setattr(triton_launch, "_processors", lambda device: 1)
    rows = torch.randn(m, 7100)  # 7 chunks, 9 in pieces
    exact = METHODS["config-projection"].oracle(rows)
    on_device = rows.to(DEVICE)
    pieces = [list(row.split([3000, 1, 4099])) for row in on_device]
    for update in (ConFIG_update(on_device), torch.cat(ConFIG_update(pieces))):
        assert relative_error(update.cpu(), exact) <= rounding_bound(rows, exact)


@pytest.mark.parametrize("m", [3, 9])
def test_a_table_written_by_kernels(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # what a CUDA graph captures
    rows = list(torch.randn(m, 1500, device=DEVICE))
    wanted = ConFIG_update(rows)
    monkeypatch.setattr(
        triton_gpu.TritonBackend,
        "table",
        lambda self, words, device: triton_launch.captured_table(words, device),
    )
    assert torch.equal(ConFIG_update(rows), wanted)
