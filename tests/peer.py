"""The installed conflictfree, and what may be asked of its answers."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from inputs import relative_error, rounding_bound, scaled
from torch import Tensor

pytest.importorskip("conflictfree")

MODULES = (
    "grad_operator",
    "weight_model",
    "length_model",
    "utils",
    "momentum_operator",
    "loss_recorder",
)


LENGTHS = {  # the oracle's name of each length model
    "projection": "ProjectionLength",
    "minimum": "TrackMinimum",
    "maximum": "TrackMaximum",
    "harmonic": "TrackHarmonicAverage",
    "arithmetic": "TrackArithmeticAverage",
    "geometric": "TrackGeometricAverage",
    "specific": "TrackSpecific",
}


def _imported(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on first compilation: escape sequences in docstrings
        return importlib.import_module(module)


THEIRS = {name: _imported(f"conflictfree.{name}") for name in MODULES}
OURS = {name: importlib.import_module(f"fastconfig.{name}") for name in MODULES}


def peer_bound(rows: Tensor) -> float:
    """N eps cond(unit rows)^2: a-priori error of N-term products and a solve in the rows' dtype."""
    full = rows.double()
    sigma = torch.linalg.svdvals(full / full.norm(dim=1, keepdim=True))
    return float(rows.shape[1] * torch.finfo(rows.dtype).eps * (sigma[0] / sigma[-1]) ** 2)


def conflicting(m: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(m, n) independent rows, norms over two decades; the first conflicts with all others."""
    rows = torch.randn(m, n, dtype=torch.float64)
    rows[1:] -= (0.3 + 0.4 * torch.rand(m - 1, 1)) * rows[0]
    return scaled(rows, decades=1).to(dtype)


class TheirOnes(THEIRS["weight_model"].WeightModel):  # type: ignore[misc,name-defined]
    """conflictfree's own EqualWeight is float32 only."""

    def get_weights(self, gradients: Tensor, losses: Any = None, device: Any = None) -> Tensor:
        return torch.ones(len(gradients), dtype=gradients.dtype, device=device)


def length_of(modules: dict[str, ModuleType], length: str) -> Any:
    kind = getattr(modules["length_model"], LENGTHS[length])
    return kind(1) if length == "specific" else kind()


def agree(ours: Tensor, theirs: Tensor, exact: Tensor, rows: Tensor) -> None:
    """Both are the oracle's answer: theirs within its a-priori error, ours within rounding."""
    assert ours.dtype == rows.dtype
    assert relative_error(theirs, exact) <= peer_bound(rows)
    assert relative_error(ours, exact) <= max(rounding_bound(rows, exact), 1e-12)
