"""``torch.compile(fullgraph=True)`` around the operators, and the registered operator itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import conflicting, relative_error
from torch import Tensor

from fastconfig import (
    ConFIG_update,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    TrackMinimum,
    TrackSpecific,
    reference,
    use_backend,
)
from fastconfig.compiled import _flattened

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


def test_a_batch() -> None:
    rows = torch.stack([conflicting(3, 40) for _ in range(2)]).double()
    update = full_graph(ConFIG_update)(rows)
    for one, problem in zip(update, rows, strict=True):
        assert relative_error(one, reference.config(problem)) <= 1e-9
