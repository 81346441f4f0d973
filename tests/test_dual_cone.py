"""UPGrad, DualProj and MGDA against optima found another way, and what they promise of any gradients."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import combinations
from typing import Any

import pytest
import torch
from hard import EPS, Judged, hard_rows
from hypothesis import given, settings
from inputs import equiangular, low_rank, orthonormal, relative_error, scaled
from pairs import some
from schedules import assert_served
from torch import Tensor

from fastconfig import DualProjOperator, MGDAOperator, PseudoMomentumOperator, UPGradOperator, ops, reference
from fastconfig.methods import MGDA, DualProj, Rule, UPGrad, make_rule
from fastconfig.methods.solvers import _best_of_all, nonnegative

RULES: dict[str, type[Rule]] = {"upgrad": UPGrad, "dualproj": DualProj, "mgda": MGDA}
OPERATORS: dict[str, Any] = {"upgrad": UPGradOperator, "dualproj": DualProjOperator, "mgda": MGDAOperator}
CPU = torch.device("cpu")
every = pytest.mark.parametrize("method", RULES)


def coefficients(method: str, rows: Tensor, **settings: Any) -> list[Tensor]:
    """By torch operations and, where the method has them, by compiled code; of an exact Gram matrix."""
    rule = make_rule(method, len(rows), CPU, **settings)
    gram = reference.gram(rows)
    found = [rule.coefficients(gram, rows.dtype)]
    if rule.native is not None:
        found.append(ops.coefficients(gram, method, dtype=rows.dtype, **settings))
    return found


def updates(method: str, rows: Tensor, **settings: Any) -> list[Tensor]:
    return [c @ rows.double() for c in coefficients(method, rows, **settings)]


def projected(rows: Tensor, start: Tensor) -> Tensor:
    """The vector next to ``start`` that conflicts with no row: the best of all supports."""
    units = rows[rows.norm(dim=1) > 0]
    units = units / units.norm(dim=1, keepdim=True)
    best, distance = torch.zeros_like(start), start.norm()
    for count in range(len(units) + 1):
        for support in combinations(range(len(units)), count):
            left, sigma, _ = torch.linalg.svd(units[[*support]].T, full_matrices=False)
            span = left[:, sigma > 1e-7]
            v = start - span @ (span.T @ start)
            v -= span @ (span.T @ v)
            if (units @ v).min() >= -1e-12 * start.norm() and (start - v).norm() < distance:
                best, distance = v, (start - v).norm()
    return best


def shortest(rows: Tensor) -> Tensor:
    """The shortest convex combination of the rows: the best of all supports."""
    best = rows[rows.norm(dim=1).argmin()]
    for count in range(2, len(rows) + 1):
        for support in combinations(rows, count):
            edges = torch.stack(support[1:]) - support[0]
            shares = -torch.linalg.pinv(edges.T, rtol=1e-9) @ support[0]
            v = support[0] + shares @ edges
            if shares.min() >= -1e-12 and shares.sum() <= 1 + 1e-12 and v.norm() < best.norm():
                best = v
    return best


BY_SUPPORTS = {
    "upgrad": lambda rows: torch.stack([projected(rows, row / len(rows)) for row in rows]).sum(0),
    "dualproj": lambda rows: projected(rows, rows.mean(0)),
    "mgda": shortest,
}


@every
@pytest.mark.parametrize("decades", [0, 2])
@pytest.mark.parametrize(("m", "n"), [(1, 5), (2, 2), (3, 2), (3, 9), (5, 3), (5, 20)])
def test_oracle_is_the_best_of_all_supports(method: str, m: int, n: int, decades: float) -> None:
    rows = torch.randn(m, n, dtype=torch.float64)
    rows = scaled(rows - 0.8 * rows.mean(0), decades)
    exact, best = RULES[method].oracle(rows), BY_SUPPORTS[method](rows)
    assert (exact - best).norm() <= 1e-9 * best.norm() + 1e-12 * rows.norm()


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("m", some([1, 2, 3, 4, 5, 7, 8, 16, 17, 32, 33], quick=[1, 2, 3, 8, 17]))
def test_exact(method: str, m: int, dtype: torch.dtype) -> None:
    rows = torch.randn(m, 3 * m, dtype=torch.float64)
    rows = scaled(rows - 0.9 * rows.mean(0), 6).to(dtype)
    exact = RULES[method].oracle(rows)
    for update in updates(method, rows):
        assert relative_error(update, exact) <= (1e-9 if dtype == torch.float64 else 1e-5)


@every
@pytest.mark.parametrize("cosine", [-0.49, -0.3, 0.0, 0.999, 1 - 1e-8])
def test_equal_angles(method: str, cosine: float) -> None:
    rows = scaled(equiangular(3, 10, cosine), 3)
    exact = RULES[method].oracle(rows)
    for update in updates(method, rows):
        assert relative_error(update, exact) <= 1e-9


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("ratio", [1.0, 1e6, 1e12])
def test_two_nearly_opposed(ratio: float, gap: float) -> None:
    """Closed form: each loses its part along the other."""
    u, v = orthonormal(2, 12)
    angle = math.acos(1 - gap) if gap > 1e-9 else math.sqrt(2 * gap)
    rows = torch.stack([u, ratio * (-math.cos(angle) * u + math.sin(angle) * v)])
    other = rows[1] / rows[1].norm()
    exact = (rows[0] - (rows[0] @ other) * other + rows[1] - (rows[1] @ u) * u) / 2
    for c in coefficients("upgrad", rows):
        judged = Judged(c, rows)
        assert relative_error(c @ rows, exact) <= 5e-15 / angle  # a dozen roundings of what nearly cancels
        assert min(judged.products) >= -1e-9 * judged.length


@every
@pytest.mark.parametrize(("m", "n", "rank"), [(4, 30, 2), (6, 3, 3), (9, 40, 5), (12, 1, 1)])
def test_dependent_gradients(method: str, m: int, n: int, rank: int) -> None:
    rows = low_rank(m, n, rank)
    if n > 1:
        rows += (
            2 * rows.abs().max() * torch.nn.functional.normalize(rows.sum(0), dim=0)
        )  # of rank + 1, not balanced
    exact = RULES[method].oracle(rows)
    for update in updates(method, rows):
        assert (update - exact).norm() <= 1e-9 * rows.norm(dim=1).max()


@every
def test_all_zero_and_balanced_gradients_give_zero(method: str) -> None:
    rows = torch.randn(5, 7, dtype=torch.float64)
    u = rows[0]
    for given_rows in (
        torch.zeros_like(rows),
        rows - rows.mean(0),
        torch.stack([u, -0.3 * u]),
        torch.stack([u, -u, -u]),
    ):
        assert not RULES[method].oracle(given_rows).any()
        for c in coefficients(method, given_rows):
            assert not c.any()


@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_opposed_beside_others(method: str) -> None:
    """What is left lies in the space that the opposed ones leave."""
    rows = equiangular(4, 20, 0.1)
    rows = torch.cat([rows, -3 * rows[:1]])
    free = rows[1:4] - torch.outer(rows[1:4] @ rows[0], rows[0])
    exact = free.sum(0) / 5  # which conflict no more
    assert ((free @ free.T) >= 0).all()
    for update in updates(method, rows):
        assert relative_error(update, exact) <= 1e-12


@every
def test_a_zero_gradient(method: str) -> None:
    """Bounds nothing and counts in the mean; is the shortest convex combination of all."""
    rows = torch.randn(4, 20, dtype=torch.float64)
    rows[2] = 0
    exact = RULES[method].oracle(rows)
    if method == "mgda":
        assert not exact.any()
    else:
        alive = RULES[method].oracle(rows[[0, 1, 3]])
        assert relative_error(exact, 0.75 * alive) <= 1e-12
    for update in updates(method, rows):
        assert (update - exact).norm() <= 1e-12 * rows.norm()


@every
def test_no_conflict_no_change(method: str) -> None:
    """MGDA's answer is then shorter than any gradient."""
    rows = scaled(equiangular(4, 9, 0.3), 2)
    for c in coefficients(method, rows):
        if method == "mgda":
            update = c @ rows
            assert float(c.sum()) == pytest.approx(1, rel=1e-12)
            assert (rows @ update >= (1 - 1e-12) * update.square().sum()).all()
        else:
            torch.testing.assert_close(c, torch.full_like(c, 0.25), rtol=1e-12, atol=0)


@every
def test_order_does_not_matter(method: str) -> None:
    rows = scaled(torch.randn(9, 30, dtype=torch.float64), 3)
    order = torch.randperm(9)
    for one, other in zip(updates(method, rows), updates(method, rows[order]), strict=True):
        assert relative_error(one, other) <= 1e-10


def test_upgrad_is_linear_in_the_lengths() -> None:
    rows, (one, other) = torch.randn(6, 30, dtype=torch.float64), torch.rand(2, 6, 1, dtype=torch.float64)
    for a, b, both in zip(
        *(updates("upgrad", scale * rows) for scale in (one, 1e6 * other, one + 1e6 * other)), strict=True
    ):
        assert relative_error(a + b, both) <= 1e-12


@every
@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e-30, 1e30])
def test_overall_scale(method: str, scale: float) -> None:
    rows = scaled(torch.randn(5, 30, dtype=torch.float64), 6)
    for one, other in zip(updates(method, scale * rows), updates(method, rows), strict=True):
        assert relative_error(one / scale, other) <= 1e-12


@every
def test_torchjds_example(method: str) -> None:
    """Of its documentation, which has UPGrad's and DualProj's to the 1e-4 that it adds to G."""
    rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    documented = {
        "upgrad": [0.2929, 1.9004, 1.9004],
        "dualproj": [0.5563, 1.1109, 1.1109],
        "mgda": [0.0, 1.0, 1.0],
    }
    update = OPERATORS[method]().calculate_gradient(rows)
    torch.testing.assert_close(update, torch.tensor(documented[method]), rtol=0, atol=2e-3)


@every
@settings(max_examples=20, deadline=None)
@given(rows=hard_rows())
def test_a_gram_matrix_in_float32(method: str, rows: Tensor) -> None:
    """May be indefinite: what comes of it is finite, and no part of it is longer than rounding explains."""
    single = (rows / 10.0 ** rows.norm(dim=1, keepdim=True).clamp(min=1e-9).log10().round()).float()
    gram = (single @ single.T).double()
    for rcond in (None, 1e-6):
        rule = make_rule(method, len(rows), CPU, rcond=rcond)
        assert rule.coefficients(gram, torch.float32).isfinite().all()
        assert ops.coefficients(gram, method, rcond=rcond).isfinite().all()


@every
def test_batches_are_the_problems_of_each(method: str) -> None:
    rows = torch.randn(6, 5, 8, dtype=torch.float64)
    rows[1] = 0
    rows[2, 3] = -rows[2, 1]
    update = OPERATORS[method]().calculate_gradient(rows)
    for one, problem in zip(update, rows, strict=True):
        torch.testing.assert_close(
            one, OPERATORS[method]().calculate_gradient(problem), rtol=1e-12, atol=1e-14
        )


@every
@pytest.mark.parametrize("m", [3, 9])
def test_no_value_is_looked_at_on_a_device(method: str, m: int) -> None:
    gram = torch.empty(2, m, m, dtype=torch.float64, device="meta")
    assert RULES[method]().coefficients(gram, torch.float32).shape == (2, m)


@pytest.mark.parametrize("m", [5, 7])
def test_best_of_all_sets_is_the_active_sets(m: int) -> None:
    """The one is taken on devices, the other on the CPU, with so many gradients."""
    rows = torch.nn.functional.normalize(torch.randn(4, m, 9, dtype=torch.float64), dim=-1)
    rows[0, 3] = -rows[0, 1]
    rows[1, 2] = rows[1, 0]
    rows[2] = rows[2] - rows[2].mean(0)
    gram, target = rows @ rows.mT, torch.randn(4, 1, 9, dtype=torch.float64)
    q, size = -(target @ rows.mT)[:, 0], target.norm(dim=-1)
    one = nonnegative(gram, q, size, 1e-13)
    other = _best_of_all(gram, q, size, 8 * EPS, torch.eye(m, dtype=torch.float64))
    for mu in (one, other):
        assert (mu >= 0).all()
    assert ((one - other).unsqueeze(-2) @ rows).norm() <= 1e-12


@every
def test_operators_on_every_backend(method: str, backend: str) -> None:
    rows = torch.randn(4, 1031) - 0.5 * torch.randn(1031)
    assert_served(OPERATORS[method](), RULES[method].oracle(rows), rows)


@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_preferences(method: str, backend: str) -> None:
    rows = torch.randn(4, 500)
    for preferences in (torch.tensor([0.5, 0.0, 2.0, 1.0]), [1e6, 1.0, 0.0, 1e-6]):
        weights = torch.as_tensor(preferences, dtype=torch.float64)
        exact = RULES[method].oracle(rows, weights)
        operator = OPERATORS[method](preferences)
        for same in (operator, copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
            for given_rows in (rows, list(rows)):
                assert relative_error(same.calculate_gradient(given_rows), exact) <= 1e-5
        for update in updates(method, rows, weights=weights):
            assert relative_error(update, exact) <= 1e-12
    assert not OPERATORS[method]([0.0] * 4).calculate_gradient(rows).any()
    momentum = PseudoMomentumOperator(4, gradient_operator=OPERATORS[method]([1, 2, 3, 4]))
    assert momentum.calculate_gradient([0, 1, 2, 3], list(rows)).isfinite().all()


@pytest.mark.parametrize("make", [UPGradOperator, DualProjOperator])
@pytest.mark.parametrize(
    ("pref_vector", "error", "says"),
    [
        ("equal", TypeError, r"pref_vector: got 'equal', want \(m,\) finite numbers"),
        ([[1.0]], ValueError, r"pref_vector: got shape \(1, 1\), torch.float64, want \(m,\) finite"),
        ([1.0, -1.0, 0.0], ValueError, r"pref_vector: got \[1.0, -1.0, 0.0\], want .* none negative"),
        ([1.0, math.nan, 0.0], ValueError, r"pref_vector: got \[1.0, nan, 0.0\], want"),
        ([1.0, 2.0], ValueError, "pref_vector: got 2 numbers, want 3, one a gradient"),
    ],
)
def test_other_preferences_are_refused(
    make: Any, pref_vector: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(pref_vector).calculate_gradient(torch.randn(3, 10))


def test_rcond() -> None:
    """What is within it of another's opposite counts as opposed."""
    u, v = orthonormal(2, 12)
    rows = torch.stack([u, -u + 1e-3 * v])
    assert UPGradOperator().calculate_gradient(rows).any()
    assert not UPGradOperator(rcond=1e-4).calculate_gradient(rows).any()
    with pytest.raises(ValueError, match="rcond: got 2"):
        MGDAOperator(rcond=2)


@every
def test_in_ops(method: str) -> None:
    rows = torch.randn(3, 40)
    update = ops.combine(rows, ops.coefficients(ops.gram(rows), method))
    assert relative_error(update, RULES[method].oracle(rows)) <= 1e-5
