"""Mean, Sum, Constant, Random, GradVac and the log forms, against their papers' formulas; states."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from inputs import BACKENDS, conflicting, low_rank, relative_error, rounding_bound, scaled
from torch import Tensor

import fastconfig
from fastconfig import ops
from fastconfig.methods import (
    IMTLG,
    MGDA,
    PCD,
    RULES,
    CAGrad,
    ConFIG,
    Constant,
    ConstantOperator,
    EveryOperator,
    GradVac,
    GradVacOperator,
    GramOperator,
    Krum,
    KrumOperator,
    LogLosses,
    LogLossesOperator,
    MeanOperator,
    PCDOperator,
    PPCGrad,
    RandomOperator,
    Rule,
    Sum,
    SumOperator,
    native_coefficients,
)

WEIGHTS = [0.5, -2.0, 3.0]


def source(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


#: an operator, made anew, and the oracle of its first call on three gradients
FIRST: dict[str, tuple[Any, Any]] = {
    "mean": (MeanOperator, RULES["mean"].oracle),
    "sum": (SumOperator, RULES["sum"].oracle),
    "constant": (lambda: ConstantOperator(WEIGHTS), lambda rows: Constant.oracle(rows, WEIGHTS)),
    "random": (
        lambda: RandomOperator(generator=source()),
        lambda rows: RULES["random"].oracle(rows, source()),
    ),
    "krum": (KrumOperator, Krum.oracle),
    "krum-2": (lambda: KrumOperator(0, 2), lambda rows: Krum.oracle(rows, 0, 2)),
    "gradvac": (lambda: GradVacOperator(shuffle=False), GradVac.oracle),
    "pcd": (lambda: PCDOperator(0.3), lambda rows: PCD.oracle(rows, 0.3)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FIRST)
def test_every_backend(name: str, backend: str) -> None:
    make, oracle = FIRST[name]
    for dtype in (torch.float32, torch.float64):
        rows = conflicting(3, 1031).to(dtype)
        exact = oracle(rows)
        with fastconfig.use_backend(backend):
            update = make().calculate_gradient(list(rows))
        assert relative_error(update, exact) <= max(rounding_bound(rows, exact), 1e-12)


@pytest.mark.parametrize("name", FIRST)
def test_batches_are_problem_by_problem(name: str) -> None:
    if name == "random":
        return
    make, oracle = FIRST[name]
    batch = torch.stack([conflicting(3, 50).double() for _ in range(4)])
    batch[2, 1] = torch.nan
    updates = make().calculate_gradient(batch)
    for i, (update, rows) in enumerate(zip(updates, batch, strict=True)):
        if i == 2:
            assert update.isnan().all()
        else:
            assert relative_error(update, oracle(rows)) <= 1e-11


@pytest.mark.parametrize("name", FIRST)
def test_all_zero(name: str) -> None:
    assert not FIRST[name][0]().calculate_gradient(torch.zeros(3, 20)).any()


def coefficients(rule: Rule, rows: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return rule.coefficients(rows.double() @ rows.double().T, dtype)


@pytest.mark.parametrize("order", [None, "random"])
@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_gradvac_over_several_calls(m: int, order: str | None) -> None:
    operator = GradVacOperator(0.3, shuffle=order is not None, generator=source())
    targets, drawn = torch.zeros(m, m, dtype=torch.float64), source()
    base = torch.randn(40, dtype=torch.float64)
    for step in range(6):
        rows = scaled(torch.randn(m, 40, dtype=torch.float64) + (step % 3) * base, 4)
        if step == 3 and m > 1:
            rows[1] = 0
        orders = None if order is None else torch.rand(m, m, generator=drawn).argsort(-1)
        exact = GradVac.oracle(rows, targets, 0.3, orders)
        assert relative_error(operator.calculate_gradient(rows), exact) <= 1e-9
        torch.testing.assert_close(operator.state_dict()["targets"], targets, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 8, 33])
def test_gradvac_compiled_and_plain(m: int) -> None:
    """Batches, with orders and targets of their own; NaN in one problem leaves its targets."""
    rows = torch.randn(4, m, 20, dtype=torch.float64) + torch.randn(20, dtype=torch.float64)
    rows = rows * 10 ** (6 * torch.rand(4, m, 1, dtype=torch.float64) - 3)
    rows[1, 0], rows[3, m - 1] = 0, torch.nan
    order = torch.rand(4, m, m).argsort(-1)
    targets = torch.rand(4, m, m, dtype=torch.float64) * 2 - 1
    for orders in (order, order[0], None):
        states = [targets.clone() for _ in range(2)]
        rules = [GradVac(0.3, orders, state) for state in states]
        gram = rows @ rows.mT
        plain, native = (
            rules[0].coefficients(gram, torch.float64),
            native_coefficients(gram, rules[1], torch.float64),
        )
        finite = [0, 1, 2]
        torch.testing.assert_close(native[finite], plain[finite], rtol=1e-9, atol=0)
        assert native[3].isnan().all()
        torch.testing.assert_close(*states, rtol=1e-10, atol=1e-12)
        assert torch.equal(states[1][3], targets[3])


def test_gradvac_reaches_its_targets() -> None:
    """The first of two gradients is turned until its cosine with the other is the target."""
    targets = torch.tensor([[0.0, 0.4], [-1.0, 0.0]], dtype=torch.float64)
    rows = torch.tensor([[1.0, 0.0, 0.0], [-3.0, 1.0, 2.0]], dtype=torch.float64)
    update = coefficients(GradVac(targets=targets), rows) @ rows
    assert float(torch.cosine_similarity(update - rows[1], rows[1], dim=0)) == pytest.approx(0.4)
    assert float(targets[0, 1]) == pytest.approx(0.2 - 1.5 / 14**0.5)  # half-way to the cosine found


def test_gradvac_with_a_target_of_one_takes_a_bounded_part() -> None:
    """1 - t^2 counts as rcond, so that unit gradients at a cosine of 0.6 take 0.8 / 0.01 - 0.6."""
    gram = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    wanted = torch.tensor([1.0, 80.4], dtype=torch.float64)
    for find in (native_coefficients, lambda gram, rule, dtype: rule.coefficients(gram, dtype)):
        targets = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
        c = find(gram, GradVac(targets=targets, rcond=1e-4), torch.float64)
        torch.testing.assert_close(c, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rows", [[[1.0, 2.0]] * 3, [[1.0, 2.0], [-2.0, -4.0], [1.0, 2.0]]])
def test_gradvac_of_dependent_gradients_stays_finite(rows: list[list[float]]) -> None:
    operator = GradVacOperator(1.0, shuffle=False)
    for _ in range(4):
        update = operator.calculate_gradient(torch.tensor(rows))
        assert update.isfinite().all()
    assert (operator.state_dict()["targets"].abs() <= 1).all()


@pytest.mark.parametrize("rule", [IMTLG(), MGDA(), CAGrad(), ConFIG(), Krum(), PPCGrad()])
def test_log_losses(rule: Rule) -> None:
    rows, losses = conflicting(4, 100).double(), torch.tensor([0.5, 2.0, 30.0, 1e-3], dtype=torch.float64)
    exact = type(rule).oracle(rows / losses[:, None])
    operator = LogLossesOperator(rule)
    assert relative_error(operator.calculate_gradient(rows, losses.tolist()), exact) <= 1e-10
    scales = torch.tensor([1.0, 1e4, 1e-5, 7.0], dtype=torch.float64)
    again = operator.calculate_gradient(rows * scales[:, None], losses * scales)
    assert relative_error(again, exact) <= 1e-10  # a loss that is scaled changes nothing
    with pytest.raises(ValueError, match="losses: got None, want 4 of them"):
        operator.calculate_gradient(rows)
    with pytest.raises(ValueError, match=r"losses: got .*, want positive ones"):
        operator.calculate_gradient(rows, [1.0, 0.0, 2.0, 3.0])


def test_log_losses_in_backward() -> None:
    net = torch.nn.Linear(3, 2).double()
    y = net(torch.randn(8, 3, dtype=torch.float64))
    losses = [y[:, 0].square().mean(), y[:, 1].square().mean() * 100]
    wanted = torch.autograd.grad(losses[0].log() + losses[1].log(), list(net.parameters()), retain_graph=True)
    fastconfig.backward(losses, net, LogLossesOperator(Sum()))
    for parameter, exact in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, exact)


def test_coefficients_of_every_third_call() -> None:
    rows = [conflicting(3, 30).double() for _ in range(7)]
    operator, merge = EveryOperator(ConFIG(), 3), GramOperator(ConFIG())
    for step, each in enumerate(rows):
        c = merge.coefficients(ops.gram(rows[step - step % 3]))
        torch.testing.assert_close(operator.calculate_gradient(each), c @ each)
    operator.reset()
    broken = rows[0].clone()
    broken[1, 2] = torch.inf
    assert operator.calculate_gradient(broken).isnan().all()
    # nothing is kept: they are found anew at once
    torch.testing.assert_close(operator.calculate_gradient(rows[1]), merge.calculate_gradient(rows[1]))
    c = merge.coefficients(ops.gram(rows[1]))
    torch.testing.assert_close(operator.calculate_gradient(rows[2]), c @ rows[2])
    assert operator.calculate_gradient(broken).isnan().all()
    assert operator.calculate_gradient(broken).isnan().all()  # when they are due
    torch.testing.assert_close(operator.calculate_gradient(rows[5]), c @ rows[5])
    assert operator.calculate_gradient(torch.randn(4, 9)).isfinite().all()  # another m: starts anew


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_length_is_cut_in_every_call(scale: float) -> None:
    rows = scale * torch.randn(3, 30).double()
    operator = EveryOperator(Sum(), 2, max_norm=scale)
    for factor in (1.0, 100.0, 1e-6):
        update = operator.calculate_gradient(factor * rows)
        assert float(update.norm() / scale) == pytest.approx(
            min(1, factor * float(rows.sum(0).norm() / scale))
        )


STATEFUL = {
    "gradvac": lambda: GradVacOperator(generator=source()),
    "pcd": lambda: PCDOperator(0.4, 0.5),
    "every": lambda: EveryOperator(ConFIG(), 2),
}


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_state(make: Any) -> None:
    operator, calls = make(), [conflicting(3, 30) for _ in range(4)]
    first = operator.calculate_gradient(calls[0])
    operator.calculate_gradient(calls[1])
    twins = [copy.copy(operator), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator)), make()]
    twins[-1].load_state_dict(operator.state_dict())
    saved = operator.state_dict()
    for twin in twins:
        if hasattr(operator, "generator"):
            twin.generator = source(9)
        twin.calculate_gradient(calls[2])
    for twin in twins[1:]:
        for name, value in twins[0].state_dict().items():
            assert torch.equal(twin.state_dict()[name], value)
    assert all(torch.equal(saved[name], value) for name, value in operator.state_dict().items())
    before = operator.state_dict()
    broken = calls[2].clone()
    broken[1, 3] = torch.nan
    assert operator.calculate_gradient(broken).isnan().all()
    after = operator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in {*after} - {"count"})
    operator.reset()
    if hasattr(operator, "generator"):
        operator.generator = source()
    assert torch.equal(operator.calculate_gradient(calls[0]), first)
    assert operator.calculate_gradient(conflicting(4, 30)).isfinite().all()  # another m: starts anew
    with pytest.raises(TypeError, match=r"state: got a list"):
        operator.load_state_dict([])


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_state_in_loops(make: Any) -> None:
    """Momentum, backward and torch.compile all go one call further."""
    rows = conflicting(3, 30)
    momentum = fastconfig.PseudoMomentumOperator(3, gradient_operator=make())
    for _ in range(2):
        assert momentum.calculate_gradient([0, 1, 2], rows).isfinite().all()
    assert momentum.gradient_operator.state_dict()
    operator, net = make(), torch.nn.Linear(3, 2)
    y = net(torch.randn(8, 3))
    fastconfig.backward([y[:, 0].mean(), y[:, 1].square().mean()], net, operator)
    assert operator.state_dict()
    compiled = torch.compile(operator.calculate_gradient, backend="eager")
    assert compiled(rows).isfinite().all()


def test_the_order_of_gradients_does_not_matter() -> None:
    rows, order = conflicting(4, 30).double(), torch.tensor([2, 0, 3, 1])
    for make in (MeanOperator, SumOperator, lambda: KrumOperator(1, 2)):
        merge = make().calculate_gradient
        torch.testing.assert_close(merge(rows), merge(rows[order]), rtol=1e-12, atol=1e-12)


def test_random_weights_are_drawn_anew_and_add_up_to_one() -> None:
    operator = RandomOperator()
    weights = torch.stack([operator.coefficients(torch.eye(3).double()) for _ in range(3)])
    torch.testing.assert_close(weights.sum(1), torch.ones(3).double())
    assert (weights > 0).all()
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_coefficients_of_a_gram_matrix_of_any_dtype(dtype: torch.dtype) -> None:
    rows = torch.randn(3, 20).double() + 0.5
    gram = (rows @ rows.T).to(dtype)
    operator = GramOperator(IMTLG())
    c = operator.coefficients(gram)
    assert c.dtype is dtype
    exact = ops.coefficients(gram.double(), "imtlg")
    torch.testing.assert_close(c, exact.to(dtype))
    with pytest.raises(ValueError, match=r"gram: got shape \(2, 3\)"):
        operator.coefficients(torch.ones(2, 3))


def test_gram_matrix_in_float32_of_dependent_gradients() -> None:
    rows = low_rank(4, 50, 2).float()
    c = GramOperator(ConFIG()).coefficients(rows @ rows.T)
    assert c.abs().max() < 1e3 * ops.coefficients(ops.gram(rows), dtype=torch.bfloat16).abs().max()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Krum(-1), "n_byzantine: got -1, want at least 0"),
        (lambda: Krum(0, 0), "n_selected: got 0, want at least 1"),
        (lambda: Krum(1.5), "n_byzantine: got 1.5, want an integer"),
        (
            lambda: KrumOperator(2).calculate_gradient(torch.ones(4, 3)),
            "got 4 gradients, want at least 5",
        ),
        (lambda: Constant([[1.0]]), r"weights: got shape \(1, 1\), want \(m,\) real"),
        (lambda: Constant("a"), "weights: got 'a', want"),
        (
            lambda: ConstantOperator([1]).calculate_gradient(torch.ones(2, 3)),
            "weights: got 1 of them for 2",
        ),
        (lambda: GradVac(1.5), "beta: got 1.5, want a number from 0 to 1"),
        (lambda: PCD(1.5), "tau: got 1.5, want a number from 0 to 1"),
        (lambda: PCD(beta=1.0), "beta: got 1.0, want a number from 0 to 1"),
        (lambda: PCD(eps=-1.0), "eps: got -1.0, want at least 0"),
        (lambda: RandomOperator(generator=3), "generator: got 3, want None or a torch.Generator"),  # type: ignore[arg-type]
        (lambda: EveryOperator(ConFIG(), 0), "calls: got 0, want at least 1"),
        (lambda: EveryOperator(ConFIG(), 2, max_norm=-1), "max_norm: got -1, want None or at least 0"),
        (lambda: LogLosses("imtlg"), "rule: got 'imtlg', want a Rule"),
    ],
)
def test_refusals(call: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        call()
