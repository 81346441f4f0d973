"""``torch.compile(fullgraph=True)`` around the operators, and the registered operator itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from inputs import conflicting, relative_error
from torch import Tensor

from fastconfig import (
    ConFIG_update,
    ConFIGOperator,
    GramOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    TrackMinimum,
    TrackSpecific,
    WeightModel,
    backward,
    get_gradient_vector,
    reference,
    use_backend,
)
from fastconfig.gradients.results import KEPT_FROM
from fastconfig.graph import _flattened
from fastconfig.methods import ConFIG

CALLS: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "update": (ConFIG_update, reference.config),
    "config": (ConFIGOperator().calculate_gradient, reference.config),
    "minimum": (
        ConFIGOperator(length_model=TrackMinimum()).calculate_gradient,
        lambda rows: reference.config(rows, length="minimum"),
    ),
    "specific": (
        ConFIGOperator(length_model=TrackSpecific(1)).calculate_gradient,
        lambda rows: reference.config(rows, length="specific", track_id=1),
    ),
    "pcgrad": (PCGradOperator().calculate_gradient, reference.pcgrad),
    "pcgrad-mean": (
        PCGradOperator(reduction="mean").calculate_gradient,
        lambda rows: reference.pcgrad(rows, reduction="mean"),
    ),
    "ppcgrad": (PPCGradOperator().calculate_gradient, reference.ppcgrad),
    "imtlg": (IMTLGOperator().calculate_gradient, reference.imtlg),
}


def full_graph(function: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("name", CALLS)
def test_a_step_around_it_is_one_graph(name: str) -> None:
    merge, oracle = CALLS[name]

    def step(weights: Tensor, rows: Tensor) -> Tensor:
        return weights - 0.1 * merge(2 * rows)

    weights, rows = torch.randn(501, dtype=torch.float64), conflicting(3, 501).double()
    moved = full_graph(step)(weights, rows)
    assert relative_error(moved, weights - 0.1 * oracle(2 * rows)) <= 1e-9


def test_a_rule_keeps_its_settings() -> None:
    rows = conflicting(3, 501).double()
    for rule in (ConFIG(torch.tensor([1.0, 2.0, 3.0]).double()), ConFIG(length="minimum")):
        merge = GramOperator(rule).calculate_gradient
        torch.compiler.reset()
        update = torch.compile(merge, backend="eager")(rows)
        assert relative_error(update, reference.config(rows, rule.weights, rule.length)) <= 1e-9


def test_results_whose_memory_is_kept() -> None:
    rows = torch.randn(2, KEPT_FROM // 4)
    for given in (rows, list(rows), [[row.view(512, -1)] for row in rows]):
        update, wanted = full_graph(ConFIG_update)(given), ConFIG_update(given)  # type: ignore[arg-type]
        assert torch.equal(update[0], wanted[0])  # type: ignore[arg-type]


def parameters(rows: Tensor) -> list[list[Tensor | None]]:
    return [[row[:6].view(2, 3), None, row[6:] if i else None] for i, row in enumerate(rows)]


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
def test_every_form(form: str) -> None:
    rows = conflicting(3, 40).double()
    give: Any = {"tensor": rows, "vectors": list(rows), "parameters": parameters(rows)}[form]
    update = full_graph(ConFIG_update)(give)
    if form == "parameters":
        assert update[1] is None
        assert update[0].shape == (2, 3)
        update = torch.cat([update[0].reshape(-1), update[2]])
        rows[0, 6:] = 0
    assert relative_error(update, reference.config(rows)) <= 1e-9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor's own imports
@pytest.mark.filterwarnings("ignore:Skipping serialization")  # of torch 2.6's
def test_a_whole_training_step() -> None:
    """Losses, backward passes, merging and the step of the weights, on inductor's code."""
    x = torch.randn(16, 4, dtype=torch.float64)

    def gradients(weight: Tensor, x: Tensor) -> list[Tensor]:
        losses: list[Callable[[Tensor], Tensor]] = [
            lambda w: torch.tanh(x @ w).square().mean(),
            lambda w: (x @ w - 1).square().mean(),
        ]
        return [torch.func.grad(loss)(weight) for loss in losses]

    def step(weight: Tensor, x: Tensor) -> Tensor:
        return weight - 0.1 * ConFIG_update(gradients(weight, x))  # type: ignore[operator]

    weight = eager = torch.randn(4, dtype=torch.float64)
    run = full_graph(step, "inductor")
    for _ in range(5):
        weight, eager = run(weight, x), step(eager, x)
    assert relative_error(weight, eager) <= 1e-10


def test_an_order_may_be_given() -> None:
    rows = conflicting(4, 300).double()
    order = torch.stack([torch.randperm(4) for _ in range(4)])
    merge = full_graph(lambda rows, order: PCGradOperator().calculate_gradient(rows, order=order))
    assert relative_error(merge(rows, order), reference.pcgrad(rows, order=order.tolist())) <= 1e-9


@pytest.mark.parametrize("backend", ["numba", "pytorch"])
@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_registered_operator_passes_opcheck(form: str, dtype: torch.dtype, backend: str) -> None:
    rows = conflicting(3, 40).to(dtype)
    give: Any = {"tensor": rows, "vectors": list(rows), "parameters": parameters(rows)}[form]
    tensors = _flattened(give)[1]
    with use_backend(backend):
        torch.library.opcheck(
            torch.ops.fastconfig.merge.default,
            (tensors, 3, form, "config", "projection", 0, None, False, None),
        )


@pytest.mark.parametrize("make", [ConFIGOperator, IMTLGOperator])
def test_a_cut_off_of_ones_own(make: Callable[..., Any]) -> None:
    rows = torch.eye(3, 40, dtype=torch.float64)
    rows[2] = 1e-3 * rows[2] - rows[1]  # nearly opposed
    operator = make(rcond=1e-2)
    eager = operator.calculate_gradient(rows)
    assert relative_error(make().calculate_gradient(rows), eager) > 1e-3  # it matters here
    assert torch.equal(full_graph(operator.calculate_gradient)(rows), eager)


class Weights(WeightModel):
    """A user's, which sees the gradients."""

    def get_weights(self, gradients: Any = None, losses: Any = None, device: Any = None) -> Tensor:
        return torch.tensor([1.0, 2.0, 3.0]) * (gradients[:, 0] > -100)


def shuffled() -> PCGradOperator:
    return PCGradOperator(shuffle=True, generator=torch.Generator().manual_seed(3))


#: a new call each time, of what cannot be part of a graph
BREAKS: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
    "own model": lambda: ConFIGOperator(weight_model=Weights()).calculate_gradient,
    "function with own model": lambda: lambda rows: ConFIG_update(rows, Weights()),
    "random order": lambda: shuffled().calculate_gradient,
    "momentum": lambda: partial(PseudoMomentumOperator(3).calculate_gradient, [0, 1, 2]),
    "separate momentum": lambda: partial(SeparateMomentumOperator(3).calculate_gradient, [0, 1, 2]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_cannot_be_compiled_breaks_the_graph(name: str) -> None:
    rows = conflicting(3, 40).double()

    def step(call: Callable[[Tensor], Any], rows: Tensor) -> Tensor:
        return 3 * call(2 * rows) + 1

    torch.compiler.reset()
    compiled = torch.compile(step, backend="aot_eager")
    assert torch.equal(compiled(BREAKS[name](), rows), step(BREAKS[name](), rows))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="outside_the_graph"):
        full_graph(step)(BREAKS[name](), rows)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler looks at it
def test_backward_breaks_the_graph() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()

    def step(x: Tensor) -> Tensor:
        outputs = net(x)
        backward([(outputs[:, i] - i).square().mean() for i in range(2)], net)
        return outputs.sum()

    x = torch.randn(8, 3, dtype=torch.float64)
    step(x)
    wanted = get_gradient_vector(net)
    net.zero_grad()
    torch.compiler.reset()
    torch.compile(step, backend="aot_eager")(x)
    assert relative_error(get_gradient_vector(net), wanted) <= 1e-12


def test_a_batch() -> None:
    rows = torch.stack([conflicting(3, 40) for _ in range(2)]).double()
    update = full_graph(ConFIG_update)(rows)
    for one, problem in zip(update, rows, strict=True):
        assert relative_error(one, reference.config(problem)) <= 1e-9
