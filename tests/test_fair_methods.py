"""Nash-MTL, FairGrad and CAGrad against optima found another way, and what they promise of any gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hard import hard_rows
from hypothesis import given, settings
from inputs import equiangular, low_rank, orthonormal, relative_error, scaled
from pairs import some
from schedules import assert_served
from torch import Tensor

import fastconfig
from fastconfig import (
    CAGradOperator,
    FairGradOperator,
    NashMTLOperator,
    ops,
    reference,
)
from fastconfig.methods import CAGrad, FairGrad, NashMTL, Rule, make_rule, newton

CPU = torch.device("cpu")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nash": ("nash", {}),
    "nash-long": ("nash", {"max_norm": None}),
    "nash-relative": ("nash", {"max_norm": None, "relative": True}),
    "fair-half": ("fairgrad", {"alpha": 0.5}),
    "fair-1": ("fairgrad", {}),
    "fair-2": ("fairgrad", {"alpha": 2.0}),
    "fair-5": ("fairgrad", {"alpha": 5.0}),
    "ca-fifth": ("cagrad", {"c": 0.2}),
    "ca-half": ("cagrad", {}),
    "ca-1": ("cagrad", {"c": 1.0, "rescale": 1}),
    "ca-3": ("cagrad", {"c": 3.0, "rescale": 2}),
}
RULES: dict[str, type[Rule]] = {"nash": NashMTL, "fairgrad": FairGrad, "cagrad": CAGrad}
OPERATORS: dict[str, Any] = {"nash": NashMTLOperator, "fairgrad": FairGradOperator, "cagrad": CAGradOperator}
every = pytest.mark.parametrize(
    "case", some([*CASES], quick=["nash", "fair-half", "fair-2", "ca-half", "ca-3"])
)
bargains = pytest.mark.parametrize(
    "case", some([case for case in CASES if not case.startswith("ca")], quick=["nash", "fair-half", "fair-5"])
)


def coefficients(case: str, rows: Tensor) -> list[Tensor]:
    """By torch operations and, where the method has them, by compiled code; of an exact Gram matrix."""
    method, given_settings = CASES[case]
    rule = make_rule(method, len(rows), CPU, **given_settings)
    gram = reference.gram(rows)
    found = [rule.coefficients(gram, rows.dtype)]
    if rule.native is not None:
        found.append(ops.coefficients(gram, method, dtype=rows.dtype, **given_settings))
    return found


def updates(case: str, rows: Tensor) -> list[Tensor]:
    return [c @ rows.double() for c in coefficients(case, rows)]


def oracle(case: str, rows: Tensor) -> Tensor:
    method, given_settings = CASES[case]
    return RULES[method].oracle(rows, **given_settings)


def operator(case: str) -> Any:
    method, given_settings = CASES[case]
    return OPERATORS[method](**given_settings)


def of_all_supports(rows: Tensor, c: float) -> Tensor:
    """CAGrad's update: of the best vectors of equal products with some rows, the best for all."""
    mean = rows.mean(0)
    best = mean - c * mean
    for count in range(1, len(rows) + 1):
        for support in combinations(rows, count):
            lengths = torch.stack(support).norm(dim=1)
            q, r = torch.linalg.qr((torch.stack(support) / lengths[:, None]).T)
            if r.shape[0] < r.shape[1] or r.diagonal().abs().min() < 1e-7:
                continue
            equal = q @ torch.linalg.solve_triangular(r.T, 1 / lengths[:, None], upper=False)[:, 0]
            off = q @ (q.T @ mean) - (equal @ mean) / equal.square().sum() * equal
            spare = (c * mean.norm()) ** 2 - off.square().sum()
            if spare > 0:
                v = mean - off + spare.sqrt() * equal / equal.norm()
                best = max(best, v, key=lambda vector: float((rows @ vector).min()))
    return best


@every
@settings(max_examples=15, deadline=None)
@given(rows=hard_rows())
def test_finite_and_no_conflict_whatever_the_gradients(case: str, rows: Tensor) -> None:
    """Up to what rounding of G costs; for CAGrad test_programs.py has it in exact fractions."""
    for c in coefficients(case, rows):
        assert c.isfinite().all()
        if not case.startswith("ca"):
            units = torch.nn.functional.normalize(rows, dim=1)
            shares = c * rows.norm(dim=1)
            assert (units @ (shares @ units) >= -1e-6 * shares.abs().sum()).all()


@bargains
@pytest.mark.parametrize("decades", [0, 1, 3, 6])
@pytest.mark.parametrize("m", [2, 3, 8, 17])
def test_the_papers_equation(case: str, m: int, decades: float) -> None:
    """G c = c^(-1 / alpha), but for the length that Nash-MTL then gives."""
    rows = torch.randn(m, 3 * m, dtype=torch.float64)
    rows = scaled(rows - 0.9 * rows.mean(0), decades)
    alpha = CASES[case][1].get("alpha", 1.0)
    for c in coefficients(case, rows):
        assert (c > 0).all()
        gains = reference.gram(rows) @ c
        exponents = gains.log() + c.log() / alpha
        if case not in ("nash-long", "fair-half", "fair-1", "fair-2", "fair-5"):
            exponents = exponents - exponents.mean()
        cancelled = (reference.gram(rows).abs() @ c) / gains  # what rounding of c and G grows by
        assert (exponents.abs() <= 1e-9 + 1e-15 * cancelled).all()


@pytest.mark.parametrize(("case", "alpha"), [("nash-long", 1.0), ("fair-1", 1.0), ("fair-2", 2.0)])
def test_all_digits_of_many_problems(case: str, alpha: float) -> None:
    """Whichever step is the last: G c = c^(-1 / alpha) up to rounding of the sums."""
    method, given_settings = CASES[case]
    rows = torch.randn(300, 4, 12, dtype=torch.float64)
    gram = rows @ rows.mT
    rule = make_rule(method, 4, CPU, **given_settings)
    for c in (rule.coefficients(gram, gram.dtype), ops.coefficients(gram, method, **given_settings)):
        gains, parts = (torch.einsum("bij,bj->bi", g, c) for g in (gram, gram.abs()))
        assert ((gains.log() + c.log() / alpha).abs() <= 1e-13 * parts / gains).all()


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("decades", [0, 2, 6])
@pytest.mark.parametrize(("m", "n"), [(1, 5), (2, 2), (3, 9), (5, 20)])
def test_cagrads_oracle_is_the_best_of_all_supports(m: int, n: int, decades: float, c: float) -> None:
    rows = torch.randn(m, n, dtype=torch.float64)
    rows = scaled(rows - 0.9 * rows.mean(0), decades)
    exact, best = CAGrad.oracle(rows, c=c), of_all_supports(rows, c)
    assert (exact - best).norm() <= 1e-9 * best.norm()


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("m", some([1, 2, 3, 4, 5, 7, 8, 16, 17, 32, 33], quick=[1, 3, 8, 17]))
def test_exact(case: str, m: int, dtype: torch.dtype) -> None:
    rows = torch.randn(m, 3 * m, dtype=torch.float64)
    rows = scaled(rows - 0.9 * rows.mean(0), 2).to(dtype)
    exact = oracle(case, rows)
    for update in updates(case, rows):
        assert relative_error(update, exact) <= (1e-9 if dtype == torch.float64 else 1e-5)


@every
@pytest.mark.parametrize("cosine", [-0.49, -0.3, 0.0, 0.999, 1 - 1e-8])
def test_equal_angles(case: str, cosine: float) -> None:
    rows = scaled(equiangular(3, 10, cosine), 1)
    exact = oracle(case, rows)
    for update in updates(case, rows):
        assert relative_error(update, exact) <= 1e-9


@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("case", ["nash", "fair-1", "fair-2", "ca-1"])
def test_two_nearly_opposed(case: str, gap: float) -> None:
    """Of one length: all methods halve the angle between them."""
    u, v = orthonormal(2, 12)
    rows = torch.stack([u + gap * v, -u + gap * v])
    for update in updates(case, rows):
        assert relative_error(update / update.norm(), v) <= 1e-15 / gap


@every
@pytest.mark.parametrize(("m", "n", "rank"), [(4, 30, 2), (6, 3, 3), (9, 40, 5), (12, 1, 1)])
def test_dependent_gradients(case: str, m: int, n: int, rank: int) -> None:
    rows = low_rank(m, n, rank)
    rows += 2 * rows.abs().max() * torch.nn.functional.normalize(torch.randn(n, dtype=torch.float64), dim=0)
    exact = oracle(case, rows)
    for update in updates(case, rows):
        assert relative_error(update, exact) <= 1e-9


@every
def test_duplicates(case: str) -> None:
    rows = torch.randn(3, 20, dtype=torch.float64)
    rows = torch.cat([rows, rows[:2], 1e-4 * rows[:1]])
    exact = oracle(case, rows)
    for update in updates(case, rows):
        assert relative_error(update, exact) <= 1e-9


@every
def test_all_zero_and_opposed_gradients_give_zero(case: str) -> None:
    """As does what is balanced, where zero is within reach of the mean."""
    rows = torch.randn(5, 7, dtype=torch.float64)
    u = rows[0]
    problems = [torch.zeros_like(rows), torch.stack([u, -u]), rows - rows.mean(0)]
    if case not in ("ca-fifth", "ca-half"):
        problems += [torch.stack([u, -0.3 * u]), torch.stack([u, -u, -u, rows[1]])]
    for given_rows in problems:
        assert oracle(case, given_rows).norm() <= 1e-12
        for update in updates(case, given_rows):
            assert update.norm() <= 1e-12


@every
def test_a_zero_gradient(case: str) -> None:
    """Drops out, but for the mean gradient of CAGrad."""
    rows = torch.randn(4, 20, dtype=torch.float64)
    rows[2] = 0
    exact = oracle(case, rows)
    alive = oracle(case, rows[[0, 1, 3]])
    assert relative_error(exact, 0.75 * alive if case.startswith("ca") else alive) <= 1e-9
    for update in updates(case, rows):
        assert relative_error(update, exact) <= 1e-9


@every
def test_order_does_not_matter(case: str) -> None:
    rows = scaled(torch.randn(9, 30, dtype=torch.float64), 2)
    order = torch.randperm(9)
    for one, other in zip(updates(case, rows), updates(case, rows[order]), strict=True):
        assert relative_error(one, other) <= 1e-10


@every
@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e-30, 1e30])
def test_overall_scale(case: str, scale: float) -> None:
    rows = scaled(torch.randn(5, 30, dtype=torch.float64), 2)
    method, given_settings = CASES[case]
    alpha = given_settings.get("alpha", 1.0)
    power = {"nash": 0.0, "cagrad": 1.0, "fairgrad": (1 - alpha) / (1 + alpha)}[method]
    power = 1.0 if case == "nash-relative" else power
    for one, other in zip(updates(case, scale * rows), updates(case, rows), strict=True):
        assert relative_error(one, scale**power * other) <= 1e-12


def test_lengths_of_nash() -> None:
    rows = scaled(torch.randn(5, 30, dtype=torch.float64), 1)
    for case, length in (("nash", 1.0), ("nash-long", 5**0.5)):
        for update in updates(case, rows):
            assert float(update.norm()) == pytest.approx(length, rel=1e-12)
    for max_norm in (None, 0):
        update = NashMTLOperator(max_norm=max_norm).calculate_gradient(rows)
        assert float(update.norm()) == pytest.approx(5**0.5, rel=1e-12)
    short = NashMTLOperator(relative=True).calculate_gradient(1e-6 * rows)
    assert relative_error(short, 1e-6 * oracle("nash-relative", rows)) <= 1e-9


def test_the_mean() -> None:
    rows = scaled(torch.randn(5, 30, dtype=torch.float64), 1)
    for made in (CAGradOperator(0), FairGradOperator(0)):
        assert relative_error(made.calculate_gradient(rows), rows.mean(0)) <= 1e-14


def test_alpha_one_is_nash() -> None:
    rows = scaled(torch.randn(5, 30, dtype=torch.float64), 3)
    for one, other in zip(updates("fair-1", rows), updates("nash-long", rows), strict=True):
        assert relative_error(one, other) <= 1e-12


@pytest.mark.parametrize("c", [0.2, 1.0, 3.0])
def test_cagrad_stays_within_reach_of_the_mean(c: float) -> None:
    rows = scaled(torch.randn(7, 30, dtype=torch.float64), 1)
    mean = rows.mean(0)
    away = CAGradOperator(c).calculate_gradient(rows) - mean
    assert float(away.norm() / mean.norm()) == pytest.approx(c, rel=1e-10)


@pytest.mark.parametrize("case", ["nash", "ca-1"])
def test_torchjds_example(case: str) -> None:
    """Of its documentation."""
    rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    if case == "nash":
        update, documented = NashMTLOperator().calculate_gradient(rows), [0.0542, 0.7061, 0.7061]
    else:
        update, documented = CAGradOperator(0.5).calculate_gradient(rows), [0.1835, 1.2041, 1.2041]
    torch.testing.assert_close(update, torch.tensor(documented), rtol=0, atol=1e-3)


@every
@settings(max_examples=15, deadline=None)
@given(rows=hard_rows())
def test_a_gram_matrix_in_float32(case: str, rows: Tensor) -> None:
    """May be indefinite: what comes of it is finite."""
    method, given_settings = CASES[case]
    single = (rows / 10.0 ** rows.norm(dim=1, keepdim=True).clamp(min=1e-9).log10().round()).float()
    gram = (single @ single.T).double()
    for rcond in (None, 1e-6):
        rule = make_rule(method, len(rows), CPU, rcond=rcond, **given_settings)
        assert rule.coefficients(gram, torch.float32).isfinite().all()
        assert ops.coefficients(gram, method, rcond=rcond, **given_settings).isfinite().all()


@every
def test_batches_are_the_problems_of_each(case: str) -> None:
    rows = torch.randn(6, 5, 8, dtype=torch.float64)
    rows[1] = 0
    rows[2, 3] = -rows[2, 1]
    merge: Callable[[Tensor], Tensor] = operator(case).calculate_gradient
    for one, problem in zip(merge(rows), rows, strict=True):
        torch.testing.assert_close(one, merge(problem), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", ["nash", "fair-2", "ca-half"])
def test_no_value_is_looked_at_on_a_device(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "_NASH_STEPS", 2)
    monkeypatch.setattr(newton, "_FAIR_STEPS_ON_DEVICE", 2)
    method, given_settings = CASES[case]
    gram = torch.empty(2, 4, 4, dtype=torch.float64, device="meta")
    assert RULES[method](**given_settings).coefficients(gram, torch.float32).shape == (2, 4)


@pytest.mark.parametrize("case", ["nash", "fair-2", "ca-half"])
def test_operators_on_every_backend(case: str, backend: str) -> None:
    rows = torch.randn(4, 1031) - 0.5 * torch.randn(1031)
    assert_served(operator(case), oracle(case, rows), rows)


@every
def test_copies_and_pickles(case: str) -> None:
    rows = torch.randn(3, 9)
    made = operator(case)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(copied.calculate_gradient(rows), made.calculate_gradient(rows))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CAGradOperator(-1), "c: got -1, want a finite number >= 0"),
        (lambda: CAGradOperator("1"), "c: got '1', want a finite number >= 0"),
        (lambda: CAGradOperator(rescale=3), "rescale: got 3, want 0, 1 or 2"),
        (lambda: FairGradOperator(float("nan")), "alpha: got nan, want a finite number >= 0"),
        (lambda: NashMTLOperator(-2.0), "max_norm: got -2.0, want None or a finite number >= 0"),
        (lambda: NashMTLOperator(relative=1), "relative: got 1, want True or False"),
        (lambda: NashMTLOperator(rcond=2), "rcond: got 2, want"),
    ],
)
def test_mistakes(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
        make()


def test_backward() -> None:
    network = torch.nn.Linear(3, 2)
    losses = list(network(torch.randn(5, 3)).square().mean(0))
    fastconfig.backward(losses, network, CAGradOperator())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
