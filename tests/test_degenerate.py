"""Zero, duplicate, opposed and broken gradients: the minimum-norm answer, finite; NaN only from NaN."""

from __future__ import annotations

import pytest
import torch
from inputs import BACKENDS, METHODS, low_rank, relative_error, rounding_bound
from torch import Tensor

from fastconfig import ConFIG_update, IMTLGOperator, use_backend

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LENGTHS = [1, 7, 31, 32, 33, 1000, 8191, 8192, 8193, 20_001]


def agree(rows: Tensor, names: list[str] | None = None) -> None:
    for name in names or METHODS:
        exact = METHODS[name].oracle(rows)
        for backend in BACKENDS:
            with use_backend(backend):
                update = METHODS[name].ours(list(rows))
            assert relative_error(update, exact) <= rounding_bound(rows, exact), (name, backend)


@pytest.mark.parametrize("zeros", [[0], [2], [0, 3], [1, 2, 3]])
def test_zero_rows_drop_out(zeros: list[int]) -> None:
    rows = torch.randn(5, 3001)
    rows[zeros] = 0
    names = [name for name in METHODS if name != "config-specific"]
    agree(rows, names)


def test_a_zero_tracked_row_gives_zero(backend: str) -> None:
    rows = torch.randn(3, 1001)
    rows[-1] = 0
    assert not METHODS["config-specific"].ours(rows).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_all_rows_zero_give_zero(method: str, dtype: torch.dtype, backend: str) -> None:
    update = METHODS[method].ours([torch.zeros(1003, dtype=dtype)] * 3)
    assert update.dtype == dtype
    assert not update.any()


@pytest.mark.parametrize("scale", [1.0, 0.7, 1e-3, 3e5])
def test_scaled_duplicates_count_as_one_direction(scale: float) -> None:
    rows = torch.randn(4, 10_007)
    rows[2] = scale * rows[0]
    agree(rows)


@pytest.mark.parametrize("m", [2, 5, 32])
def test_all_rows_duplicates(m: int) -> None:
    row = torch.randn(5003)
    agree(torch.stack([row * scale for scale in torch.rand(m) + 0.5]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_opposed_rows_cancel(scale: float, dtype: torch.dtype, backend: str) -> None:
    row = torch.randn(20_001)
    rows = torch.stack([row, -scale * row]).to(dtype)
    for name in ("config-projection", "config-minimum", "imtlg"):
        update = METHODS[name].ours(rows)
        assert torch.isfinite(update).all()
        # no weights of both signs: the minimum-norm direction is zero; nothing but zero may come out
        assert not update.any(), name


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_opposed_rows_cancel_beside_a_zero_row(scale: float, backend: str) -> None:
    """Whose weight counts for nothing."""
    row = torch.randn(3001)
    for rows in (torch.stack([row, -scale * row, 0 * row]), torch.stack([0 * row, row, -scale * row])):
        for name in ("config-projection", "config-minimum", "imtlg"):
            assert not METHODS[name].ours(rows).any(), name


def test_opposed_rows_beside_others() -> None:
    rows = torch.randn(4, 10_007)
    rows[3] = -0.4 * rows[1]
    agree(rows)


@pytest.mark.parametrize(("m", "rank"), [(3, 1), (3, 2), (8, 5), (32, 20)])
def test_dependent_rows(m: int, rank: int) -> None:
    # float64 rows: in float32, rounding makes dependent rows independent at about eps^2, which is cut
    rows = low_rank(m, 3001, rank)
    for name in ("config-projection", "config-harmonic"):
        exact = METHODS[name].oracle(rows)
        if exact.norm() <= 1e-9 * rows.norm():
            continue
        eigenvalues = torch.linalg.svdvals(rows / rows.norm(dim=1, keepdim=True)) ** 2
        condition = float(eigenvalues[0] / eigenvalues[rank - 1])
        for backend in BACKENDS:
            with use_backend(backend):
                update = METHODS[name].ours(list(rows))
            assert relative_error(update, exact) <= 1e-12 * max(condition, 1.0), (name, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_one_gradient_comes_back(n: int, dtype: torch.dtype, backend: str) -> None:
    row = torch.randn(n).to(dtype)
    for method in METHODS.values():
        torch.testing.assert_close(method.ours([row]), row, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_nan_or_inf_anywhere_gives_all_nan(method: str, dtype: torch.dtype, bad: float, backend: str) -> None:
    n = LENGTHS[int(torch.randint(len(LENGTHS), ()))]
    rows = torch.randn(4, n).to(dtype)
    rows[int(torch.randint(4, ())), int(torch.randint(n, ()))] = bad
    rows[int(torch.randint(4, ()))] *= 1  # a broken row beside sound ones
    assert torch.isnan(METHODS[method].ours(list(rows))).all()


def test_nan_beside_a_zero_row_gives_all_nan(backend: str) -> None:
    rows = torch.zeros(2, 1001)
    rows[0, 17] = torch.nan
    assert torch.isnan(ConFIG_update(rows)).all()


@pytest.mark.parametrize("n", LENGTHS)
def test_every_element_is_written(n: int, backend: str) -> None:
    assert torch.isfinite(ConFIG_update(torch.randn(3, n + 3))).all()


def test_imtlg_of_independent_rows_is_the_papers_closed_form() -> None:
    # alpha = g_1 U^T (D U^T)^-1 with u_1 - u_i and g_1 - g_i as rows (Liu et al. 2021, equation 6)
    g = torch.randn(5, 2003, dtype=torch.float64)
    u = g / g.norm(dim=1, keepdim=True)
    alpha = torch.linalg.solve(((g[0] - g[1:]) @ (u[0] - u[1:]).T).T, (u[0] - u[1:]) @ g[0])
    exact = (1 - alpha.sum()) * g[0] + alpha @ g[1:]
    assert relative_error(IMTLGOperator().calculate_gradient(g), exact) <= 1e-9
