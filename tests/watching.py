"""Operators that a monitor watches, and their figures by hand from the full rows in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastconfig
from fastconfig import reference
from fastconfig.methods import IMTLG, UPGrad
from fastconfig.monitor import Monitor

NAMES = ["residual", "initial", "boundary"]


def some(n: int = 60, m: int = 3) -> Tensor:
    """(m, n) float64 rows of which some conflict, of unlike lengths."""
    return (torch.randn(m, n, dtype=torch.float64) - 0.3) * torch.tensor([0.1, 1, 30] + [2] * (m - 3))[
        :, None
    ]


def by_hand(rows: Tensor, update: Tensor) -> dict[str, Any]:
    """The figures of a step, from the full rows and the update."""
    norms = rows.norm(dim=1)
    m = len(rows)
    cosines = [float(rows[i] @ rows[j] / (norms[i] * norms[j])) for i, j in combinations(range(m), 2)]
    return {
        "norms": norms,
        "cosines": cosines,
        "conflict_rate": np.mean(np.array(cosines) < 0),
        "alignment": 2 * (m + 2 * sum(cosines)) / m**2 - 1,
        "coefficients": torch.linalg.lstsq(rows.T, update).solution,
        "update_cosines": rows @ update / (norms * update.norm()),
        "norm_ratio": norms.max() / norms.min(),
        "update_norm": update.norm(),
        "update_ratio": update.norm() / rows.sum(0).norm(),
    }


def check(monitor: Monitor, steps: list[dict[str, Any]], numbers: Any = None, **known: float) -> None:
    """Whether the history is that of the steps; of these numbers, if they are not 0, 1, ..."""
    history = monitor.history()
    assert len(monitor) == len(steps)
    assert history["step"].tolist() == list(range(len(steps)) if numbers is None else numbers)
    for n, step in enumerate(steps):
        for name, value in step.items():
            np.testing.assert_allclose(history[name][n], value, rtol=1e-9, atol=1e-12, err_msg=name)


class Doubled(fastconfig.LengthModel):
    """A user's own length: twice that of the first gradient."""

    def get_length(self, target_vector: Tensor, **given: Any) -> Tensor:
        return 2 * given["gradients"][0].norm()


class Descending(fastconfig.WeightModel):
    def get_weights(self, gradients: Tensor, **given: Any) -> Tensor:
        return torch.arange(len(gradients), 0, -1, dtype=gradients.dtype)


def by_weights(rows: Tensor) -> Tensor:
    return reference.config(rows, weights=torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


OPERATORS: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor]]] = {
    "config": (fastconfig.ConFIGOperator, reference.config),
    "minimum": (
        lambda: fastconfig.ConFIGOperator(length_model=fastconfig.TrackMinimum()),
        lambda rows: reference.config(rows, length="minimum"),
    ),
    "user's length": (
        lambda: fastconfig.ConFIGOperator(length_model=Doubled()),
        lambda rows: 2 * rows[0].norm() * torch.nn.functional.normalize(reference.config(rows), dim=0),
    ),
    "user's weights": (lambda: fastconfig.ConFIGOperator(Descending()), by_weights),
    "pcgrad": (lambda: fastconfig.PCGradOperator(reduction="mean"), lambda r: reference.pcgrad(r) / len(r)),
    "ppcgrad": (fastconfig.PPCGradOperator, reference.ppcgrad),
    "upgrad": (fastconfig.UPGradOperator, UPGrad.oracle),
    "function": (
        lambda: fastconfig.GramOperator(lambda G: 1 / G.diagonal()),
        lambda r: (r / r.square().sum(1, True)).sum(0),
    ),
    "every": (lambda: fastconfig.EveryOperator(IMTLG(), 1), reference.imtlg),
    "operator within": (lambda: fastconfig.EveryOperator(fastconfig.IMTLGOperator(), 1), reference.imtlg),
}


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "vectors": lambda rows: list(rows),
    "tensor": lambda rows: rows,
    "lists": lambda rows: [[row[:7].view(7), row[7:]] for row in rows],
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def losses(self) -> list[Tensor]:
        out = self.layers(torch.randn(9, 4, dtype=torch.float64)) * torch.tensor([1.0, -3.0, 0.2])
        return [out[:, 0].square().mean(), (out[:, 1] - out[:, 0]).square().mean(), out[:, 2].exp().mean()]
