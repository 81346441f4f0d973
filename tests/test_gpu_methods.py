"""Every method on a CUDA device, by every backend: right, without a wait, and replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import synchronisation
import torch
from inputs import conflicting, relative_error, rounding_bound
from torch import Tensor

from fastconfig import _C, GramOperator, backends, use_backend
from fastconfig.methods import METHODS, RULES, Rule

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

BACKENDS = (
    [name for name, reason in backends.explain("cuda") if reason is None] if torch.cuda.is_available() else []
)
SETTINGS: dict[str, dict[str, Any]] = {"constant": {"weights": [0.5, -2.0, 3.0]}}
DRAWS = ("random",)
#: which other backends solve on the host, but for where a graph records
ITERATE = [
    name for name, rule in RULES.items() if rule.native in _C.HEAVY and rule.iterates and not rule.weighs
]


def rule_of(method: str) -> Rule:
    return RULES[method](**SETTINGS.get(method, {}))


def oracle(method: str, rows: Tensor) -> Tensor:
    return RULES[method].oracle(rows, **SETTINGS.get(method, {}))


def replayed(call: Callable[[], Tensor], refill: Callable[[], None]) -> Tensor:
    """What a CUDA graph of a call gives after its inputs have changed."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            result = call()
    refill()
    graph.replay()
    torch.cuda.synchronize()
    return result


@pytest.mark.parametrize("m", [3, 8])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in DRAWS])
@pytest.mark.parametrize("backend", BACKENDS)
def test_right_without_a_wait_and_as_a_graph(backend: str, method: str, m: int) -> None:
    if method == "constant" and m != 3:
        return
    first, then = conflicting(m, 1031), conflicting(m, 1031)
    grads = [row.cuda() for row in first]

    def refill() -> None:
        for held, row in zip(grads, then, strict=True):
            held.copy_(row)

    operator, exact = GramOperator(rule_of(method)), oracle(method, first)
    with use_backend(backend):
        update = operator.calculate_gradient(grads).clone()
        assert relative_error(update.cpu(), exact) <= max(rounding_bound(first, exact), 1e-5)
        with synchronisation.none() if backend == "cuda" or method not in ITERATE else nullcontext():
            again = operator.calculate_gradient(grads)
        assert torch.equal(again, update)
        update = replayed(lambda: operator.calculate_gradient(grads), refill)
    exact = oracle(method, then)
    assert relative_error(update.cpu(), exact) <= max(rounding_bound(then, exact), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_weights(backend: str) -> None:
    rows = conflicting(3, 1031)
    drawn = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    with use_backend(backend):
        update = GramOperator(RULES["random"](drawn[0])).calculate_gradient([row.cuda() for row in rows])
    assert relative_error(update.cpu(), RULES["random"].oracle(rows, drawn[1])) <= 1e-5


@pytest.mark.parametrize("m", [3, 9])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*DRAWS, "constant")])
def test_torch_operations_wait_for_nothing(method: str, m: int) -> None:
    """What runs where a stream captures and there is no compiled code."""
    rule = rule_of(method)
    first, then = conflicting(m, 1031).double(), conflicting(m, 1031).double()
    gram, other = (first @ first.T).cuda(), (then @ then.T).cuda()

    def refill() -> None:
        gram.copy_(other)

    with synchronisation.none():
        c = rule.coefficients(gram, torch.float64)
    assert relative_error(c.cpu() @ first, oracle(method, first)) <= 1e-9
    c = replayed(lambda: rule.coefficients(gram, torch.float64), refill)
    assert relative_error(c.cpu() @ then, oracle(method, then)) <= 1e-9
