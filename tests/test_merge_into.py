"""Gradients of small networks, merged into the .grad that are there in one compiled call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from inputs import conflicting, in_one_call
from torch import Tensor, nn

import fastconfig
from fastconfig import (
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    PseudoMomentumOperator,
    backends,
    use_backend,
)
from fastconfig.config_update import PLAIN
from fastconfig.gradients import Gradients
from fastconfig.gradients.results import KEPT_FROM
from fastconfig.merging import merge
from fastconfig.methods import Rule, make_rule
from fastconfig.numbers import DTYPES
from fastconfig.training import step

numba_cpu = pytest.importorskip("fastconfig.backends.numba_cpu")
pytestmark = in_one_call
CPU = torch.device("cpu")
RULES = {"config": PLAIN, "pcgrad": make_rule("pcgrad", 1, CPU), "ppcgrad": make_rule("ppcgrad", 1, CPU)}
SHAPES = [(4, 3), (), (0, 5), (31,), (2, 3, 7)]


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    """The kernels of all dtypes are known."""
    with use_backend("numba"):
        for dtype in DTYPES:
            numba_cpu._entries(dtype)
        yield


def per_parameter(rows: Tensor) -> list[list[Tensor]]:
    """Rows of the elements of SHAPES, in pieces of their own memory."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return [
        [piece.clone().view(shape) for piece, shape in zip(row.split(sizes), SHAPES, strict=True)]
        for row in rows
    ]


def parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of SHAPES, their .grad full of NaN."""
    found = []
    for shape in SHAPES:
        found.append(nn.Parameter(torch.zeros(shape, dtype=dtype)))
        found[-1].grad = torch.full(shape, torch.nan, dtype=dtype)
    return found  # type: ignore[return-value]


def some(m: int, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    return per_parameter(conflicting(m, sum(torch.Size(shape).numel() for shape in SHAPES)).to(dtype))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 2, 3, 9, 33])
def test_the_bits_of_the_long_way(m: int, dtype: torch.dtype, rule: Rule) -> None:
    rows: list[Any] = [tuple(row) for row in some(m, dtype)]
    there = parameters(dtype)
    versions = [par.grad._version for par in there if par.grad is not None]
    written = backends.merge_into(rows, there, rule)
    assert written is not None
    assert all(piece is par.grad for piece, par in zip(written, there, strict=True))
    wanted = merge(Gradients(rows), rule)
    for piece, exact in zip(written, wanted, strict=True):
        assert exact is not None
        assert torch.isfinite(piece).all()
        assert torch.equal(piece, exact)
    assert [piece._version for piece in written] == versions  # the caller's to count up


def test_missing_gradients() -> None:
    rows: list[Any] = some(3)
    rows[0][0] = rows[1][3] = None
    for row in rows:
        row[4] = None
    there = parameters()
    written = backends.merge_into(rows, there, PLAIN)
    assert written is not None
    assert len(written) == 4
    assert there[4].grad is not None
    assert there[4].grad.isnan().all()  # not written to
    for piece, exact in zip(written, merge(Gradients(rows), PLAIN), strict=False):
        assert exact is not None
        assert torch.equal(piece, exact)


def change(i: int, p: int, value: Any) -> Any:
    rows: list[Any] = some(2)
    rows[i][p] = value
    return rows


STAND_BACK: dict[str, Any] = {
    "no gradient": list,
    "vectors": lambda: [torch.ones(3), torch.ones(3)],
    "another count": lambda: [row[:-1] for row in some(2)],
    "another shape": lambda: change(1, 0, torch.ones(3, 4)),
    "another dtype": lambda: change(0, 3, torch.ones(31).double()),
    "all of another dtype": lambda: some(2, torch.float64),
    "strided": lambda: change(1, 3, torch.ones(62)[::2]),
    "sparse": lambda: change(1, 0, torch.ones(4, 3).to_sparse()),
    "another device": lambda: change(1, 0, torch.ones(4, 3, device="meta")),
    "negative": lambda: change(0, 1, torch.ones((), dtype=torch.complex64).conj().imag),
    "nothing at all": lambda: [[None] * len(SHAPES)] * 2,
    "no element": lambda: [[None, None, torch.ones(0, 5), None, None]] * 2,
    "a number": lambda: change(0, 1, 3.0),
}


@pytest.mark.parametrize("case", STAND_BACK)
def test_anything_else_goes_the_long_way(case: str) -> None:
    there = parameters()
    assert backends.merge_into(STAND_BACK[case](), there, PLAIN) is None
    assert all(par.grad is not None and par.grad.isnan().all() for par in there)


def test_gradients_that_cannot_be_written_to() -> None:
    kept = {
        "missing": None,
        "strided": torch.full((3, 4), torch.nan).T,
        "part of a graph": torch.full((4, 3), torch.nan, requires_grad=True),
    }
    for grad in kept.values():
        there = parameters()
        there[0].grad = grad
        assert backends.merge_into(some(2), there, PLAIN) is None  # type: ignore[arg-type]
        assert there[0].grad is grad
        assert all(par.grad is None or par.grad.isnan().all() for par in there)


def test_what_is_there_is_looked_at_as_closely_as_what_comes() -> None:
    for dtype in DTYPES[1:]:
        there = parameters(dtype)
        assert backends.merge_into(some(2), there, PLAIN) is None  # type: ignore[arg-type]
        assert all(par.grad is not None and par.grad.isnan().all() for par in there)
    there = parameters()
    there[3] = nn.Parameter(torch.zeros(30))  # another shape than the gradients that come
    there[3].grad = torch.full((30,), torch.nan)
    assert backends.merge_into(some(2), there, PLAIN) is None  # type: ignore[arg-type]
    there = parameters()
    there[3].register_post_accumulate_grad_hook(lambda par: None)
    assert backends.merge_into(some(2), there, PLAIN) is None  # type: ignore[arg-type]
    assert all(par.grad is not None and par.grad.isnan().all() for par in there)


def test_up_to_results_that_are_kept() -> None:
    for n, taken in ((KEPT_FROM // 4 - 1, True), (KEPT_FROM // 4, False)):
        par = nn.Parameter(torch.zeros(n))
        par.grad = torch.full((n,), torch.nan)
        rows = [[torch.randn(n)] for _ in range(2)]
        assert (backends.merge_into(rows, [par], PLAIN) is not None) == taken  # type: ignore[arg-type]
        assert par.grad.isfinite().all() == taken


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of merge_into by ``backward`` has merged."""
    found: list[bool] = []

    def noted(rows: Any, there: Any, rule: Rule, ring: int = 0) -> Any:
        written = backends.merge_into(rows, there, rule, ring)
        found.append(written is not None)
        return written

    monkeypatch.setattr(step, "merge_into", noted)
    return found


def losses_of(net: nn.Module) -> list[Tensor]:
    x = torch.linspace(-1, 1, 24).view(8, 3)
    return [(net(x)[:, i] - i).square().mean() for i in range(2)]


OPERATORS: dict[str, Any] = {
    "config": ConFIGOperator,
    "pcgrad": PCGradOperator,
    "ppcgrad": PPCGradOperator,
    "imtlg": IMTLGOperator,
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_backward_takes_it(kind: str, calls: list[bool]) -> None:
    net, operator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), OPERATORS[kind]()
    fastconfig.backward(losses_of(net), net, operator)
    first = [par.grad.clone() for par in net.parameters() if par.grad is not None]
    fastconfig.backward(losses_of(net), net, operator)
    assert calls == [False, True]  # there was nothing to write to
    for par, wanted in zip(net.parameters(), first, strict=True):
        assert par.grad is not None
        assert torch.equal(par.grad, wanted)


def test_what_is_no_fixed_rule_goes_the_long_way(calls: list[bool]) -> None:
    class Own(ConFIGOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            return 2 * super().calculate_gradient(grads, losses)  # type: ignore[operator]

    net = nn.Linear(3, 2)
    for par in net.parameters():
        par.grad = torch.zeros_like(par)
    others = (Own(), PCGradOperator(shuffle=True), ConFIGOperator(rcond=1e-6), PseudoMomentumOperator(2))
    for operator in others:
        fastconfig.backward(losses_of(net), net, operator)
    fastconfig.backward(losses_of(net), net, accumulate=True)
    assert calls == []


@pytest.mark.parametrize("none_grad", ["zero", "skip"])
def test_parameters_that_no_loss_is_connected_to(none_grad: Any, calls: list[bool]) -> None:
    net, other = nn.Linear(3, 2), nn.Parameter(torch.ones(5))
    together = [next(net.parameters()), other, *list(net.parameters())[1:]]
    for par in together:
        par.grad = torch.full_like(par, 7.0)
    fastconfig.backward(losses_of(net), together, none_grad=none_grad)
    assert calls == [True]
    assert other.grad is not None
    assert (other.grad == (0 if none_grad == "zero" else 7)).all()
    assert all(par.grad is not None and (par.grad != 7).all() for par in net.parameters())
