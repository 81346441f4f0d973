"""The rules' torch operations on a device: nothing waits for it, and a CUDA graph can capture all of them."""

from __future__ import annotations

import pytest
import torch
from inputs import conflicting, relative_error
from synchronisation import Watched

from fastconfig.methods import METHODS, RULES, AlignedMTL, GradVac, UPGrad, newton
from fastconfig.methods.base import Rule, by_host, load_solvers

DRAWS = ("random",)
HOLD = ("constant",)  # tensors on the CPU, which the first call sends


def rule_of(method: str, m: int) -> Rule:
    return RULES[method]([1.0] * m) if method == "constant" else RULES[method]()


@pytest.mark.parametrize("shape", [(9, 9), (2, 3, 3)])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in DRAWS])
def test_nothing_waits(method: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that has no values; after a first call of rules that hold tensors."""
    monkeypatch.setattr(newton, "_NASH_STEPS", 2)
    rule = rule_of(method, shape[-1])
    gram = torch.empty(shape, dtype=torch.float64, device="meta")
    if method in HOLD:
        rule.coefficients(gram, torch.float32)
    with Watched():
        assert rule.coefficients(gram, torch.float32).shape == shape[:-1]


def test_such_a_look_is_refused() -> None:
    x = torch.ones(3)
    for look in (lambda: bool(x.any()), lambda: x[x > 0], lambda: torch.eye(3)[x.argmax()]):
        with Watched(), pytest.raises(AssertionError, match="waits for the device"):
            look()
    with Watched(), pytest.raises(AssertionError, match="between"):
        x.to("meta")


@pytest.mark.parametrize("m", [3, 9])
def test_on_the_host_with_what_a_rule_holds(m: int) -> None:
    """Weights, an order and a state that goes on, as where they lie on a device."""
    load_solvers(torch.device("cpu"))
    rows = conflicting(m, 50).double()
    gram = rows @ rows.T
    weights = torch.rand(m, dtype=torch.float64)
    for kind in (UPGrad, AlignedMTL):
        exact = kind.oracle(rows, weights)
        assert relative_error(by_host(kind(weights), gram, torch.float64) @ rows, exact) <= 1e-9
    order, targets, exact_targets = torch.rand(m, m).argsort(-1), *torch.zeros(2, m, m, dtype=torch.float64)
    rule = GradVac(0.5, order, targets)
    for _ in range(2):
        exact = GradVac.oracle(rows, exact_targets, 0.5, order)
        assert relative_error(by_host(rule, gram, torch.float64) @ rows, exact) <= 1e-9
        torch.testing.assert_close(targets, exact_targets, rtol=1e-9, atol=1e-12)
