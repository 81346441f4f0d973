"""Krum and PCD, compiled and in torch, against their papers' formulas on full rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inputs import conflicting, orthonormal, relative_error, scaled
from torch import Tensor

import fastconfig
from fastconfig import EveryOperator, GramOperator, KrumOperator, PCDOperator
from fastconfig.methods import PCD, Krum, Rule, native_coefficients

F64 = torch.float64
Solve = Callable[[Tensor, Rule], Tensor]
SOLVES: dict[str, Solve] = {
    "native": lambda gram, rule: native_coefficients(gram, rule, F64),
    "torch": lambda gram, rule: rule.coefficients(gram, F64),
}


@pytest.fixture(params=SOLVES)
def solve(request: pytest.FixtureRequest) -> Solve:
    """G -> c, either way."""
    return SOLVES[request.param]


def update(solve: Solve, rule: Rule, rows: Tensor) -> Tensor:
    full = rows.double()
    return solve(full @ full.T, rule) @ full


@pytest.mark.parametrize("m", [3, 5, 9, 33])
def test_krum_selects_what_the_paper_selects(m: int, solve: Solve) -> None:
    for f, count in ((0, 1), (min(2, m - 3), 2), (m - 3, m)):
        for decades in (0.0,) * (200 if m == 3 else 1) + (6.0,):  # the two closest of three have equal scores
            rows = scaled(torch.randn(m, 20, dtype=F64), decades)
            exact = Krum.oracle(rows, f, count)
            assert relative_error(update(solve, Krum(f, count), rows), exact) <= 1e-12


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_krum_adds_up_squares_and_takes_the_first_of_equals(scale: float, solve: Solve) -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [2.4, 2.4]])  # squares 18, 15.48, 15.48, 12.24
    rows = scale * rows.double()
    assert solve(rows @ rows.T, Krum(0)).tolist() == pytest.approx([0, 0, 0, 1])
    rows = rows.abs()[[1, 2, 1, 2]]
    assert solve(rows @ rows.T, Krum(0)).tolist() == pytest.approx([1, 0, 0, 0])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_scores_that_are_equal_but_for_rounding(count: int, solve: Solve) -> None:
    """Corners of a square far from zero, in any order and turned: sums of other distances, of other bits."""
    for turn in torch.linspace(0.1, 1.5, 20, dtype=F64):
        corners = 0.1 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)
        turned = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.stack([-turn.sin(), turn.cos()])])
        rows = (corners @ turned)[torch.randperm(4)] + torch.tensor([0.7, -0.3], dtype=F64)
        c = solve(rows @ rows.T, Krum(0, count))
        assert c.tolist() == pytest.approx([1 / count] * count + [0] * (4 - count))


@pytest.mark.parametrize("low", [-15.0, -30.0])
def test_krum_of_norms_far_apart(low: float, solve: Solve) -> None:
    """The scores of the short ones differ by what they are themselves, however long another one is."""
    u = torch.linalg.qr(torch.randn(12, 5, dtype=F64))[0].T
    short = 10**low * torch.stack([u[0] + u[1], u[0] + 0.1 * u[2], u[0], u[0] - 0.2 * u[3]])
    for rows in (torch.cat([short, u[4:]]), torch.cat([10**-low * u[4:], short])):
        assert relative_error(update(solve, Krum(1), rows), Krum.oracle(rows, 1)) <= 1e-12


def test_krum_of_zero_gradients(solve: Solve) -> None:
    """They are gradients like any other, and may be chosen."""
    rows = torch.cat([torch.randn(2, 10, dtype=F64), torch.zeros(3, 10, dtype=F64)])
    assert not update(solve, Krum(1), rows).any()
    exact = Krum.oracle(rows, 0, 4)
    assert relative_error(update(solve, Krum(0, 4), rows), exact) <= 1e-12
    assert not solve(torch.zeros(4, 4, dtype=F64), Krum()).any()


def test_too_few_gradients_are_refused_everywhere(solve: Solve) -> None:
    gram, says = torch.eye(4, dtype=F64), "grads: got 4 gradients, want at least 5"
    with pytest.raises(ValueError, match=says):
        solve(gram, Krum(2))
    with pytest.raises(ValueError, match=says):
        fastconfig.ops.coefficients(gram, "krum", n_byzantine=2)
    for operator in (KrumOperator(2), GramOperator(Krum(2)), EveryOperator(Krum(2), 2)):
        operators: list[GramOperator] = [operator, fastconfig.LogLossesOperator(Krum(2))]
        for each in operators:
            with pytest.raises(ValueError, match=says):
                each.calculate_gradient(torch.randn(4, 5), [1.0] * 4)
    network = torch.nn.Linear(2, 4)
    with pytest.raises(ValueError, match=says):
        fastconfig.backward([*network(torch.randn(3, 2)).mean(0)], network, KrumOperator(2))
    assert network.weight.grad is None


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_pcd_over_several_calls(m: int) -> None:
    operator = PCDOperator(0.5, 0.9)
    average = torch.zeros(m, dtype=torch.float64)
    for step in range(5):
        rows = conflicting(m, 40).double() if m > 1 else torch.randn(1, 40).double()
        average = 0.9 * average + 0.1 * rows.square().sum(1)
        exact = PCD.oracle(rows, 0.5, squares=average / (1 - 0.9 ** (step + 1)))
        assert relative_error(operator.calculate_gradient(rows), exact) <= 1e-9


def test_pcd_of_batches_with_averages_and_shares(solve: Solve) -> None:
    """Averages of their own in every problem; NaN leaves them."""
    taus = torch.tensor([0.1, 0.0, 1.0], dtype=F64)
    averages, kept = torch.zeros(3, 5, dtype=F64), torch.zeros(3, 5, dtype=F64)
    for step in range(4):
        batch = torch.randn(3, 4, 30, dtype=F64) - 0.5 * torch.randn(30, dtype=F64)
        broken = step == 1
        if broken:
            batch[1, 2, 5] = torch.inf
        c = solve(batch @ batch.mT, PCD(taus, 0.9, 20.0, averages=kept))
        for k in range(3):
            if broken and k == 1:
                assert c[k].isnan().all()
                continue
            averages[k, :4] = 0.9 * averages[k, :4] + 0.1 * batch[k].square().sum(1)
            averages[k, 4] += 1
            squares = averages[k, :4] / (1 - 0.9 ** averages[k, 4])
            assert relative_error(c[k] @ batch[k], PCD.oracle(batch[k], taus, 20.0, squares)) <= 1e-9
        torch.testing.assert_close(kept, averages, rtol=1e-12, atol=0)


@pytest.mark.parametrize("tau", [0.0, 0.02, 1.0])
def test_pcd_at_all_norms_and_angles(tau: float, solve: Solve) -> None:
    """Also of dependent gradients, whose constraints may contradict each other."""
    for m, n, decades in ((4, 50, 0), (5, 50, 3), (6, 6, 1), (4, 3, 1), (3, 9, 30)):
        for scale in (1e-12, 1.0, 1e12):
            rows = scaled(torch.randn(m, n, dtype=F64) - 0.5 * torch.randn(n), decades) * scale
            exact, found = PCD.oracle(rows, tau, 0.0), update(solve, PCD(tau, eps=0.0), rows)
            assert (found - exact).norm() <= 1e-9 * rows[0].norm()


@pytest.mark.parametrize(("m", "rank"), [(9, 9), (33, 33), (33, 7)])
def test_pcd_of_many(m: int, rank: int, solve: Solve) -> None:
    """What the solution of a convex program is known by: feasible, y >= 0, and one of both is tight."""
    for _ in range(10 if solve is SOLVES["native"] else 1):  # so that some constraints have to be dropped
        basis = orthonormal(rank, 80)
        turns = torch.nn.functional.normalize(torch.randn(m, rank - 1, dtype=F64)) @ basis[1:]
        rows = turns + basis[0]  # along which all constraints can be met
        rows[0] -= 1.9 * basis[0]
        rows = scaled(rows, 3)
        norms = rows.norm(dim=1)
        units = rows / norms[:, None]
        c = solve(rows @ rows.T, PCD(0.3, eps=0.0))
        y = c * norms / (c[0] * norms[0])  # h_1 has length 1
        products = units @ (y @ units)
        assert float((c @ rows).norm() / norms[0]) == pytest.approx(1, abs=1e-9)
        size = 1e-9 * y.abs().sum()
        assert (y >= -size).all()
        assert (y[1:] > 0).any()
        assert (products[1:] >= 0.3 - size).all()
        assert (y[1:] * (products[1:] - 0.3)).abs().max() <= size * y.max()


def test_pcd_special_cases(solve: Solve) -> None:
    u, v = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=F64)

    def merge(*rows: Tensor, tau: float = 0.02) -> Tensor:
        return update(solve, PCD(tau), torch.stack(rows))

    assert torch.equal(merge(u, v, -v), u)  # v and -v contradict each other
    assert not merge(0 * u, v, u).any()
    torch.testing.assert_close(merge(u, 0 * v), u)
    assert not merge(u, -u, tau=0.0).any()  # d is zero
    torch.testing.assert_close(merge(u), u)
    assert merge(u, v * torch.nan).isnan().all()


def test_as_many_shares_as_other_gradients(solve: Solve) -> None:
    rule, says = PCD([0.1, 0.2, 0.3]), r"tau: got 3 of them for 3 gradients, want 2"
    with pytest.raises(ValueError, match=says):
        solve(torch.eye(3, dtype=F64), rule)
    for operator in (PCDOperator([0.1, 0.2, 0.3]), GramOperator(rule)):
        with pytest.raises(ValueError, match=says):
            operator.calculate_gradient(torch.randn(3, 5))
    taus = torch.tensor([0.9, 0.1], dtype=F64)
    operator, rows = PCDOperator(taus), conflicting(3, 30).double()
    exact = PCD.oracle(rows, [0.9, 0.1])
    taus.zero_()  # the operator has numbers of its own
    assert relative_error(operator.calculate_gradient(rows), exact) <= 1e-9


def test_a_state_of_version_0_2_0() -> None:
    """It kept the averages and the number of calls apart."""
    operator, calls = PCDOperator(0.4, 0.5), [conflicting(3, 30) for _ in range(3)]
    for rows in calls[:2]:
        operator.calculate_gradient(rows)
    averages = operator.state_dict()["averages"]
    for prefix in ("", "groups.trunk."):
        other = PCDOperator(0.4, 0.5)
        other.load_state_dict({f"{prefix}squares": averages[:3], f"{prefix}steps": averages[3:]})
        assert torch.equal(other.state_dict()[f"{prefix}averages"], averages)
        if not prefix:
            assert torch.equal(other.calculate_gradient(calls[2]), operator.calculate_gradient(calls[2]))
