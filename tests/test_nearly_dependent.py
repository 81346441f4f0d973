"""UPGrad and DualProj of gradients that depend on each other but for rounding to float32."""

from __future__ import annotations

import pytest
import torch
from inputs import relative_error
from torch import Tensor

from fastconfig import ops, reference
from fastconfig.methods import RULES, solvers

# all but the sixth lie in a space of four dimensions, up to rounding
ROWS = [
    [0.0358076356, -0.0984935611, -0.107724398, 0.0279450286, -0.0156694837],
    [0.0518782809, -0.0394789726, 0.116129629, 0.0264963396, -0.169005126],
    [-0.0963647366, -0.112554863, 0.0280301794, -0.120831713, 0.103873461],
    [-0.0185151324, -0.0124327773, 0.0725425035, -0.0770977214, -0.0227220487],
    [0.18702665, 0.398417383, -0.170181781, 0.289789736, -0.0757090077],
    [-0.0122020133, -0.362406522, -0.511863828, -0.117302097, -0.00534221157],
    [0.00461967522, -0.0574237928, -0.105707549, 0.0652137995, 0.0469761714],
]


@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_order_does_not_matter(method: str) -> None:
    """A set of nearly dependent gradients, with weights a hundred times longer, ends with a conflict here."""
    rows = torch.tensor(ROWS, dtype=torch.float32)
    rule = RULES[method]
    exact = rule.oracle(rows)
    for order in (torch.arange(7), *(torch.randperm(7) for _ in range(20))):
        gram = reference.gram(rows[order])
        for c in (rule().coefficients(gram, rows.dtype), ops.coefficients(gram, method, dtype=rows.dtype)):
            assert relative_error(c @ rows[order].double(), exact) <= 1e-9


@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_by_the_best_of_all_sets(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on devices."""

    def best(matrix: Tensor, q: Tensor, size: Tensor, rcond: float) -> Tensor:
        noise = max(rcond / 256, 2 * torch.finfo(torch.float64).eps)
        return solvers._best_of_all(matrix, q, size, noise, torch.eye(7, dtype=torch.float64))

    monkeypatch.setattr(solvers, "nonnegative", best)
    rows = torch.tensor(ROWS, dtype=torch.float32)
    exact = RULES[method].oracle(rows)
    for order in (torch.arange(7), *(torch.randperm(7) for _ in range(5))):
        c = RULES[method]().coefficients(reference.gram(rows[order]), rows.dtype)
        assert relative_error(c @ rows[order].double(), exact) <= 1e-9


@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_low_rank(method: str) -> None:
    rule = RULES[method]
    for m, rank in ((6, 3), (9, 4), (14, 5)):
        rows = (torch.randn(m, rank) @ torch.randn(rank, m)).float()
        mean = torch.nn.functional.normalize(rows.sum(0), dim=0)
        rows += 2 * rows.norm(dim=1).max() * mean  # on one side of a plane: the update is not rounding
        exact, gram = rule.oracle(rows), reference.gram(rows)
        for c in (rule().coefficients(gram, rows.dtype), ops.coefficients(gram, method, dtype=rows.dtype)):
            assert (c @ rows.double() - exact).norm() <= 1e-5 * rows.norm(dim=1).max()
