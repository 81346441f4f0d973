"""Input forms: the same answer whatever the form, without touching the input; and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from inputs import METHODS
from torch import Tensor, nn

from fastconfig import ConFIG_update, ops, use_backend
from fastconfig.config_update import PLAIN
from fastconfig.grad_operator import (
    ConFIG_update_double,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
)
from fastconfig.gradients import Gradients
from fastconfig.merging import merge

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(5, 3), (7,), (2, 3, 4, 5), (), (1, 1), (40, 41)]
SIZE = sum(torch.Size(shape).numel() for shape in SHAPES)


def cut(vector: Tensor) -> list[Tensor]:
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return [piece.reshape(shape) for piece, shape in zip(vector.split(sizes), SHAPES, strict=True)]


def flat(update: list[Tensor]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in update])


def close(update: Tensor, wanted: Tensor) -> None:
    # the same coefficients up to the summation order of G (1e-12, as of float64 answers), one rounding each
    assert update.dtype == wanted.dtype
    assert torch.isfinite(update).all()
    assert torch.isfinite(wanted).all()
    difference = (update.double() - wanted.double()).norm()
    assert difference <= max(torch.finfo(wanted.dtype).eps, 1e-12) * wanted.double().norm()


LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "list": list,
    "tuple": tuple,
    "columns": lambda rows: rows.T.contiguous().T,
    "every second": lambda rows: rows.repeat_interleave(2, dim=1)[:, ::2],
    "every second row": lambda rows: rows.repeat_interleave(2, dim=0)[::2],
    "strided vectors": lambda rows: [row.repeat_interleave(3)[::3] for row in rows],
    "odd addresses": lambda rows: [torch.cat([row[:1], row])[1:] for row in rows],
    "parameters": lambda rows: [nn.Parameter(row) for row in rows],
    "parameter list": lambda rows: nn.ParameterList([nn.Parameter(row) for row in rows]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 31, 1000, 8193])
def test_layouts_agree(layout: str, n: int, dtype: torch.dtype, backend: str) -> None:
    for m in (1, 3, 9):
        rows = torch.randn(m, n).to(dtype)
        close(ConFIG_update(LAYOUTS[layout](rows)), ConFIG_update(rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_per_parameter_form(method: str, dtype: torch.dtype, backend: str) -> None:
    rows = torch.randn(3, SIZE).to(dtype)
    update = METHODS[method].ours([cut(row) for row in rows])
    assert [piece.shape for piece in update] == [torch.Size(shape) for shape in SHAPES]
    close(flat(update), METHODS[method].ours(rows))


def test_missing_gradients_count_as_zeros(backend: str) -> None:
    rows = torch.randn(3, SIZE)
    grads: list[list[Tensor | None]] = [list(cut(row)) for row in rows]
    for i, p in [(0, 0), (1, 0), (2, 5), (1, 3)]:
        grads[i][p] = None
        cut(rows[i])[p].zero_()
    for row in grads:
        row[1] = None
    whole = torch.cat([torch.cat([t.reshape(-1) for t in row[:1] + row[2:]]) for row in map(cut, rows)])
    update = ConFIG_update(grads)
    assert isinstance(update, list)
    assert update[1] is None
    close(flat([piece for piece in update if piece is not None]), ConFIG_update(whole.view(3, -1)))


def test_a_gradient_that_is_nan_breaks_parameters_that_it_lacks(backend: str) -> None:
    grads = [[torch.randn(50), None], [torch.randn(50), torch.randn(60)]]
    grads[0][0][3] = torch.nan
    assert all(torch.isnan(piece).all() for piece in ConFIG_update(grads))


@pytest.mark.parametrize("mixed", [False, True])
def test_memory_orders(mixed: bool, backend: str) -> None:
    shape = (4, 3, 5, 6)
    plain = [torch.randn(shape) for _ in range(3)]
    other = [g.contiguous(memory_format=torch.channels_last) for g in plain]
    if mixed:
        other[1] = plain[1]
    wanted = ConFIG_update([g.reshape(-1) for g in plain])
    update = ConFIG_update([[g] for g in other])[0]
    close(update.reshape(-1), wanted)
    assert update.is_contiguous(memory_format=torch.channels_last) is not mixed


@pytest.mark.parametrize("small", [False, True])
def test_parameters_whose_memory_has_gaps(small: bool, backend: str) -> None:
    """All in one order, which is not that of a dense tensor."""
    rows = [[t[:, ::2], t[::2], t[1:, 1:9]] for t in torch.randn(3, 6, 10)]
    if small:
        rows = [[t[:2, :2].T, t[0, :4:2]] for t in torch.randn(3, 6, 10)]
    plain = [[tensor.contiguous() for tensor in row] for row in rows]
    for piece, wanted in zip(ConFIG_update(rows), ConFIG_update(plain), strict=True):  # type: ignore[arg-type]
        assert torch.isfinite(wanted).all()
        assert torch.equal(piece, wanted)


def test_expanded_gradients(backend: str) -> None:
    # the gradient of x.sum() is one number seen N times
    rows = [torch.ones(()).expand(1003), torch.randn(1003)]
    close(ConFIG_update(rows), ConFIG_update([row.clone() for row in rows]))
    grads = [[torch.ones(()).expand(31, 32)], [torch.randn(31, 32)]]
    wanted = ConFIG_update([[t.clone() for t in row] for row in grads])[0]
    close(ConFIG_update(grads)[0], wanted)


def test_gradients_that_carry_a_minus_as_a_flag(backend: str) -> None:
    # what the imaginary part of a conjugate is in torch
    rows = torch.randn(3, 1003)
    wanted = ConFIG_update([-rows[0], rows[1], rows[2]])
    first = torch._neg_view(rows[0])
    close(ConFIG_update([first, rows[1], rows[2]]), wanted)
    close(ConFIG_update([[first], [rows[1]], [rows[2]]])[0], wanted)
    close(ConFIG_update(torch._neg_view(rows)), ConFIG_update(-rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_independent_problems(method: str, dtype: torch.dtype, backend: str) -> None:
    rows = torch.randn(5, 3, 701).to(dtype)
    for batch in (rows, rows.transpose(0, 1).contiguous().transpose(0, 1), rows[1:1]):
        update = METHODS[method].ours(batch)
        assert update.shape == (len(batch), 701)
        for problem, result in zip(batch, update, strict=True):
            close(result, METHODS[method].ours(problem))


def test_no_elements(backend: str) -> None:
    assert ConFIG_update(torch.empty(3, 0)).shape == (0,)
    assert ConFIG_update([torch.empty(0)] * 2).shape == (0,)


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
def test_inputs_with_grad_are_left_alone(form: str, backend: str) -> None:
    rows = torch.randn(3, SIZE)
    leaf = rows.clone().requires_grad_()
    tracked = leaf * 1.0
    given = {"tensor": tracked, "vectors": list(tracked), "parameters": [cut(r) for r in tracked]}[form]
    for method in METHODS.values():
        update = method.ours(given)
        for piece in update if isinstance(update, list) else [update]:
            assert not piece.requires_grad
            assert piece.grad_fn is None
    assert torch.equal(tracked.detach(), rows)
    assert leaf.grad is None


def test_the_answer_shares_no_memory_with_the_input(backend: str) -> None:
    rows = torch.randn(1, 100)
    update = ConFIG_update(rows)
    update.zero_()
    assert rows.any()


def test_an_nd_array_of_any_sequence_type_may_hold_the_rows(backend: str) -> None:
    rows = torch.randn(3, 55)
    close(ConFIG_update(row for row in rows), ConFIG_update(rows))


VECTOR = torch.ones(4)
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ([], ValueError, r"grads: got no gradient \(m = 0\), want at least one"),
    "m = 0": (
        torch.empty(0, 5),
        ValueError,
        r"grads: got shape \(0, 5\) \(m = 0\), want at least one",
    ),
    "0-d": (torch.tensor(1.0), ValueError, r"grads: got shape \(\), want \(m, N\) or \(B, m, N\)"),
    "1-d": (VECTOR, ValueError, r"grads: got shape \(4,\), want \(m, N\) or \(B, m, N\)"),
    "4-d": (torch.ones(1, 1, 1, 1), ValueError, r"want \(m, N\) or \(B, m, N\)"),
    "0-d row": (
        [torch.tensor(1.0)],
        ValueError,
        r"grads\[0\]: got shape \(\), want a vector \(N,\)",
    ),
    "2-d row": ([torch.ones(2, 2)], ValueError, r"grads\[0\]: got shape \(2, 2\), want a vector"),
    "lengths": ([VECTOR, torch.ones(5)], ValueError, r"grads\[1\]: got shape \(5,\), want \(4,\)"),
    "dtypes": (
        [VECTOR, VECTOR.double()],
        TypeError,
        r"grads\[1\]: got dtype torch.float64, want torch.float32",
    ),
    "devices": ([VECTOR, VECTOR.to("meta")], ValueError, r"grads\[1\]: got device meta, want cpu"),
    "integers": (
        torch.ones(2, 2, dtype=torch.int64),
        TypeError,
        r"grads: got dtype torch.int64, want one of float32",
    ),
    "integer rows": (
        [VECTOR.int()],
        TypeError,
        r"grads\[0\]: got dtype torch.int32, want one of float32",
    ),
    "complex beside real": (
        [VECTOR, VECTOR.to(torch.complex64)],
        TypeError,
        r"grads\[1\]: got dtype torch.complex64",
    ),
    "sparse": (torch.eye(3).to_sparse(), TypeError, r"grads: got a sparse tensor .*to_dense"),
    "None row": ([VECTOR, None], TypeError, r"grads\[1\]: got None, want a tensor"),
    "no tensor": ([1.0, 2.0], TypeError, r"grads\[0\]: got a float, want a tensor or a sequence"),
    "None": (None, TypeError, r"grads: got a NoneType, want a tensor or a sequence"),
    "number": (3, TypeError, r"grads: got a int, want a tensor or a sequence"),
    "array": (np.ones((2, 3)), TypeError, r"grads\[0\]: got a ndarray, want a tensor"),
    "parameter counts": (
        [[VECTOR], [VECTOR, VECTOR]],
        ValueError,
        r"grads\[1\]: got 2 parameters, want 1",
    ),
    "parameter shapes": (
        [[VECTOR], [torch.ones(2, 2)]],
        ValueError,
        r"grads\[1\]\[0\]: got shape \(2, 2\), want \(4,\)",
    ),
    "parameter dtypes": (
        [[VECTOR], [VECTOR.half()]],
        TypeError,
        r"grads\[1\]\[0\]: got dtype torch.float16",
    ),
    "complex beside real of one parameter": (
        [[VECTOR], [VECTOR.to(torch.complex64)]],
        ValueError,
        r"grads\[1\]\[0\]: got shape",
    ),
    "parameter devices": (
        [[VECTOR], [VECTOR.to("meta")]],
        ValueError,
        r"grads\[1\]\[0\]: got device meta",
    ),
    "parameter kinds": (
        [[VECTOR, 3]],
        TypeError,
        r"grads\[0\]\[1\]: got a int, want a tensor or None",
    ),
    "all None": ([[None], [None]], ValueError, r"grads\[0\] and all others: got None for every parameter"),
    "mixed forms": ([[VECTOR], VECTOR], TypeError, r"grads\[1\]: got a Tensor, want a sequence"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    grads, kind, message = REFUSED[case]
    for call in (
        ConFIG_update,
        ops.gram,
        ConFIGOperator().calculate_gradient,
        PCGradOperator().calculate_gradient,
        PPCGradOperator().calculate_gradient,
        IMTLGOperator().calculate_gradient,
    ):
        with pytest.raises(kind, match=message):
            call(grads)


def test_refusals_of_the_double_form() -> None:
    with pytest.raises(ValueError, match="grad_1: got 3 gradients"):
        ConFIG_update_double(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"grad_2: got shape \(5,\), want \(4,\) like grad_1"):
        ConFIG_update_double(VECTOR, torch.ones(5))


@pytest.mark.parametrize("argument", ["reduction", "method", "length"])
def test_unknown_choices_name_both(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument}: got 'average', want one of '"):
        ops.coefficients(torch.eye(2).double(), **{argument: "average"})


@pytest.mark.parametrize("rcond", [-1e-3, 1.0, 7.0])
def test_rcond_out_of_range(rcond: float) -> None:
    with pytest.raises(ValueError, match=r"rcond: got .*, want None or a number from 0 to 1"):
        ConFIG_update(torch.eye(2), rcond=rcond)


def test_wrong_orders() -> None:
    operator = PCGradOperator()
    with pytest.raises(ValueError, match=r"order: got shape \(2,\), want \(3, 3\)"):
        operator.calculate_gradient(torch.eye(3), order=torch.arange(2))
    with pytest.raises(ValueError, match=r"order: got .*, want permutations of 0..2"):
        operator.calculate_gradient(torch.eye(3), order=torch.tensor([[0, 1, 3]] * 3))


def test_nothing_is_written_when_the_result_does_not_fit() -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"grad_vec: got shape \(7,\), want \(0,\)"):
        ConFIGOperator().update_gradient(network, torch.randn(2, 7))
    with pytest.raises(ValueError, match="grads: got tensors of shapes"):
        ConFIGOperator().update_gradient(network, [[torch.randn(2, 3), torch.randn(3)]] * 2)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_per_parameter_gradients_reach_the_network(backend: str) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    losses = [network(torch.randn(5, 3)).square().mean() for _ in range(3)]
    grads = [torch.autograd.grad(loss, list(network.parameters())) for loss in losses]
    ConFIGOperator().update_gradient(network, grads)
    vectors = [torch.cat([g.reshape(-1) for g in row]) for row in grads]
    written = torch.cat([p.grad.reshape(-1) for p in network.parameters()])  # type: ignore[union-attr]
    close(written, ConFIG_update(vectors))


def test_large_results_at_any_address() -> None:
    """Those that are written past the caches may begin between two cache lines."""
    n = 600_000
    rows = [torch.randn(n) for _ in range(2)]
    with use_backend("numba"):
        wanted = ConFIG_update(rows)
        for first in (1, 4, 8):
            out = torch.full((n + first,), torch.nan)[first:]
            assert torch.equal(merge(Gradients(rows), PLAIN, out), wanted)  # type: ignore[arg-type]


def test_columns_are_seen_without_a_copy() -> None:
    rows = [torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last) for _ in range(3)]
    for segment in Gradients([[row] for row in rows]).segments:
        addresses = [row.data_ptr() for row in segment if row is not None]
        assert addresses == [row.data_ptr() for row in rows]


def test_backends_give_the_same_bits_again_and_again() -> None:
    rows = torch.randn(7, 50_021)
    for backend in ("numba", "pytorch"):
        with use_backend(backend):
            first = ConFIG_update(list(rows))
            assert all(torch.equal(first, ConFIG_update(list(rows))) for _ in range(5))
