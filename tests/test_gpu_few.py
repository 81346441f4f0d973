"""UPGrad and DualProj of up to 4 gradients, within the kernels that read them, against full rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import emulated
import pytest
import torch
from inputs import orthonormal, relative_error, scaled
from torch import Tensor

from fastconfig import DualProjOperator, UPGradOperator, use_backend
from fastconfig.methods import RULES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPERATORS: dict[str, Callable[..., Any]] = {"upgrad": UPGradOperator, "dualproj": DualProjOperator}
EPS = torch.finfo(torch.float64).eps
RCOND = 1e-13  # of float64 gradients
every = pytest.mark.parametrize("method", OPERATORS)
few = pytest.mark.parametrize("m", [1, 2, 3, 4])


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the CUDA backend; emulated, where there is no GPU."""
    emulated.serve_here(monkeypatch)
    with use_backend("cuda"):
        yield
        importlib.import_module("fastconfig._cuda").options(True, True)


def updates(method: str, problems: Tensor, *settings: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their update: of problems in a batch, and of the first alone, by one launch and by two."""
    batch = OPERATORS[method](*settings).calculate_gradient(problems.to(DEVICE)).cpu()
    yield from zip(problems, batch, strict=True)
    for one_launch in (True, False):
        importlib.import_module("fastconfig._cuda").options(one_launch, True)
        for rows in problems[:3]:
            yield rows, OPERATORS[method](*settings).calculate_gradient(list(rows.to(DEVICE))).cpu()


def apart(problems: Tensor) -> Tensor:
    return torch.stack([scaled(rows, 2) for rows in problems])


def of_cosines(cosines: Tensor) -> Tensor:
    """(..., m, 7) unit rows that have them, in any orientation."""
    rows = torch.linalg.cholesky(cosines)
    return rows @ orthonormal(rows.shape[-1], 7)


@every
@few
def test_every_pattern_of_signs(method: str, m: int) -> None:
    pairs = [*combinations(range(m), 2)]
    cosines = torch.eye(m, dtype=torch.float64).repeat(3 ** len(pairs), 1, 1)
    for one, signs in zip(cosines, product([-1, 0, 1], repeat=len(pairs)), strict=True):
        for (i, j), sign in zip(pairs, signs, strict=True):
            one[i, j] = one[j, i] = 0.31 * sign
    problems = of_cosines(cosines[torch.randperm(len(cosines))[:80]])
    for rows, update in updates(method, apart(problems)):
        assert relative_error(update, RULES[method].oracle(rows)) <= 1e-12


@every
@few
def test_conflicts(method: str, m: int) -> None:
    rows = torch.randn(60, m, 2 * m + 1, dtype=torch.float64)
    problems = apart(rows - 0.9 * rows.mean(1, keepdim=True))
    for rows, update in updates(method, problems):
        assert relative_error(update, RULES[method].oracle(rows)) <= 1e-11


@every
@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("angle", [1e-2, 1.1e-4, 0.9e-4, 1e-6, 1e-9, 0])
def test_nearly_dependent(method: str, m: int, angle: float) -> None:
    """On both sides of where the general path takes over."""
    u = orthonormal(m, 9)
    problems = torch.stack([u, u])
    for rows, sign in zip(problems, (-1, 1), strict=True):
        rows[1] = sign * (1 - angle * angle) ** 0.5 * u[0] + angle * u[1]
        rows[2:] += 0.3 * u[:1] - 0.4 * u[1:2]
    for rows, update in updates(method, problems):
        if (
            angle == 1e-9
        ):  # more than rounding of the rows hides, less than C shows: docs/numbers.md has the bound
            cosines = (rows / rows.norm(dim=1, keepdim=True)) @ update
            assert cosines.min() >= -16 * EPS * (8 / RCOND) ** 0.5 * update.norm()
            continue
        # C is rounded; its least eigenvalue is about the square of the angle, and nothing below 1e-13
        bound = 16 * m * EPS / angle**2 if angle > 3e-7 else 1e-9
        assert (update - RULES[method].oracle(rows)).norm() <= bound


@every
@few
def test_norms(method: str, m: int) -> None:
    """Also such that products of their squares are no numbers: the general path divides first."""
    u = orthonormal(m, 9) - 0.2 * orthonormal(m, 9)
    for decades in (60, 145):
        norms = scaled(torch.ones(m, 1, dtype=torch.float64), decades)
        weights = norms.flatten() / norms.max() / m  # linear in each length
        for _, update in updates(method, (norms * u)[None]):
            assert relative_error(update / norms.max(), RULES[method].oracle(u, weights)) <= 1e-12


@every
@few
def test_zero_opposed_and_equal_rows(method: str, m: int) -> None:
    u = torch.randn(m, 9, dtype=torch.float64)
    problems = u.repeat(5, 1, 1)
    problems[0, m // 2] = 0
    problems[1] = 0
    problems[2, -1] = -2 * u[0]
    problems[3, -1] = 3 * u[0]
    problems[4, 0] = -u[1:].sum(0)  # in all they cancel; with other weights they don't
    for rows, update in updates(method, problems):
        assert (update - RULES[method].oracle(rows)).norm() <= 1e-12 * rows.norm()


@every
@few
def test_preferences(method: str, m: int) -> None:
    problems = torch.randn(20, m, 9, dtype=torch.float64)
    problems -= 0.9 * problems.mean(1, keepdim=True)
    for weights in (torch.rand(m).double(), torch.arange(m).double(), torch.full((m,), 1e25).double()):
        for rows, update in updates(method, problems, weights):
            exact = RULES[method].oracle(rows, weights)
            assert (update - exact).norm() <= 1e-11 * exact.norm()


@every
@few
def test_a_broken_gradient_breaks_the_update(method: str, m: int) -> None:
    for value in (torch.nan, torch.inf):
        problems = torch.randn(m, m, 9)
        for i, rows in enumerate(problems):
            rows[i, 4] = value
        for _, update in updates(method, problems):
            assert update.isnan().all()
