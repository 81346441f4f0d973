"""What holds for every method, found by its file: its formula on each backend, in each form, at any scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inputs import BACKENDS, conflicting, relative_error, rounding_bound
from torch import Tensor

import fastconfig
from fastconfig import aggregation, ops
from fastconfig.methods import METHODS, RULES
from fastconfig.methods.stateful import DrawingOperator

WEIGHTS = [0.5, -2.0, 3.0, 1.0]
#: what a rule is made with, where it has no default; random ones are judged in test_simple_methods.py
GIVEN: dict[str, dict[str, Any]] = {"constant": {"weights": WEIGHTS}, "gradvac": {"shuffle": False}}
every = pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])


def merge(method: str, grads: Any) -> Any:
    """By a fresh operator: a state begins anew."""
    operator = getattr(fastconfig, f"{METHODS[method]}Operator")(**GIVEN.get(method, {}))
    return operator.calculate_gradient(grads)


def oracle(method: str, rows: Tensor) -> Tensor:
    given = {"weights": WEIGHTS} if method == "constant" else {}
    return RULES[method].oracle(rows, **given)


@every
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_papers_formula(method: str, backend: str) -> None:
    """Vectors, a tensor, a batch and parameters, float32 and float64."""
    with fastconfig.use_backend(backend):
        for dtype in (torch.float32, torch.float64):
            rows = conflicting(4, 103).to(dtype)
            exact = oracle(method, rows)
            bound = max(rounding_bound(rows, exact), 1e-9)
            pieces = [[row[:3], row[3:].view(4, 25)] for row in rows]
            joined = torch.cat([piece.flatten() for piece in merge(method, pieces)])
            batched = merge(method, torch.stack([rows, rows]))
            for update in (merge(method, rows), merge(method, list(rows)), joined, *batched):
                assert relative_error(update, exact) <= bound


@every
def test_zero_nan_and_inf(method: str) -> None:
    assert not merge(method, torch.zeros(4, 20)).any()
    for value in (torch.nan, torch.inf):
        rows = conflicting(4, 20)
        rows[2, 3] = value
        assert merge(method, rows).isnan().all()
    rows = conflicting(4, 20)
    given = rows.clone()
    rows[1] = 0
    assert (merge(method, rows) - oracle(method, rows)).norm() <= 1e-5 * rows.norm()
    assert torch.equal(given[[0, 2, 3]], rows[[0, 2, 3]])


@every
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales(method: str, scale: float) -> None:
    if method == "pcd":
        pytest.skip("its eps is a scale: test_krum_and_pcd.py has it at all of them")
    rows = conflicting(4, 50).double() * scale
    assert relative_error(merge(method, rows), oracle(method, rows)) <= 1e-9


@every
def test_by_its_names(method: str) -> None:
    """As an operator, a rule of ops, an aggregator and a weighting, and in a momentum."""
    kind, rows = METHODS[method], conflicting(4, 50).double()
    exact = oracle(method, rows)
    made = getattr(fastconfig, f"{kind}Operator")
    operator = made(**GIVEN.get(method, {}))
    assert kind in repr(operator)
    settings = {"weights": torch.tensor(WEIGHTS)} if method == "constant" else {}
    if method != "constant":
        c = ops.coefficients(ops.gram(rows), method, dtype=torch.float64)
        assert relative_error(c @ rows, exact) <= 1e-9
    needed = {"cagrad": {"c": 0.5}, "fairgrad": {"alpha": 1.0}, "krum": {"n_byzantine": 0}}
    more = {"nash": {"n_tasks": 4}}.get(method, needed.get(method, settings))
    update = getattr(aggregation, kind)(**more)(rows)
    weights = getattr(aggregation, f"{kind}Weighting")(**more)(rows @ rows.T)
    assert weights.shape == (4,)
    if method != "nash" and not isinstance(operator, DrawingOperator):  # which have other defaults there
        assert relative_error(update, exact) <= 1e-9
        assert relative_error(weights @ rows, exact) <= 1e-9
    momentum = fastconfig.PseudoMomentumOperator(4, gradient_operator=operator)
    assert momentum.calculate_gradient([0, 1, 2, 3], rows).isfinite().all()
