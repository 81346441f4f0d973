"""Groups of parameters by the CUDA kernels, on a GPU or emulated: as calls group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import emulated
import pytest
import torch
from schedules import count_on_every_device
from torch import Tensor

from fastconfig import (
    CAGradOperator,
    ConFIGOperator,
    GradVacOperator,
    PseudoMomentumOperator,
    UPGradOperator,
    backends,
    use_backend,
)

ON_GPU = torch.cuda.is_available()
SHAPES = [(40, 30), (7,), (3, 5), (1025,)]
OPERATORS: dict[str, Callable[[], Any]] = {
    "config": ConFIGOperator,
    "upgrad": UPGradOperator,
    "cagrad": CAGradOperator,
    "gradvac": lambda: GradVacOperator(shuffle=False),
}


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the CUDA backend; also when it is emulated, the device counts the steps."""
    monkeypatch.setattr(backends, "registry", backends.Registry())
    if not ON_GPU:
        emulated.serve(monkeypatch, True)
        count_on_every_device(monkeypatch)
    with use_backend("cuda"):
        yield


def drawn() -> list[list[Tensor]]:
    return [[torch.randn(shape, device="cuda" if ON_GPU else "cpu") for shape in SHAPES] for _ in range(3)]


@pytest.mark.parametrize("name", OPERATORS)
def test_groups(name: str) -> None:
    operator, ones = OPERATORS[name](), [OPERATORS[name]() for _ in SHAPES]
    operator.groups = "parameter"
    for _ in range(2):
        rows = drawn()
        for p, (piece, one) in enumerate(zip(operator.calculate_gradient(rows), ones, strict=True)):
            torch.testing.assert_close(piece, one.calculate_gradient([[row[p]] for row in rows])[0])


def test_momentum() -> None:
    """The device counts each step once, whatever the number of groups."""
    operator, ones = PseudoMomentumOperator(3), [PseudoMomentumOperator(3) for _ in SHAPES]
    operator.groups = "parameter"
    for _ in range(4):
        rows = drawn()
        update = operator.calculate_gradient(range(3), rows)
        for p, (piece, one) in enumerate(zip(update, ones, strict=True)):
            (wanted,) = one.calculate_gradient(range(3), [[row[p]] for row in rows])
            torch.testing.assert_close(piece, wanted, rtol=1e-5, atol=1e-6)
    assert operator.state_dict()["counts"] == [4] * 3
    assert operator.state_dict()["updates"] == 4
