"""What looks on at torch's operations, and would miss what kernels do, is refused by its name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import conflicting
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fastconfig
from fastconfig import ConFIG_update, ops, pcgrad, utils

Call = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:Warning")  # torch's own, in jvp


def trace(call: Call, *given: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and some say what they cannot see
        return torch.jit.trace(call, given, check_trace=False)


LOOKERS: dict[str, tuple[Call, str]] = {
    "trace": (trace, "torch.jit.trace, .* want torch.compile"),
    "make_fx": (lambda call, *given: make_fx(call)(*given), "make_fx, .* want torch.compile"),
    "vmap": (
        lambda call, *given: torch.vmap(call)(*(torch.stack([x, 2 * x]) for x in given)),
        r"vmap, want the batch as one tensor \(B, m, N\)",
    ),
    "jvp": (lambda call, *given: torch.func.jvp(call, given, given), "jvp or jacfwd, want the call outside"),
    "grad": (
        lambda call, *given: torch.func.grad(lambda *rows: call(*rows).sum())(*given),
        "grad, vjp or jacrev, want the call outside",
    ),
    "functionalize": (
        lambda call, *given: torch.func.functionalize(call)(*given),
        "functionalize, want torch",
    ),
}
CONSTANTS = list(conflicting(3, 20))
CALLS: dict[str, Call] = {
    "vectors": lambda a, b, c: ConFIG_update([a, b, c]),
    "lists": lambda a, b, c: ConFIG_update([[a], [b], [c]])[0],
    "tensor": lambda a, b, c: ConFIG_update(torch.stack([a, b, c])),
    "operator": lambda a, b, c: fastconfig.PCGradOperator().calculate_gradient([a, b, c]),
    "momentum": lambda a, b, c: fastconfig.PseudoMomentumOperator(3).calculate_gradient([0, 1, 2], [a, b, c]),
    "separate": lambda a, b, c: fastconfig.SeparateMomentumOperator(3).calculate_gradient(
        range(3), [a, b, c]
    ),
    "gram": lambda a, b, c: ops.gram([a, b, c]),
    "coefficients": lambda a, b, c: ops.coefficients(torch.stack([a[:3], b[:3], c[:3]]).double()),
    "combine": lambda a, b, c: ops.combine(CONSTANTS, a[:3]),
    "PCGrad": lambda a, b, c: pcgrad.PCGrad(shuffle=False).project_conflicting([a, b, c]),
    "cosine": lambda a, b, c: utils.get_cos_similarity(a, b),
    "constants": lambda a, b, c: ConFIG_update(CONSTANTS) + a,
}


@pytest.mark.parametrize("looker", LOOKERS)
@pytest.mark.parametrize("call", CALLS)
def test_no_answer_without_the_kernels(backend: str, call: str, looker: str) -> None:
    look, message = LOOKERS[looker]
    rows = list(conflicting(3, 20))
    for _ in range(2):  # the compiled call for short vectors is there from the second on
        with pytest.raises(RuntimeError, match=message):
            look(CALLS[call], *rows)
        wanted = ConFIG_update(CONSTANTS)
    assert torch.equal(ConFIG_update(list(CONSTANTS)), wanted)


def test_backward_in_a_trace(backend: str) -> None:
    given = torch.randn(7)

    def training(a: Tensor) -> Tensor:
        weight = torch.zeros(7, requires_grad=True)
        weight.grad = given.clone()
        try:
            fastconfig.backward([(weight * a).sum(), (weight * a.square()).sum()], [weight])
        finally:
            weights.append(weight)
        return weight.grad

    weights: list[Tensor] = []
    training(given)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace"):
        trace(training, given)
    assert not torch.equal(weights[0].grad, given)  # type: ignore[arg-type]
    assert torch.equal(weights[1].grad, given)  # type: ignore[arg-type]


def test_network_vectors_are_recorded() -> None:
    """By torch's own operations, which a record holds."""
    net = nn.Linear(4, 2)
    net(torch.randn(3, 4)).sum().backward()
    record = make_fx(lambda _: utils.get_gradient_vector(net))(torch.zeros(1))
    wanted = utils.get_gradient_vector(net)
    assert torch.equal(record(torch.zeros(1)), wanted)
    record = trace(lambda scale: scale * utils.get_gradient_vector(net), torch.ones(1))
    assert torch.equal(record(torch.ones(1)), wanted)


def test_a_mode_that_only_counts_changes_nothing(backend: str) -> None:
    rows = list(conflicting(3, 200))
    wanted = ConFIG_update(rows)
    with FlopCounterMode(display=False):
        assert torch.equal(ConFIG_update(rows), wanted)
        assert torch.equal(ConFIG_update([[row] for row in rows])[0], wanted)
