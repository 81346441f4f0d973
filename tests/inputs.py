"""Gradients with known angles, ranks and scales, and the bounds that follow from their dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastconfig import UPGradOperator, reference
from fastconfig.grad_operator import (
    ConFIG_update,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
)
from fastconfig.length_model import (
    LengthModel,
    ProjectionLength,
    TrackArithmeticAverage,
    TrackGeometricAverage,
    TrackHarmonicAverage,
    TrackMaximum,
    TrackMinimum,
    TrackSpecific,
)
from fastconfig.methods import UPGrad

#: tensors are read in C by DLPack's exchange table from torch 2.10 on; before, the long way does it all
in_one_call = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch before 2.10"
)
BACKENDS = ("numba", "pytorch")
LENGTH_MODELS: dict[str, LengthModel] = {
    "projection": ProjectionLength(),
    "minimum": TrackMinimum(),
    "maximum": TrackMaximum(),
    "harmonic": TrackHarmonicAverage(),
    "arithmetic": TrackArithmeticAverage(),
    "geometric": TrackGeometricAverage(),
    "specific": TrackSpecific(-1),
}


class Method:
    """One way of merging gradients: ours, and the oracle's."""

    def __init__(self, ours: Callable[..., Tensor], oracle: Callable[[Tensor], Tensor]) -> None:
        self.ours = ours
        self.oracle = oracle


def _config(length: str, model: LengthModel) -> Method:
    return Method(
        lambda grads: ConFIG_update(grads, length_model=model),
        lambda rows: reference.config(rows, length=length, track_id=-1),
    )


METHODS: dict[str, Method] = {
    **{f"config-{name}": _config(name, model) for name, model in LENGTH_MODELS.items()},
    "pcgrad": Method(PCGradOperator().calculate_gradient, reference.pcgrad),
    "pcgrad-mean": Method(
        PCGradOperator(reduction="mean").calculate_gradient,
        lambda rows: reference.pcgrad(rows, reduction="mean"),
    ),
    "ppcgrad": Method(PPCGradOperator().calculate_gradient, reference.ppcgrad),
    "ppcgrad-mean": Method(
        PPCGradOperator(reduction="mean").calculate_gradient,
        lambda rows: reference.ppcgrad(rows, reduction="mean"),
    ),
    "imtlg": Method(IMTLGOperator().calculate_gradient, reference.imtlg),
    "upgrad": Method(UPGradOperator().calculate_gradient, UPGrad.oracle),
}


def orthonormal(m: int, n: int) -> Tensor:
    """(m, n) float64, m <= n."""
    return torch.linalg.qr(torch.randn(n, m, dtype=torch.float64))[0].T


def equiangular(m: int, n: int, cosine: float) -> Tensor:
    """(m, n) float64 unit rows with one pairwise cosine, -1 / (m - 1) < cosine < 1, m <= n."""
    angles = torch.full((m, m), cosine, dtype=torch.float64).fill_diagonal_(1)
    return torch.linalg.cholesky(angles) @ orthonormal(m, n)


def low_rank(m: int, n: int, rank: int) -> Tensor:
    """(m, n) float64 rows that span ``rank`` dimensions, with all angles mixed."""
    return torch.randn(m, rank, dtype=torch.float64) @ orthonormal(rank, n)


def conflicting(m: int, n: int) -> Tensor:
    """(m, n) float32 of which most pairs conflict, of mixed lengths."""
    rows = torch.randn(m, n) + 0.3 * torch.randn(n)
    return (rows - 0.9 * rows.mean(0)) * torch.logspace(-2, 2, m)[torch.randperm(m), None]


def projected(rows: Tensor, masks: Tensor | None, reduction: str, order: Tensor | None) -> Tensor:
    """The merged gradient in float64: PCGrad's in an order, else PPCGrad's; masks say what a task has."""
    total = reference.ppcgrad(rows) if order is None else reference.pcgrad(rows, order=order)
    shared = torch.ones(rows.shape[1]) if masks is None else masks.prod(0)
    return torch.where((shared > 0) & (reduction == "mean"), total / len(rows), total)


def scaled(rows: Tensor, decades: float) -> Tensor:
    """The rows with norms spread over 10^-decades .. 10^decades."""
    exponents = torch.linspace(-decades, decades, len(rows), dtype=rows.dtype)
    return rows * 10 ** exponents[torch.randperm(len(rows)), None]


def rounding_bound(rows: Tensor, update: Tensor) -> float:
    """8 eps sum_i |c_i| |g_i| / |update|: what rounding the last sum may cost, c from the oracle's update."""
    full = rows.double()
    norms = full.norm(dim=1)
    alive = norms > 0
    units = full[alive] / norms[alive, None]
    q, r = torch.linalg.qr(units.T)
    weights = torch.linalg.pinv(r) @ (q.T @ update)
    return float(8 * torch.finfo(rows.dtype).eps * weights.abs().sum() / update.norm())


def rows_of(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """(m, N) by torch's own backward pass, zeros where there is no gradient."""
    rows = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True) for v in losses]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def relative_error(update: Tensor, exact: Tensor) -> float:
    """|update - exact| / |exact|, in float64; asserts first that all is finite."""
    assert torch.isfinite(update).all()
    assert torch.isfinite(exact).all()
    return float((update.double() - exact).norm() / exact.norm())


def gram_error(gram: Tensor, exact: Tensor) -> float:
    """The largest error of an entry, relative to the norms of its two rows; ``exact`` by reference.gram."""
    assert torch.isfinite(gram).all()
    norms = exact.diagonal().sqrt()
    sizes = norms * norms[:, None]
    return float(((gram - exact).abs() / torch.where(sizes > 0, sizes, 1)).max())


def half_bound(exact: Tensor, dtype: torch.dtype) -> float:
    """Four times what rounding the exact answer to ``dtype`` costs, relative."""
    rounded = (exact.to(dtype).double() - exact).norm() / exact.norm()
    return 4 * max(float(rounded), torch.finfo(dtype).eps / 2)
