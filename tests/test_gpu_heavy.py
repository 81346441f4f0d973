"""Methods that iterate, by the CUDA kernels' launch for them: against the papers' formulas on full rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import pytest
import torch
from inputs import orthonormal, relative_error, scaled
from pairs import some
from schedules import ELEMENTS, errors, joined, per_parameter
from test_aligned import by_singular_vectors
from torch import Tensor

import fastconfig
from fastconfig import (
    AlignedMTLOperator,
    CAGradOperator,
    ConstantOperator,
    DualProjOperator,
    FairGradOperator,
    GradVacOperator,
    KrumOperator,
    MeanOperator,
    MGDAOperator,
    NashMTLOperator,
    PCDOperator,
    PseudoMomentumOperator,
    RandomOperator,
    SumOperator,
    UPGradOperator,
    backends,
    use_backend,
)
from fastconfig.gradients import Gradients
from fastconfig.methods import RULES, native_coefficients

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPERATORS: dict[str, Callable[..., Any]] = {
    "upgrad": UPGradOperator,
    "dualproj": DualProjOperator,
    "mgda": MGDAOperator,
    "cagrad": CAGradOperator,
    "nash": lambda **given: NashMTLOperator(None, **given),
    "fairgrad": lambda **given: FairGradOperator(2.0, **given),
    "aligned": AlignedMTLOperator,
    "gradvac": lambda **given: GradVacOperator(shuffle=False, **given),
    "krum": KrumOperator,
    "pcd": lambda **given: PCDOperator(0.3, **given),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "nash": {"max_norm": None},
    "fairgrad": {"alpha": 2.0},
    "pcd": {"tau": 0.3},
}
LEAST = {"krum": 3}  # gradients
every = pytest.mark.parametrize("method", OPERATORS)


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the CUDA backend; emulated, where there is no GPU."""
    emulated.serve_here(monkeypatch)
    with use_backend("cuda"):
        yield


def oracle(method: str, rows: Tensor) -> Tensor:
    return RULES[method].oracle(rows, **SETTINGS.get(method, {}))


def merged(method: str, rows: Tensor) -> Tensor:
    """By a fresh operator; the state of one counts calls."""
    return OPERATORS[method]().calculate_gradient(list(rows.to(DEVICE))).cpu()


def conflicting(m: int, n: int) -> Tensor:
    rows = torch.randn(m, n, dtype=torch.float64)
    return rows - 0.9 * rows.mean(0)


def in_blocks(m: int) -> tuple[Tensor, list[Tensor]]:
    """m rows in any order, and the groups of up to 8 of them, each orthogonal to all others."""
    sizes = [8] * (m // 8) + ([m % 8] if m % 8 else [])
    n = sum(size + 3 for size in sizes)
    groups, start = [], 0
    for size in sizes:
        group = torch.zeros(size, n, dtype=torch.float64)
        group[:, start : start + size + 3] = scaled(conflicting(size, size + 3), 1)
        groups.append(group)
        start += size + 3
    return torch.cat(groups)[torch.randperm(m)], groups


def of_blocks(method: str, m: int, groups: list[Tensor]) -> Tensor:
    """The update, from those of orthogonal groups."""
    parts = torch.stack([oracle(method, group) for group in groups])
    if method == "mgda":  # what is shortest counts by its inverse square
        shares = 1 / parts.square().sum(1)
        return (shares / shares.sum()) @ parts
    if method in ("upgrad", "dualproj"):
        return torch.tensor([len(group) / m for group in groups], dtype=torch.float64) @ parts
    return parts.sum(0)


@every
@pytest.mark.parametrize("m", some([1, 2, 3, 5, 8, 9], quick=[1, 2, 3, 8, 9]))
def test_exact(method: str, m: int) -> None:
    if m < LEAST.get(method, 1):
        return
    for rows in (scaled(conflicting(m, 2 * m + 1), 2), scaled(conflicting(m, 2 * m + 1), 2).float()):
        exact = oracle(method, rows)
        bound = 1e-9 if rows.dtype == torch.float64 else 1e-5
        assert relative_error(merged(method, rows), exact) <= bound


@every
@pytest.mark.parametrize("m", some([17, 31, 33, 64], quick=[17, 33, 64]))
def test_many(method: str, m: int) -> None:
    """More than a lane has, and more than shared memory holds."""
    if method == "aligned":
        rows = torch.randn(m, 2 * m, dtype=torch.float64)
        exact = by_singular_vectors("min", rows)
    elif method == "cagrad":
        rows = torch.zeros(m, 20, dtype=torch.float64)
        rows[torch.randperm(m)[:7]] = scaled(conflicting(7, 20), 1)
        exact = oracle(method, rows)
    elif method == "pcd":  # a zero gradient's constraint is met
        rows = torch.zeros(m, 20, dtype=torch.float64)
        rows[[0, *(torch.randperm(m - 1)[:6] + 1).tolist()]] = scaled(conflicting(7, 20), 1)
        exact = oracle(method, rows)
    elif method in ("gradvac", "krum"):
        rows = scaled(conflicting(m, m + 5), 2)
        exact = oracle(method, rows)
    else:
        rows, groups = in_blocks(m)
        exact = of_blocks(method, m, groups)
    assert relative_error(merged(method, rows), exact) <= 1e-9


@every
@pytest.mark.parametrize("m", some([9, 17, 31, 33, 64], quick=[17, 64]))
def test_as_on_the_host(method: str, m: int) -> None:
    """One source: many lanes add up in another order, and no more."""
    rows, backend = scaled(conflicting(m, 3 * m), 2), backends.load("cuda")
    grads, operator = Gradients(rows.to(DEVICE)), OPERATORS[method]()
    gram = backend.gram(grads)
    c = backend.coefficients(gram, operator.rule_for(grads), grads).cpu()
    same = OPERATORS[method]().rule_for(Gradients(rows))
    assert relative_error(c, native_coefficients(gram.cpu(), same, rows.dtype)) <= 1e-10


@every
def test_zero_duplicate_and_opposed_rows(method: str) -> None:
    rows = torch.randn(3, 20, dtype=torch.float64)
    for given in (
        torch.cat([rows, rows[:2], 1e-4 * rows[:1]]),
        torch.cat([rows, torch.zeros(1, 20)]),
        torch.stack([rows[0], -rows[0]]),
        torch.zeros(3, 20, dtype=torch.float64),
    ):
        if len(given) < LEAST.get(method, 1):
            continue
        exact = oracle(method, given)
        assert (merged(method, given) - exact).norm() <= 1e-9 * given.norm()


@every
@pytest.mark.parametrize("m", [3, 9])
def test_a_broken_gradient_breaks_the_update(method: str, m: int) -> None:
    for value in (torch.nan, torch.inf):
        rows = torch.randn(m, 100)
        rows[1, 50] = value
        assert merged(method, rows).isnan().all()


WEIGHING: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor]]] = {
    "mean": (MeanOperator, RULES["mean"].oracle),
    "sum": (SumOperator, RULES["sum"].oracle),
    "constant": (lambda: ConstantOperator([2, 0, -1]), lambda rows: 2 * rows[0].double() - rows[2].double()),
    "random": (
        lambda: RandomOperator(generator=torch.Generator().manual_seed(3)),
        lambda rows: RULES["random"].oracle(rows, torch.Generator().manual_seed(3)),
    ),
}


@pytest.mark.parametrize("method", WEIGHING)
def test_weights_that_hang_on_nothing(method: str) -> None:
    """Also where a weight is zero, NaN or Inf in any gradient breaks all of the update."""
    make, exact = WEIGHING[method]
    rows = conflicting(3, 131)
    rows[2] = 0
    momentum = PseudoMomentumOperator(3, gradient_operator=make(), dtype=torch.float64)
    for given in (rows, list(rows), per_parameter(conflicting(3, ELEMENTS))):
        update = make().calculate_gradient(on_device(given))
        if isinstance(update, Tensor):
            assert relative_error(update.cpu(), exact(rows)) <= 1e-12
        else:
            flat_rows = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in given])
            assert relative_error(joined(update).cpu(), exact(flat_rows)) <= 1e-12
    assert momentum.calculate_gradient([0, 1, 2], rows.to(DEVICE)).isfinite().all()
    for value in (torch.nan, torch.inf):
        broken = rows.clone()
        broken[1, 5] = value
        assert make().calculate_gradient(list(broken.to(DEVICE))).isnan().all()


def on_device(given: Any) -> Any:
    return given.to(DEVICE) if isinstance(given, Tensor) else [on_device(each) for each in given]


@every
def test_norms_apart_by_1e15(method: str) -> None:
    """Between unit gradients nothing is far apart; the equations of Nash-MTL and FairGrad hold there."""
    u = orthonormal(3, 12)
    rows = torch.stack([1e15 * (u[0] + 0.3 * u[1]), u[1] - 0.2 * u[0], 1e-3 * (u[2] + 0.5 * u[1])])
    update = merged(method, rows)
    if method == "fairgrad":  # |g_i . v| spans decades, of which the oracle's sums keep few
        assert (rows @ update > 0).all()
    else:
        assert relative_error(update, oracle(method, rows)) <= 1e-9


@every
@pytest.mark.parametrize("m", [3, 9])
def test_batches(method: str, m: int) -> None:
    """Several problems a warp, and several launches."""
    batch = torch.stack([conflicting(m, m + 7) for _ in range(7)])
    batch[2, 1, 3] = torch.nan
    for given in (batch, batch.transpose(0, 1).contiguous().transpose(0, 1), batch[:0]):
        update = OPERATORS[method]().calculate_gradient(given.to(DEVICE)).cpu()
        assert update.shape == (len(given), m + 7)
        for k, (problem, result) in enumerate(zip(given, update, strict=True)):
            if k == 2:
                assert result.isnan().all()
            elif k in (0, 6):
                assert relative_error(result, oracle(method, problem)) <= 1e-9
            else:
                torch.testing.assert_close(result, merged(method, problem), rtol=1e-9, atol=1e-12)


def test_batches_of_many() -> None:
    """With scratch memory that is not shared; several problems take turns in it."""
    batch = torch.stack([in_blocks(33)[0] for _ in range(4)])
    update = UPGradOperator().calculate_gradient(batch.to(DEVICE)).cpu()
    for problem, result in zip(batch, update, strict=True):
        assert torch.equal(result, merged("upgrad", problem))


@every
def test_per_parameter(method: str) -> None:
    rows = conflicting(3, ELEMENTS)
    pieces = per_parameter(rows.to(DEVICE))
    update = OPERATORS[method]().calculate_gradient(pieces)
    assert relative_error(joined(update).cpu(), oracle(method, rows)) <= 1e-9
    without: list[list[Any]] = [list(row) for row in pieces]
    without[1][0] = None
    rows[1, : without[0][0].numel()] = 0
    update = OPERATORS[method]().calculate_gradient(without)
    assert relative_error(joined(update).cpu(), oracle(method, rows)) <= 1e-9


@every
def test_backward(method: str) -> None:
    """Into the .grad that are there."""
    network = torch.nn.Linear(5, 4, dtype=torch.float64, device=DEVICE)
    x = torch.randn(7, 5, dtype=torch.float64, device=DEVICE)
    for _ in range(2):
        y = network(x)
        losses = [y[:, 0].square().mean(), (y.sum(1) - 1).square().mean(), -y[:, 1:].mean()]
        rows = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(v, [*network.parameters()], retain_graph=True)]
            )
            for v in losses
        ]
        fastconfig.backward(losses, network, OPERATORS[method]())
        update = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        assert relative_error(update.cpu(), oracle(method, torch.stack(rows).cpu())) <= 1e-9


@every
@pytest.mark.parametrize("m", [3, 9])
def test_momentum(method: str, m: int) -> None:
    operator = PseudoMomentumOperator(m, gradient_operator=OPERATORS[method](), dtype=torch.float64)
    steps = iter([[*range(m)], [0], [m - 1, 0]])
    merge = oracle_of_calls(method, m)
    found = errors(operator, steps, 131, dtype=torch.float64, merge=merge, device=DEVICE)
    assert max(found) <= 1e-9


def oracle_of_calls(method: str, m: int) -> Callable[[Tensor], Tensor]:
    """With the targets of GradVac and the averages of PCD, which go on from call to call."""
    if method == "pcd":
        return averaging()
    if method != "gradvac":
        return lambda rows: oracle(method, rows)
    targets = torch.zeros(m, m, dtype=torch.float64)
    return lambda rows: RULES[method].oracle(rows, targets)


def averaging(beta: float = 0.999) -> Callable[[Tensor], Tensor]:
    """PCD's oracle of one call after the other."""
    averages: list[Tensor] = []

    def merge(rows: Tensor) -> Tensor:
        before = averages[-1] if averages else torch.zeros(len(rows), dtype=torch.float64)
        averages.append(beta * before + (1 - beta) * rows.double().square().sum(1))
        return RULES["pcd"].oracle(rows, 0.3, squares=averages[-1] / (1 - beta ** len(averages)))

    return merge


@pytest.mark.parametrize("make", [UPGradOperator, DualProjOperator, AlignedMTLOperator])
def test_preferences(make: Callable[..., Any]) -> None:
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    rows = conflicting(4, 30)
    operator = make(weights)
    exact = operator._kind.oracle(rows, weights)
    for _ in range(2):
        assert relative_error(operator.calculate_gradient(rows.to(DEVICE)).cpu(), exact) <= 1e-9


def test_gradvac_keeps_its_targets_and_draws() -> None:
    operator = GradVacOperator(0.3, generator=torch.Generator().manual_seed(3))
    drawn, targets = torch.Generator().manual_seed(3), torch.zeros(5, 5, dtype=torch.float64)
    base = torch.randn(40, dtype=torch.float64)
    for step in range(4):
        rows = torch.randn(5, 40, dtype=torch.float64) + step % 2 * base
        order = torch.rand(5, 5, generator=drawn).argsort(-1)
        exact = RULES["gradvac"].oracle(rows, targets, 0.3, order)
        assert relative_error(operator.calculate_gradient(rows.to(DEVICE)).cpu(), exact) <= 1e-9
        torch.testing.assert_close(operator.state_dict()["targets"].cpu(), targets, rtol=1e-9, atol=1e-12)


def test_pcd_keeps_its_averages_in_a_batch() -> None:
    """Shares of progress of their own; NaN in one problem leaves its averages."""
    taus = torch.tensor([0.1, 0.0, 1.0], dtype=torch.float64)
    operator, averages = PCDOperator(taus, 0.9), torch.zeros(3, 4, dtype=torch.float64)
    calls = torch.zeros(3, dtype=torch.float64)
    for step in range(4):
        batch = torch.stack([conflicting(4, 30) for _ in range(3)])
        sound = [0, 1, 2]
        if step == 1:
            batch[sound.pop(1), 2, 5] = torch.nan
        averages[sound] = 0.9 * averages[sound] + 0.1 * batch[sound].square().sum(2)
        calls[sound] += 1
        update = operator.calculate_gradient(batch.to(DEVICE)).cpu()
        for k in range(3):
            if k not in sound:
                assert update[k].isnan().all()
                continue
            squares = averages[k] / (1 - 0.9 ** calls[k])
            assert relative_error(update[k], RULES["pcd"].oracle(batch[k], taus, squares=squares)) <= 1e-9
        found = operator.state_dict()["averages"].cpu()
        torch.testing.assert_close(found, torch.cat([averages, calls[:, None]], 1), rtol=1e-12, atol=0)


def test_krum_needs_enough_gradients() -> None:
    for make in (KrumOperator, lambda: fastconfig.GramOperator(RULES["krum"]())):
        for given in (torch.ones(2, 5), torch.ones(3, 2, 5)):
            with pytest.raises(ValueError, match="grads: got 2 gradients, want at least 3"):
                make().calculate_gradient(given.to(DEVICE))


@every
@pytest.mark.parametrize("m", [3, 40])
def test_coefficients_alone(method: str, m: int) -> None:
    """As the exact stage of other backends' passes: c, and the update by a combination."""
    rows, groups = in_blocks(m)
    grads = Gradients(list(rows.to(DEVICE)))
    backend = backends.load("cuda")
    rule = OPERATORS[method]().rule_for(grads)
    c = backend.coefficients(backend.gram(grads), rule, grads).cpu()
    exact = merged(method, rows) if method in ("aligned", "cagrad", "pcd") else None
    if exact is None:
        exact = oracle(method, rows) if method in ("gradvac", "krum") else of_blocks(method, m, groups)
    assert relative_error(c @ rows, exact) <= 1e-9


def test_the_same_bits_every_time() -> None:
    rows = list(scaled(conflicting(9, 100), 1).to(DEVICE))
    for method in OPERATORS:
        first = OPERATORS[method]().calculate_gradient(rows)
        for _ in range(100 if DEVICE.type == "cuda" else 2):
            assert torch.equal(OPERATORS[method]().calculate_gradient(rows), first), method


def test_a_module_checks_what_it_solves() -> None:
    kernels = importlib.import_module("fastconfig._cuda")
    with pytest.raises(ValueError, match=r"solve: got 65 gradients, want 1\.\.64"):
        kernels.solve(0, 0, 65, 1, 0, 0, 0, 0, 0, 0.0)
    with pytest.raises(TypeError, match="solve takes 10 arguments"):
        kernels.solve(0, 0)
