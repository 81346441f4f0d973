"""Short vectors and lists on the CPU, merged in one compiled call: the bits of the way that checks all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from inputs import conflicting, in_one_call
from torch import Tensor

from fastconfig import (
    ConFIG_update,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    backends,
    use_backend,
)
from fastconfig.backends.team import ALONE, threads_for
from fastconfig.config_update import PLAIN
from fastconfig.gradients import Gradients
from fastconfig.gradients.results import KEPT_FROM
from fastconfig.merging import merge
from fastconfig.methods import Rule, make_rule
from fastconfig.numbers import DTYPES

numba_cpu = pytest.importorskip("fastconfig.backends.numba_cpu")
pytestmark = in_one_call
keep = numba_cpu._C.keep_kernels
LIMITS = ALONE, KEPT_FROM - 1
CPU = torch.device("cpu")
CONFIG, PCGRAD, IMTLG = PLAIN, make_rule("pcgrad", 1, CPU), make_rule("imtlg", 1, CPU, rcond=1e-3)


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    """The kernels of all dtypes are known."""
    with use_backend("numba"):
        for kind, dtype in enumerate(DTYPES):
            keep(kind, torch.empty_like, threads_for, *numba_cpu._entries(dtype), *LIMITS)
        yield


def short(rows: Any, rule: Rule = CONFIG) -> Any:
    return backends.short_update(rows, rule)


@pytest.mark.parametrize("rule", [CONFIG, PCGRAD, IMTLG], ids=["config", "pcgrad", "imtlg"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_long_way(dtype: torch.dtype, rule: Rule) -> None:
    for m, n in [(1, 1), (2, 7), (3, 1000), (5, 1031), (9, 300), (33, 65)]:
        rows = list(conflicting(m, n).to(dtype).unbind())
        for given in (rows, tuple(rows), [torch.nn.Parameter(row) for row in rows]):
            update = short(given, rule)
            assert update is not None
            assert torch.isfinite(update).all()
            assert update.dtype == dtype
            assert torch.equal(update, merge(Gradients(rows), rule))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [CONFIG, PCGRAD, IMTLG], ids=["config", "pcgrad", "imtlg"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lists_have_the_bits_of_the_long_way(dtype: torch.dtype, rule: Rule) -> None:
    for m in (1, 3, 9):
        columns = [conflicting(m, n).to(dtype) for n in (1, 35, 300, 1031)]
        shapes = [(), (5, 7), (300,), (1031, 1)]
        rows: list[Any] = [
            [None, *(column[i].view(shape) for column, shape in zip(columns, shapes, strict=True))]
            for i in range(m)
        ]
        for row in rows[1:]:
            row[2] = None
        rows = [[*row[:3], torch.ones(0, 3, dtype=dtype), *row[3:]] for row in rows]
        wanted: Any = merge(Gradients(rows), rule)
        for given in (rows, tuple(rows), list(map(tuple, rows))):
            update: Any = short(given, rule)
            assert update is not None
            assert update[0] is wanted[0] is None
            for a, b in zip(update[1:], wanted[1:], strict=True):
                assert (a.dtype, a.shape, a.stride()) == (dtype, b.shape, b.stride())
                assert torch.equal(a, b)
                assert torch.isfinite(a).all()


def test_lists_up_to_results_that_share_a_buffer() -> None:
    for n, shared in ((KEPT_FROM // 8 - 32, True), (KEPT_FROM // 8, False)):
        rows = [[torch.randn(n), torch.randn(n)] for _ in range(2)]
        assert (short(rows) is not None) == shared


def test_on_one_thread_and_several_up_to_results_that_are_kept() -> None:
    n = KEPT_FROM // 4  # of float32
    assert short([torch.randn(n) for _ in range(2)]) is None
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for count in (ALONE // 8 - 1, ALONE // 8, n - 1):
                rows = [torch.randn(count) for _ in range(2)]
                update = short(rows)
                assert update is not None
                assert torch.isfinite(update).all()
                assert torch.equal(update, merge(Gradients(rows), CONFIG))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)


def test_functions_and_operators_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(conflicting(3, 100).unbind())
    calls: list[Rule] = []

    def counted(grads: Any, rule: Rule) -> Tensor | None:
        calls.append(rule)
        return short(grads, rule)

    monkeypatch.setattr("fastconfig.merging.short_update", counted)
    operators = (ConFIGOperator(), PCGradOperator(), PPCGradOperator(), IMTLGOperator())
    for merged in (ConFIG_update, *(operator.calculate_gradient for operator in operators)):
        assert merged(rows).shape == (100,)
    assert [rule.native for rule in calls] == ["config", "config", "pcgrad", "ppcgrad", "imtlg"]
    # with what it does not know: losses to check, a cut-off, an order
    ConFIG_update(rows, losses=[1, 2, 3])
    ConFIG_update(rows, rcond=1e-6)
    PCGradOperator(shuffle=True).calculate_gradient(rows)
    assert len(calls) == 5
    with pytest.raises(ValueError, match="losses: got 2, want 3"):
        PPCGradOperator().calculate_gradient(rows, [1, 2])


@pytest.mark.parametrize(
    "grads",
    [
        [],
        3.0,
        torch.ones(2, 5),
        iter([torch.ones(5)]),
        [torch.ones(5), torch.ones(6)],
        [torch.ones(5), torch.ones(5).double()],
        [torch.ones(5), None],
        [torch.ones(())],
        [torch.ones(2, 5)],
        [torch.ones(0)],
        [torch.ones(10)[::2], torch.ones(5)],
        [torch.ones(5, dtype=torch.int64)],
        [torch.ones(5, device="meta")],
        [torch.ones(5).to_sparse()],
        [torch.ones(5, dtype=torch.complex64).conj().imag],
        [[]],
        [[None], [None]],
        [[torch.ones(0)]],
        [[torch.ones(5)], torch.ones(5)],
        [torch.ones(5), [torch.ones(5)]],
        [[torch.ones(5)], [torch.ones(5), None]],
        [[torch.ones(5)], [torch.ones(6)]],
        [[torch.ones(5), torch.ones(5).double()]],
        [[torch.ones(5), torch.ones(10)[::2]]],
        [[torch.ones(5), 3.0]],
        [[[torch.ones(5)]]],
        [[torch.ones(5)], iter([torch.ones(5)])],
    ],
    ids=[
        *("no gradient", "a number", "a tensor", "an iterator", "shapes", "dtypes", "none"),
        *("scalars", "matrices", "empty", "strided", "integers", "meta", "sparse", "negative"),
        *("no parameter", "no tensor", "no element", "a vector below", "a list below", "lengths of lists"),
        *(
            "shapes in lists",
            "dtypes in lists",
            "strided in lists",
            "numbers in lists",
            "deeper",
            "iterators",
        ),
    ],
)
def test_anything_else_goes_the_long_way(grads: Any) -> None:
    assert short(grads) is None


def test_another_backend_is_asked_itself() -> None:
    with use_backend("pytorch"):
        assert short([torch.ones(5)]) is None


def test_nothing_is_loaded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has gradients on a GPU alone never waits for the CPU's backend."""
    monkeypatch.setattr(backends, "registry", backends.Registry())
    for requested in (None, "auto", "numba"):
        backends.registry.requested = requested
        assert short([torch.ones(5)]) is None
    assert not backends.registry.loaded
    assert not backends.registry.first


def test_a_dtype_without_kernels_goes_the_long_way() -> None:
    keep(1, torch.empty_like, threads_for, 0, 0, 0, 0, 8, *LIMITS)
    assert short([torch.ones(5).double()]) is None
    with pytest.raises(TypeError, match="kind"):
        keep(4, torch.empty_like, threads_for, *numba_cpu._entries(torch.float64), *LIMITS)


def test_no_reference_is_lost_or_kept() -> None:
    rows = [torch.randn(20) for _ in range(3)]
    lists = [[row, None, row] for row in rows]
    before = [sys.getrefcount(object) for object in (rows, *rows, *lists)]
    update, like = short(rows), torch.ones(1)
    assert sys.getrefcount(update) == sys.getrefcount(like)
    for _ in range(50):
        short(rows)
        short([*rows, torch.ones(3)])
        short(lists)
        short([*lists, [None, None, torch.ones(3)]])
        short([*lists, rows[0]])
    assert [sys.getrefcount(object) for object in (rows, *rows, *lists)] == before
    updates, likes = short(lists), [torch.ones(1), None, torch.ones(1)]
    assert updates[1] is None
    assert [sys.getrefcount(updates[k]) for k in (0, 2)] == [sys.getrefcount(likes[k]) for k in (0, 2)]


def test_a_result_that_cannot_be_made_is_an_error() -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    addresses = numba_cpu._entries(torch.float32)
    ConFIG_update([torch.ones(5)])
    keep(0, fail, threads_for, *addresses, *LIMITS)
    with pytest.raises(MemoryError, match="no room"):
        ConFIG_update([torch.ones(5)])
    keep(0, torch.empty_like, fail, *addresses, *LIMITS)
    with pytest.raises(MemoryError, match="no room"):
        ConFIG_update([torch.ones(ALONE // 4)])


def test_a_list_that_changes_meanwhile() -> None:
    """Its tensors are held while the kernel runs without the GIL."""
    rows = [torch.randn(2000) for _ in range(8)]
    lists = [[row] for row in rows]
    wanted = short(list(rows))
    assert wanted is not None

    def swap() -> None:
        for _ in range(300):
            rows[:] = [row.clone() for row in rows]
            for row in lists:
                row[:] = [row[0].clone()]

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        while not swapping.done():
            update = short(rows)
            assert update is not None
            assert torch.equal(update, wanted)
            assert torch.equal(short(lists)[0], wanted)
