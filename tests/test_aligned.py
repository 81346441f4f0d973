"""Aligned-MTL against the singular vectors of the rows: norms that differ, gradients that depend on more."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import equiangular, low_rank, orthonormal, relative_error, scaled
from pairs import some
from schedules import assert_served
from torch import Tensor

from fastconfig import AlignedMTLOperator, ops, reference
from fastconfig.methods import AlignedMTL, make_rule
from fastconfig.methods.aligned import SCALES

CPU = torch.device("cpu")
every = pytest.mark.parametrize("mode", SCALES)


def coefficients(mode: str, rows: Tensor, **given_settings: Any) -> list[Tensor]:
    """By torch operations and, where the method has them, by compiled code; of an exact Gram matrix."""
    rule = make_rule("aligned", len(rows), CPU, scale_mode=mode, **given_settings)
    gram = reference.gram(rows)
    found = [rule.coefficients(gram, rows.dtype)]
    if rule.native is not None:
        found.append(ops.coefficients(gram, "aligned", dtype=rows.dtype, scale_mode=mode, **given_settings))
    return found


def updates(mode: str, rows: Tensor, **given_settings: Any) -> list[Tensor]:
    return [c @ rows.double() for c in coefficients(mode, rows, **given_settings)]


def by_singular_vectors(mode: str, rows: Tensor) -> Tensor:
    """sqrt(s) V U^T weighed by 1/m, for norms that do not differ much."""
    left, sigma, right = torch.linalg.svd(rows, full_matrices=False)
    kept = sigma > 1e-6 * sigma[0]
    lengths = sigma[kept].sort().values
    scale = {
        "min": lengths[0],
        "median": lengths[(len(lengths) - 1) // 2],
        "rmse": lengths.square().mean().sqrt(),
    }
    return scale[mode] * left[:, kept].mean(0) @ right[kept]


@every
@pytest.mark.parametrize(("m", "n"), [(1, 4), (2, 2), (3, 9), (5, 3), (8, 20)])
def test_the_oracle(mode: str, m: int, n: int) -> None:
    rows = scaled(torch.randn(m, n, dtype=torch.float64), 1)
    assert relative_error(AlignedMTL.oracle(rows, scale_mode=mode), by_singular_vectors(mode, rows)) <= 1e-9


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("decades", [0, 3, 6])
@pytest.mark.parametrize("m", some([1, 2, 3, 4, 5, 7, 8, 11, 16, 17], quick=[1, 2, 3, 8]))
def test_exact(mode: str, m: int, decades: float, dtype: torch.dtype) -> None:
    rows = torch.randn(m, 3 * m, dtype=torch.float64)
    rows = scaled(rows - 0.8 * rows.mean(0), decades).to(dtype)
    exact = AlignedMTL.oracle(rows, scale_mode=mode)
    for update in updates(mode, rows):
        assert relative_error(update, exact) <= (1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("m", [32, 33])
def test_many(m: int) -> None:
    rows = torch.randn(m, 3 * m, dtype=torch.float64)
    for update in updates("min", rows):
        assert relative_error(update, by_singular_vectors("min", rows)) <= 1e-9


@every
@pytest.mark.parametrize("cosine", [-0.49, 0.0, 0.999, 1 - 1e-8])
def test_equal_angles(mode: str, cosine: float) -> None:
    """The least eigenvalue is as certain as rounding of G leaves it."""
    rows = scaled(equiangular(3, 10, cosine), 2)
    exact = AlignedMTL.oracle(rows, scale_mode=mode)
    for update in updates(mode, rows):
        assert relative_error(update, exact) <= max(1e-9, 1e-15 / (1 - cosine))


@every
@pytest.mark.parametrize("decades", [0, 6])
@pytest.mark.parametrize(("m", "n", "rank"), [(4, 30, 2), (6, 3, 3), (9, 40, 5), (12, 1, 1)])
def test_dependent_gradients(mode: str, m: int, n: int, rank: int, decades: float) -> None:
    rows = scaled(low_rank(m, n, rank), decades)
    exact = AlignedMTL.oracle(rows, scale_mode=mode)
    for update in updates(mode, rows):
        assert relative_error(update, exact) <= 1e-8


@every
def test_what_is_a_thousand_times_the_difference_of_two_longer_ones(mode: str) -> None:
    """Rounding to float32 gives it a part of its own, a thousand times as long as rounding."""
    u, v = orthonormal(2, 40)
    rows = torch.stack([u, u + 1e-3 * v, 1e-4 * v]).float()
    exact = AlignedMTL.oracle(rows, scale_mode=mode)
    for update in updates(mode, rows):  # which has that part, of 1e-4 of the gradient
        assert relative_error(update, exact) <= 1e-3


@every
def test_duplicates_opposed_and_zero_gradients(mode: str) -> None:
    rows = torch.randn(3, 20, dtype=torch.float64)
    rows = torch.cat([rows, rows[:2], -1e-4 * rows[:1], torch.zeros_like(rows[:1])])
    exact = AlignedMTL.oracle(rows, scale_mode=mode)
    for update in updates(mode, rows):
        assert relative_error(update, exact) <= 1e-9
    for nothing in (torch.zeros(3, 5, dtype=torch.float64), torch.stack([rows[0], -rows[0]])):
        assert AlignedMTL.oracle(nothing, scale_mode=mode).norm() <= 1e-14
        for update in updates(mode, nothing):
            assert update.norm() <= 1e-14


@every
def test_components_of_one_length(mode: str) -> None:
    """Weighed by p = e_i, the update is row i of a matrix with orthogonal rows of one length."""
    rows = scaled(torch.randn(4, 30, dtype=torch.float64), 6)
    parts = torch.stack([updates(mode, rows, weights=e)[-1] for e in torch.eye(4, dtype=torch.float64)])
    lengths = parts.norm(dim=1)
    assert (lengths / lengths.mean() - 1).abs().max() <= 1e-10
    units = parts / lengths[:, None]
    assert (units @ units.T - torch.eye(4)).abs().max() <= 1e-10


def test_components_of_many_problems() -> None:
    """Whichever sweep is the last: B G B = s I, up to rounding of G."""
    rows = torch.randn(300, 4, 12, dtype=torch.float64)
    gram, eye = rows @ rows.mT, torch.eye(4, dtype=torch.float64)
    each, weights = gram.repeat_interleave(4, 0), eye.repeat(300, 1)
    plain = AlignedMTL(weights).coefficients(each, torch.float64)
    for c in (plain, ops.coefficients(each, "aligned", weights=weights)):
        squared = c.view(gram.shape) @ gram @ c.view(gram.shape).mT
        errors = squared / squared.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] - eye
        assert (errors.abs().amax((-2, -1)) <= 1e-14 * torch.linalg.cond(gram)).all()


@every
def test_orthogonal_gradients_of_the_very_same_length(mode: str) -> None:
    """Their mean, whichever of the lengths is the common one."""
    for m in (1, 2, 3, 4):
        for c in coefficients(mode, 3 * torch.eye(m, m + 2, dtype=torch.float64)):
            torch.testing.assert_close(c, torch.full_like(c, 1 / m), rtol=1e-14, atol=0)


@every
@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e-30, 1e30])
def test_overall_scale_and_order(mode: str, scale: float) -> None:
    rows = scaled(torch.randn(5, 30, dtype=torch.float64), 6)
    order = torch.randperm(5)
    for one, other in zip(updates(mode, scale * rows[order]), updates(mode, rows), strict=True):
        assert relative_error(one / scale, other) <= 1e-11


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32), st.sampled_from(SCALES), st.booleans())
def test_finite_whatever_the_gradients(m: int, n: int, seed: int, mode: str, single: bool) -> None:
    maker = torch.Generator().manual_seed(seed)
    rows = torch.randint(-1, 2, (m, n), generator=maker).double() + 0
    if seed % 2:
        rows[::2] += 1e-7 * torch.randn(rows[::2].shape, generator=maker, dtype=torch.float64)
    rows *= 10.0 ** torch.randint(-6, 7, (m, 1), generator=maker)
    gram = rows @ rows.T if not single else (rows.float() @ rows.float().T).double()
    rule = AlignedMTL(scale_mode=mode)
    for dtype in (torch.float64, torch.float32):
        assert rule.coefficients(gram, dtype).isfinite().all()
        assert ops.coefficients(gram, "aligned", dtype=dtype, scale_mode=mode).isfinite().all()


def test_batches_devices_and_preferences() -> None:
    rows = torch.randn(6, 5, 8, dtype=torch.float64)
    rows[1] = 0
    rows[2, 3] = -rows[2, 1]
    for made in (AlignedMTLOperator(), AlignedMTLOperator([5, 4, 3, 2, 1], "median")):
        for one, problem in zip(made.calculate_gradient(rows), rows, strict=True):
            torch.testing.assert_close(one, made.calculate_gradient(problem), rtol=1e-12, atol=1e-14)
        for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert torch.equal(copied.calculate_gradient(rows), made.calculate_gradient(rows))
    weights = torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64)
    exact = AlignedMTL.oracle(rows[0], weights, "median")
    assert relative_error(made.calculate_gradient(rows[0]), exact) <= 1e-9
    assert relative_error(made.coefficients(rows[0] @ rows[0].T) @ rows[0], exact) <= 1e-9
    gram = torch.empty(2, 4, 4, dtype=torch.float64, device="meta")
    assert AlignedMTL().coefficients(gram, torch.float32).shape == (2, 4)


def test_on_every_backend(backend: str) -> None:
    rows = torch.randn(4, 1031) * torch.tensor([[1e-4], [1.0], [1e2], [1e-2]])
    assert_served(AlignedMTLOperator(), AlignedMTL.oracle(rows), rows)


def test_torchjds_example() -> None:
    """Of its documentation."""
    rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    update = AlignedMTLOperator().calculate_gradient(rows)
    torch.testing.assert_close(update, torch.tensor([0.2133, 0.9673, 0.9673]), rtol=0, atol=1e-4)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="scale_mode: got 'max', want one of 'min', 'median', 'rmse'"):
        AlignedMTLOperator(scale_mode="max")
    with pytest.raises(ValueError, match="pref_vector: got 2 numbers, want 3"):
        AlignedMTLOperator([1, 2]).calculate_gradient(torch.randn(3, 5))
    with pytest.raises(ValueError, match="pref_vector: got 2 numbers, want 3"):
        AlignedMTLOperator([1, 2]).coefficients(torch.eye(3))
