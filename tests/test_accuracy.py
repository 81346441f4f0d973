"""Every method and length model on every backend against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from inputs import (
    BACKENDS,
    METHODS,
    equiangular,
    half_bound,
    low_rank,
    relative_error,
    rounding_bound,
    scaled,
)
from pairs import cases, slow, some
from torch import Tensor

from fastconfig import ConFIG_update, ops, use_backend

CONFIG = [name for name in METHODS if name.startswith("config")]
KINDS = {
    "orthogonal": lambda m, n: equiangular(m, n, 0.0),
    "aligned": lambda m, n: equiangular(m, n, 0.5),
    "nearly parallel": lambda m, n: equiangular(m, n, 0.99),
    "conflicting": lambda m, n: equiangular(m, n, -0.9 / (m - 1)),
    "mixed": lambda m, n: low_rank(m, n, m) + 0.3 * equiangular(m, n, 0.0),
    "heavy-tailed": lambda m, n: torch.randn(m, n).double() * (2 * torch.randn(m, n)).exp(),
}


def check(rows: Tensor, methods: list[str], *, bound: float | None = None) -> None:
    """Relative error of both backends at most ``bound``, else what rounding the last sum costs."""
    for name in methods:
        exact = METHODS[name].oracle(rows)
        limit = rounding_bound(rows, exact) if bound is None else bound
        for backend in BACKENDS:
            with use_backend(backend):
                error = relative_error(METHODS[name].ours(list(rows)), exact)
            assert error <= limit, f"{name} on {backend}: {error:.2e} > {limit:.2e}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1000, 4099])
@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_float32(m: int, n: int, kind: str) -> None:
    rows = scaled(KINDS[kind](m, n), decades=2).float()
    check(rows, list(METHODS))


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_float32_two_in_a_million_up_to_cosine_099(m: int, cosine: float) -> None:
    check(equiangular(m, 5003, cosine).float(), list(METHODS), bound=2e-6)


@pytest.mark.parametrize(
    ("m", "kind"), cases([2, 3, 8, 32], ["aligned", "conflicting", "heavy-tailed"], together=1)
)
def test_float32_at_a_hundred_thousand(m: int, kind: str) -> None:
    check(KINDS[kind](m, 100_003).float(), list(METHODS))


@pytest.mark.parametrize("m", some([2, 3, 8], [3]))
def test_float32_at_a_million(m: int) -> None:
    check(KINDS["heavy-tailed"](m, 1_000_001).float(), list(METHODS))


@pytest.mark.parametrize("methods", [["config-projection"], pytest.param(list(METHODS), marks=slow)])
def test_float32_at_a_million_for_32_gradients(methods: list[str]) -> None:
    check((torch.randn(32, 32) @ torch.randn(32, 1_000_000)), methods)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_fewer_elements_than_gradients(m: int, n: int) -> None:
    rows = torch.randn(m, n)
    for name, method in METHODS.items():
        exact = method.oracle(rows)
        for backend in BACKENDS:
            with use_backend(backend):
                update = method.ours(list(rows))
            assert torch.isfinite(update).all()
            size = rows.double().norm(dim=1).sum()
            if exact.norm() <= 1e-9 * size:  # no direction is supported
                assert update.double().norm() <= 1e-7 * size, name
            else:
                assert relative_error(update, exact) <= rounding_bound(rows, exact) + 1e-6, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_float64(m: int, method: str) -> None:
    for cosine in (0.0, 0.5, 0.99, -0.9 / (m - 1)):
        # a solution of C x = w is known to its condition times eps, whatever computes it
        eigenvalues = 1 + (m - 1) * cosine, 1 - cosine
        condition = max(eigenvalues) / min(eigenvalues)
        error = 4 * condition * torch.finfo(torch.float64).eps
        if method == "imtlg":  # divides by sum_i x_i / |g_i|, which may hang on one x_i: |x| is sqrt(m) of it
            error *= m**0.5
        bound = max(1e-12, error)
        check(scaled(equiangular(m, 3001, cosine), decades=3), [method], bound=bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_half_precision(m: int, dtype: torch.dtype) -> None:
    for kind in ("orthogonal", "aligned", "conflicting"):
        rows = (100 * KINDS[kind](m, 3001)).to(dtype)
        for name, method in METHODS.items():
            exact = method.oracle(rows)
            for backend in BACKENDS:
                with use_backend(backend):
                    update = method.ours(list(rows))
                assert update.dtype == dtype
                assert relative_error(update, exact) <= half_bound(exact, dtype), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_equal_cosines(m: int, dtype: torch.dtype, backend: str) -> None:
    for kind in KINDS:
        rows = scaled(KINDS[kind](m, 20_011), decades=3).to(dtype)
        update = ConFIG_update(list(rows))
        assert torch.isfinite(update).all()
        full, exact = rows.double(), update.double()
        cosines = full @ exact / (full.norm(dim=1) * exact.norm())
        bound = max(rounding_bound(rows, exact), 1e-12)
        assert (cosines - cosines.mean()).abs().max() <= bound, kind
        assert cosines.min() > 0


@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_rows_at_cosine_0999999_are_told_apart(m: int) -> None:
    rows = equiangular(m, 10_007, 0.999999).float()
    check(rows, [*CONFIG, "imtlg"])
    full = rows.double()
    # the same rows with weights of both signs: the answer lives in the tiny differences
    weights = torch.ones(m, dtype=torch.float64)
    weights[0] = -1
    gram = ops.gram(rows)
    update = ops.combine(full, ops.coefficients(gram, weights=weights, length="none"))
    projections = (full / full.norm(dim=1, keepdim=True)) @ update
    assert torch.isfinite(update).all()
    # relative error of a Gram entry 1e-14 over 1 - cos = 1e-6
    assert (projections - weights).abs().max() <= 1e-6


@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_norms_from_1e_minus_30_to_1e30(m: int) -> None:
    for cosine in (0.0, 0.5, -0.9 / (m - 1)):
        rows = scaled(equiangular(m, 2003, cosine), decades=30).float()
        check(rows, [*CONFIG, "pcgrad", "ppcgrad"])


@pytest.mark.parametrize("m", [2, 3, 8])
def test_weights(m: int, backend: str) -> None:
    from fastconfig import reference
    from fastconfig.weight_model import WeightModel

    weights = torch.rand(m, dtype=torch.float64) + 0.1

    class Fixed(WeightModel):
        def get_weights(self, gradients=None, losses=None):  # type: ignore[no-untyped-def]
            return weights

    rows = scaled(equiangular(m, 4003, -0.5 / (m - 1)), decades=1).float()
    exact = reference.config(rows, weights)
    assert relative_error(ConFIG_update(rows, Fixed()), exact) <= rounding_bound(rows, exact)
