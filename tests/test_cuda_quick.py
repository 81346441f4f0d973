"""Updates on the CUDA backend in one compiled call: the bits of the way that checks everything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import emulated
import pytest
import torch
from inputs import conflicting
from pairs import slow
from torch import Tensor, nn

import fastconfig
from fastconfig import (
    ConFIG_update,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    backends,
    last_backend,
    use_backend,
)
from fastconfig.config_update import PLAIN
from fastconfig.gradients import Gradients
from fastconfig.merging import merge
from fastconfig.methods import Rule, make_rule
from fastconfig.numbers import DTYPES

CPU = torch.device("cpu")
RULES = {
    "config": PLAIN,
    "pcgrad": make_rule("pcgrad", 1, CPU),
    "imtlg": make_rule("imtlg", 1, CPU, rcond=1e-3),
}
SHAPES = [(4, 3), (), (0, 5), (31,), (2, 3, 4, 5), (33,)]
N = sum(torch.Size(shape).numel() for shape in SHAPES)

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch before 2.10 has no quick way"
)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The emulated kernels serve, their device is known, and they have scratch memory for the calls below."""
    emulated.serve(monkeypatch, True)
    backend: Any = backends.load("cuda")
    assert backend.unsupported_device(CPU) is None
    backend._scratch[0, 0] = torch.empty(1 << 20, dtype=torch.uint8)
    with use_backend("cuda"):
        yield emulated.module(True)


def per_parameter(rows: Tensor) -> list[list[Any]]:
    """Rows of the elements of SHAPES, in pieces of their own memory; the matrices of images channels last."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    found = [
        [piece.clone().view(shape) for piece, shape in zip(row.split(sizes), SHAPES, strict=True)]
        for row in rows
    ]
    for row in found:
        row[4] = row[4].contiguous(memory_format=torch.channels_last)
    return found


def with_gaps(rows: Tensor) -> list[list[Any]]:
    found = per_parameter(rows)
    found[0][0] = found[-1][3] = None
    for row in found:
        row[5] = None
    return found


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda rows: rows,
    "tensor, strided": lambda rows: rows.t().contiguous().t(),
    "batch": lambda rows: torch.stack([rows * k for k in range(1, 5)]),
    "vectors": lambda rows: list(rows.unbind()),
    "vectors, a tuple": lambda rows: rows.unbind(),
    "vectors, strided": lambda rows: list(rows.repeat_interleave(2, 1)[:, ::2].unbind()),
    "of parameters": lambda rows: [nn.Parameter(row) for row in rows],
    "parameters": per_parameter,
    "parameters, in tuples": lambda rows: tuple(map(tuple, per_parameter(rows))),
    "parameters, missing": with_gaps,
}


def short(rows: Any, rule: Rule = PLAIN) -> Any:
    return backends.short_update(rows, rule)


def check_same(update: Any, wanted: Any) -> None:
    pairs = [(update, wanted)] if isinstance(wanted, Tensor) else list(zip(update, wanted, strict=True))
    for a, b in pairs:
        if b is None:
            assert a is None
            continue
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)
        assert (a.shape, a.stride(), a.dtype, a.requires_grad) == (b.shape, b.stride(), b.dtype, False)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_of_the_long_way(form: str, rule: Rule) -> None:
    for m, dtype in ((2, torch.bfloat16), (3, torch.float32), (9, torch.float64), (5, torch.float16)):
        rows = FORMS[form](conflicting(m, N).to(dtype))
        check_same(short(rows, rule), merge(Gradients(rows), rule))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cut_offs(dtype: torch.dtype) -> None:
    """Gradients that are dependent to rounding: what counts as rank deficient decides the update."""
    rows = torch.randn(3, 200, dtype=torch.float64)
    for size in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        rows[2] = rows[0] + rows[1] + size * torch.randn(200, dtype=torch.float64)
        given = rows.to(dtype)
        assert torch.equal(short(given), merge(Gradients(given), PLAIN))  # type: ignore[arg-type]


@slow  # which builds the kernels once more
def test_cut_offs_of_a_device_with_little_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.serve(monkeypatch, False)
    with use_backend("cuda"):
        rows = torch.randn(3, 200)
        ConFIG_update(rows)
        for size in (1e-2, 1e-3, 1e-4, 1e-5):
            rows[2] = rows[0] + rows[1] + size * torch.randn(200)
            assert torch.equal(short(rows), merge(Gradients(rows), PLAIN))  # type: ignore[arg-type]
        assert short(torch.randn(9, 200)) is None


def test_results_share_memory_and_nothing_else() -> None:
    update = short(per_parameter(conflicting(3, N)))
    assert len({piece.untyped_storage().data_ptr() for piece in update}) == 1
    assert all(piece._base is None and piece.data_ptr() % 16 == 0 for piece in update)
    before, others = update[0].clone(), [piece.clone() for piece in update[1:]]
    weight = torch.ones((), requires_grad=True)
    update[0].mul_(weight)  # which autograd forbids for views that were made without a graph
    assert [piece._version for piece in update] == [1, 0, 0, 0, 0, 0]
    assert torch.equal(update[0], before)
    assert all(torch.equal(piece, other) for piece, other in zip(update[1:], others, strict=True))


def test_operators_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []

    def noted(grads: Any, rule: Rule) -> Any:
        update = short(grads, rule)
        taken.append(update is not None)
        return update

    monkeypatch.setattr("fastconfig.merging.short_update", noted)
    rows = per_parameter(conflicting(3, N))
    for merged in (ConFIG_update, *(op().calculate_gradient for op in (PCGradOperator, PPCGradOperator))):
        merged(rows)
    IMTLGOperator().calculate_gradient(rows)
    assert taken == [True] * 4
    assert last_backend() == "cuda"
    ConFIG_update(rows, losses=[1, 2, 3])
    ConFIG_update(rows, rcond=1e-6)
    PCGradOperator(shuffle=True).calculate_gradient(rows)
    assert len(taken) == 4


def changed(i: int, p: int, value: Any) -> Any:
    rows = per_parameter(conflicting(2, N))
    rows[i][p] = value
    return rows


NEGATIVE = torch.ones(33, dtype=torch.complex64).conj().imag.as_strided((33,), (1,))
STAND_BACK: dict[str, Any] = {
    "no gradient": [],
    "a number": 3.0,
    "a vector": torch.ones(5),
    "an iterator": iter([torch.ones(5)]),
    "no row": torch.ones(0, 5),
    "no element": torch.ones(2, 0),
    "no problem": torch.ones(0, 2, 5),
    "empty vectors": [torch.ones(0), torch.ones(0)],
    "matrices": [torch.ones(2, 5)] * 2,
    "scalars": [torch.ones(())] * 2,
    "integers": torch.ones(2, 5, dtype=torch.int64),
    "complex": torch.ones(2, 5, dtype=torch.complex64),
    "lengths": [torch.ones(5), torch.ones(6)],
    "dtypes": [torch.ones(5), torch.ones(5).double()],
    "another device": [torch.ones(5), torch.ones(5, device="meta")],
    "none among vectors": [torch.ones(5), None],
    "too many": [torch.ones(5)] * 65,
    "negative": [NEGATIVE, torch.ones(33)],
    "counts": [row[: 6 - i] for i, row in enumerate(per_parameter(conflicting(2, N)))],
    "vectors and lists": [[torch.ones(5)], torch.ones(5)],
    "nothing at all": [[None, None]] * 2,
    "no parameter": [[], []],
    "shapes": changed(1, 0, torch.ones(3, 4)),
    "a dtype": changed(1, 3, torch.ones(31).double()),
    "sparse": changed(0, 0, torch.ones(4, 3).to_sparse()),
    "orders": changed(0, 4, torch.ones(2, 3, 4, 5)),
    "a strided one": changed(1, 3, torch.ones(62)[::2]),
    "expanded": [[torch.ones(1).expand(5)]] * 2,
    "a number among tensors": changed(0, 1, 3.0),
    "negative among tensors": changed(0, 5, NEGATIVE),
}


@pytest.mark.parametrize("case", STAND_BACK)
def test_anything_else_goes_the_long_way(case: str) -> None:
    assert short(STAND_BACK[case]) is None


def test_other_types_go_the_long_way() -> None:
    class Odd(Tensor):
        pass

    assert short([torch.ones(5).as_subclass(Odd), torch.ones(5)]) is None
    assert short(torch.ones(2, 5).as_subclass(Odd)) is None
    with torch.device("meta"):  # the result is where the gradients are
        assert short([torch.ones(5, device="cpu")] * 2).device == CPU


def test_another_current_device(kernels: ModuleType) -> None:
    exchange = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
    rows = torch.randn(3, 50)
    try:
        for index, taken in ((0, True), (1, False)):
            kernels.attach(exchange, lambda index=index: index)
            assert (short(rows) is not None) == taken
    finally:
        kernels.attach(exchange, None)


def test_without_scratch_memory() -> None:
    backend: Any = backends.load("cuda")
    rows = torch.randn(3, 50)
    backend._scratch.clear()
    assert short(rows) is None
    assert short([list(rows)]) is None
    ConFIG_update(rows)
    assert short(rows) is not None


def test_a_result_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("no room")

    rows = conflicting(3, N)
    monkeypatch.setattr(torch.Tensor, "new_empty", fail)
    for form in ("tensor", "batch", "vectors", "parameters"):
        with pytest.raises(MemoryError, match="no room"):
            ConFIG_update(FORMS[form](rows))


def test_no_reference_is_lost_or_kept() -> None:
    grads = per_parameter(conflicting(3, N))
    objects = [grads, *grads, *(tensor for row in grads for tensor in row)]
    par = nn.Parameter(torch.zeros(33))
    par.grad = torch.zeros(33)
    before = [sys.getrefcount(object) for object in (*objects, par, par.grad)]
    update, like = short(grads), [torch.ones(1)]
    assert sys.getrefcount(update) == sys.getrefcount(like)
    assert sys.getrefcount(update[0]) == sys.getrefcount(like[0])
    for _ in range(20):
        short(grads)
        short([*grads, [torch.ones(1)]])
        backends.merge_into([[row[5]] for row in grads], [par], PLAIN)
    assert [sys.getrefcount(object) for object in (*objects, par, par.grad)] == before


def test_lists_that_change_meanwhile() -> None:
    rows = per_parameter(conflicting(3, N))
    wanted = short([list(row) for row in rows])

    def swap() -> None:
        for _ in range(100):
            for row in rows:
                row[:] = [tensor.clone() for tensor in row]

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        while not swapping.done():
            check_same(short(rows), wanted)


# Into .grad


def parameters(dtype: torch.dtype = torch.float32) -> list[Any]:
    """Of SHAPES, their .grad full of NaN and in the order of per_parameter's."""
    found = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    for par in found:
        order = torch.channels_last if par.dim() == 4 else torch.contiguous_format
        par.grad = torch.full_like(par, torch.nan, memory_format=order)
    return found


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_merged_into_grad(rule: Rule) -> None:
    for m, dtype in ((2, torch.bfloat16), (3, torch.float32), (9, torch.float64)):
        rows = with_gaps(conflicting(m, N).to(dtype))
        there = parameters(dtype)
        written = backends.merge_into(rows, there, rule)  # type: ignore[arg-type]
        assert written is not None
        assert [piece is par.grad for piece, par in zip(written, there, strict=False)] == [True] * 5
        assert there[5].grad.isnan().all()
        check_same(written, merge(Gradients(rows), rule)[:5])


def test_gradients_that_cannot_be_written_to() -> None:
    rows: Any = per_parameter(conflicting(2, N))
    other = {
        "missing": (0, None),
        "strided": (0, torch.full((3, 4), torch.nan).t()),
        "part of a graph": (0, torch.full((4, 3), torch.nan, requires_grad=True)),
        "in another order": (4, torch.full((2, 3, 4, 5), torch.nan)),
    }
    for p, grad in other.values():
        there = parameters()
        there[p].grad = grad
        assert backends.merge_into(rows, there, PLAIN) is None
        assert all(par.grad is None or par.grad.isnan().all() for par in there)
    there = parameters()
    there[3].register_post_accumulate_grad_hook(lambda par: None)
    assert backends.merge_into(rows, there, PLAIN) is None
    assert backends.merge_into(rows, there[:-1], PLAIN) is None
    assert backends.merge_into(rows, parameters(torch.float64), PLAIN) is None
    assert backends.merge_into([], [], PLAIN) is None


def test_backward_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []

    def noted(*given: Any) -> Any:
        written = backends.merge_into(*given)
        taken.append(written is not None)
        return written

    monkeypatch.setattr("fastconfig.training.step.merge_into", noted)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2))
    x, found = torch.linspace(-1, 1, 24).view(8, 3), []
    for _ in range(2):  # the first makes .grad
        fastconfig.backward([(net(x)[:, i] - i).square().mean() for i in range(2)], net)
        found.append([par.grad.clone() for par in net.parameters() if par.grad is not None])
    assert taken == [False, True]
    check_same(found[1], found[0])
    assert [par.grad._version for par in net.parameters() if par.grad is not None] == [1] * 4


def test_arguments(kernels: ModuleType) -> None:
    for call, given in ((kernels.update, ()), (kernels.merge_into, ([],)), (kernels.attach, ())):
        with pytest.raises(TypeError):
            call(*given)
    with pytest.raises(TypeError, match="eight cut-offs"):
        kernels.update([], (Tensor,), 0, (0.0,), {})
