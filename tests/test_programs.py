"""Quadratic programs whatever the gradients: optimal, in exact fractions, up to rounding of G."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hard import EPS, Judged, hard_rows, inner
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import relative_error
from torch import Tensor

from fastconfig import ops, reference
from fastconfig.methods import RULES, make_rule, solvers

CPU = torch.device("cpu")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "upgrad": ("upgrad", {}),
    "dualproj": ("dualproj", {}),
    "mgda": ("mgda", {}),
    "ca-half": ("cagrad", {"c": 0.5}),
    "ca-1": ("cagrad", {"c": 1.0}),
    "ca-3": ("cagrad", {"c": 3.0}),
}
every = pytest.mark.parametrize("case", CASES)
free = pytest.mark.parametrize("case", [case for case in CASES if case != "ca-half"])
cones = pytest.mark.parametrize("method", ["upgrad", "dualproj"])

# of rank five; all but the sixth lie in four dimensions, but for rounding to float32, and cancel there
CANCELLING = [
    [0.0358076356, -0.0984935611, -0.107724398, 0.0279450286, -0.0156694837],
    [0.0518782809, -0.0394789726, 0.116129629, 0.0264963396, -0.169005126],
    [-0.0963647366, -0.112554863, 0.0280301794, -0.120831713, 0.103873461],
    [-0.0185151324, -0.0124327773, 0.0725425035, -0.0770977214, -0.0227220487],
    [0.18702665, 0.398417383, -0.170181781, 0.289789736, -0.0757090077],
    [-0.0122020133, -0.362406522, -0.511863828, -0.117302097, -0.00534221157],
    [0.00461967522, -0.0574237928, -0.105707549, 0.0652137995, 0.0469761714],
]


def coefficients(case: str, rows: Tensor, **given_settings: Any) -> list[Tensor]:
    """By torch operations and by compiled code; of an exact Gram matrix."""
    method, kept = CASES[case]
    together = kept | given_settings
    gram = reference.gram(rows)
    return [
        make_rule(method, len(rows), CPU, **together).coefficients(gram, rows.dtype),
        ops.coefficients(gram, method, dtype=rows.dtype, **together),
    ]


def by_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has torch take the best of all sets, as on devices."""

    def best(matrix: Tensor, q: Tensor, size: Tensor, rcond: float) -> Tensor:
        identity = torch.eye(q.shape[-1], dtype=q.dtype)
        return solvers._best_of_all(matrix, q, size, solvers.ridge_of(rcond, len(identity)), identity)

    monkeypatch.setattr(solvers, "nonnegative", best)


@free
@settings(max_examples=60, deadline=None)
@given(rows=hard_rows())
def test_no_conflict(case: str, rows: Tensor) -> None:
    for c in coefficients(case, rows):
        judged = Judged(c, rows)
        assert min(judged.products, default=0) >= -judged.rounding


@settings(max_examples=60, deadline=None)
@given(rows=hard_rows())
def test_the_nearest_vector_without_conflict(rows: Tensor) -> None:
    """v_0 + sum_j mu_j g_j with mu >= 0 is it if it conflicts with none, and v . (v - v_0) = 0."""
    m = len(rows)
    for c in coefficients("dualproj", rows):
        judged = Judged(c, rows)
        if not judged.length:
            continue
        mu = judged.beyond_the_mean
        assert min(mu) >= -4 * EPS / m
        assert abs(float(inner(judged.v, judged.sum_of(mu)))) <= judged.rounding * judged.parts


@settings(max_examples=60, deadline=None)
@given(rows=hard_rows())
def test_the_shortest_convex_combination(rows: Tensor) -> None:
    """The one whose product with every gradient is its squared length at least."""
    for c in coefficients("mgda", rows):
        judged = Judged(c, rows)
        if not judged.length:
            continue
        assert min(judged.c) >= 0
        assert abs(float(sum(judged.c)) - 1) <= 8 * EPS
        for product, norm in zip(judged.products, judged.norms, strict=True):
            # what rounding leaves of |v|^2 is relative to the parts, too
            assert product - judged.length**2 / norm >= -judged.rounding * (1 + judged.parts / norm)


@pytest.mark.parametrize("case", ["ca-half", "ca-1", "ca-3"])
@settings(max_examples=60, deadline=None)
@given(rows=hard_rows())
def test_the_greatest_least_product(case: str, rows: Tensor) -> None:
    """v - g_0 = sum_i w_i g_i of length c |g_0|; w >= 0, and w_i > 0 only for the least of all g_i . v."""
    m, radius = len(rows), CASES[case][1]["c"]
    for c in coefficients(case, rows):
        judged = Judged(c, rows)
        if not judged.length:
            continue
        w = judged.beyond_the_mean
        assert min(w) >= -4 * EPS / m
        away, mean = judged.sum_of(w), judged.sum_of([Fraction(1, m)] * m)
        reach, length = radius * math.sqrt(inner(mean, mean)), math.sqrt(inner(away, away))
        shares = [float(x) * math.sqrt(square) for x, square in zip(w, judged.squares, strict=True)]
        whole = [math.sqrt(square) / m for square in judged.squares]
        lost = (math.fsum(shares) / length) ** 2 + (radius * math.fsum(whole) / reach) ** 2
        assert abs(length / reach - 1) <= 16 * EPS * (lost + judged.parts / length)
        level = float(inner(away, judged.v) / sum(w))  # the mean of the products that are to be equal
        along = math.fsum(shares) / float(sum(w))
        for product, norm in zip(judged.products, judged.norms, strict=True):
            assert product - level / norm >= -judged.rounding * (1 + along / norm)


@every
@settings(max_examples=25, deadline=None)
@given(rows=hard_rows(), data=st.data())
def test_order_and_scale_do_not_matter(case: str, rows: Tensor, data: st.DataObject) -> None:
    """What nearly depends on each other may move the update by the root of rounding; powers of two do not."""
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    scale = 2.0 ** data.draw(st.integers(-60, 60))
    pairs = (
        coefficients(case, rows),
        coefficients(case, rows[order]),
        coefficients(case, scale * rows),
    )
    for one, other, scaled in zip(*pairs, strict=True):
        assert torch.equal(one, scaled)
        parts = float(one.abs() @ rows.norm(dim=1))
        if one.any() and other.any():  # else what rounding leaves of it is in doubt
            moved = float((one @ rows - other @ rows[order]).norm())
            assert moved <= 8 * EPS**0.5 * parts


@st.composite
def sided_rows(draw: st.DrawFn) -> Tensor:
    """On one side of a plane, over twelve decades: of any rank, m > N, parallel but for an angle."""
    m, n = draw(st.integers(2, 7)), draw(st.integers(2, 9))
    maker = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rank = draw(st.integers(1, min(m, n - 1)))
    rows = torch.randn(m, rank, generator=maker, dtype=torch.float64)
    rows = rows @ torch.randn(rank, n - 1, generator=maker, dtype=torch.float64)
    rows = torch.nn.functional.normalize(rows, dim=1)
    for i in range(1, m):
        if draw(st.integers(0, 3)) == 0:
            away = torch.randn(n - 1, generator=maker, dtype=torch.float64)
            rows[i] = rows[i - 1] + draw(st.sampled_from([0.0, 1.5e-6, 1e-4])) * away
    up = torch.full((m, 1), draw(st.sampled_from([0.2, 1.0])), dtype=torch.float64)
    exponents = torch.tensor(draw(st.lists(st.integers(-6, 6), min_size=m, max_size=m)))
    return torch.cat([rows, up], 1) * 10.0 ** exponents[:, None]


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=25, deadline=None)
@given(rows=sided_rows())
def test_the_optimum_on_full_rows(case: str, dtype: torch.dtype, rows: Tensor) -> None:
    """Zero only where gradients are stationary: these are not."""
    rows = rows.to(dtype)
    method, given_settings = CASES[case]
    exact = RULES[method].oracle(rows, **given_settings)
    assert exact.any()
    for c in coefficients(case, rows):
        assert c.any()
        if method != "cagrad":  # whose oracle knows the best set to 1e-13: it is judged in fractions above
            assert relative_error(c @ rows.double(), exact) <= (1e-9 if dtype == torch.float64 else 1e-5)


@free
@settings(max_examples=25, deadline=None)
@given(rows=hard_rows(), data=st.data())
def test_stationary_gradients_give_zero(case: str, rows: Tensor, data: st.DataObject) -> None:
    """A sum of the others with weights that are not small cancels them; all of them count."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    rows = rows[rows.norm(dim=1) > 0.5]
    if not len(rows):
        return
    shares = data.draw(st.lists(st.floats(0.1, 1), min_size=len(rows), max_size=len(rows)))
    rows = torch.cat([rows, -torch.tensor([shares], dtype=rows.dtype) @ rows])
    if rows[-1].norm() < 0.1:  # then the others do, and rounding makes the rest
        return
    exponents = data.draw(st.lists(st.integers(-6, 6), min_size=len(rows), max_size=len(rows)))
    if not case.startswith(
        "ca"
    ):  # CAGrad's answer is that only where the mean cancels, or all is within reach
        rows = rows * 10.0 ** torch.tensor(exponents)[:, None]
    for c in coefficients(case, rows):
        assert not c.any()


@cones
def test_what_cancels_but_for_rounding_to_float32(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero, as in exact fractions, whatever the order; once an answer with cosines of -2.5e-7."""
    rows = torch.tensor(CANCELLING, dtype=torch.float32)
    assert not RULES[method].oracle(rows).any()
    for order in (torch.arange(7), *(torch.randperm(7) for _ in range(5))):
        assert not any(c.any() for c in coefficients(method, rows[order]))
    by_sets(monkeypatch)
    assert not any(c.any() for c in coefficients(method, rows))


@cones
def test_low_rank(method: str) -> None:
    for m, rank in ((6, 3), (9, 4), (14, 5)):
        rows = (torch.randn(m, rank) @ torch.randn(rank, m)).float()
        mean = torch.nn.functional.normalize(rows.sum(0), dim=0)
        rows += 2 * rows.norm(dim=1).max() * mean  # on one side of a plane: the update is not rounding
        exact = RULES[method].oracle(rows)
        for c in coefficients(method, rows):
            assert (c @ rows.double() - exact).norm() <= 1e-5 * rows.norm(dim=1).max()


@free
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_many_that_depend_on_each_other(case: str, rank: int) -> None:
    """Their Cholesky factor is all rounding."""
    m = 96
    rows = torch.randn(m, rank, dtype=torch.float64) @ torch.randn(rank, 50, dtype=torch.float64)
    along = torch.nn.functional.normalize(torch.randn(rank, dtype=torch.float64) @ rows[:rank], dim=0)
    rows *= torch.where(rows @ along < 0, -1, 1)[:, None]  # on one side of a plane: not all is rounding
    rows = rows[torch.randint(m, (m,))]  # with duplicates
    units = torch.nn.functional.normalize(rows)
    for c in coefficients(case, rows):
        update = c @ rows
        parts = (c.abs() * rows.norm(dim=1)).sum()
        assert update.any()
        assert (units @ update).min() >= -(m + 8) * EPS * parts


@free
def test_many_on_a_line(case: str) -> None:
    """Zero, whatever rounding makes of their Cholesky factor; tests/native looks at the factor itself."""
    for m in (31, 32, 32, 64, 100):
        lengths = torch.randn(m, 1, dtype=torch.float64).sign() * 10.0 ** torch.randint(-30, 31, (m, 1))
        rows = lengths * torch.randn(1, 40, dtype=torch.float64)
        assert not any(c.any() for c in coefficients(case, rows))


@pytest.mark.parametrize("case", ["upgrad", "dualproj", "mgda"])
@settings(max_examples=25, deadline=None)
@given(rows=hard_rows())
def test_the_best_of_all_sets(case: str, rows: Tensor) -> None:
    """As torch takes it on devices."""
    with pytest.MonkeyPatch.context() as patched:
        by_sets(patched)
        judged = Judged(coefficients(case, rows)[0], rows)
    assert min(judged.products, default=0) >= -judged.rounding


def test_all_digits() -> None:
    """The ridge that makes every program solvable costs no digit of what is well conditioned."""
    rows = torch.tensor([[1.0, 0.0], [-4.0, 3.0]], dtype=torch.float64)
    for c in coefficients("dualproj", rows):
        torch.testing.assert_close(c, torch.tensor([2.0, 0.5], dtype=c.dtype), rtol=4 * EPS, atol=0)
    for c in coefficients("upgrad", rows):
        torch.testing.assert_close(c, torch.tensor([2.5, 0.58], dtype=c.dtype), rtol=4 * EPS, atol=0)
    for c in coefficients("mgda", rows):
        torch.testing.assert_close(c, torch.tensor([29 / 34, 5 / 34], dtype=c.dtype), rtol=8 * EPS, atol=0)
