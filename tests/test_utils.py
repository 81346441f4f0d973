"""Vector functions of utils.py, the coefficients of two, and slice selectors; vectors of other parameters."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from peer import THEIRS, conflicting
from torch import Tensor, nn

from fastconfig.utils import (
    OrderedSliceSelector,
    RandomSliceSelector,
    estimate_conflict,
    get_cos_similarity,
    get_gradient_vector,
    has_zero,
    transfer_coef_double,
    unit_vector,
)

EPS = torch.finfo(torch.float32).eps
NORMS = [1e-30, 1e-20, 1.0, 1e20, 1e30]
N = 1001


def with_norm(norm: float, n: int = N) -> Tensor:
    vector = torch.randn(n, dtype=torch.float64)
    return (vector * (norm / vector.norm())).float()


def exact_cosine(a: Tensor, b: Tensor) -> Tensor:
    return a.double() @ b.double() / (a.double().norm() * b.double().norm())


# get_cos_similarity


@pytest.mark.parametrize("first", NORMS)
@pytest.mark.parametrize("second", NORMS)
def test_cosine_at_any_norm(first: float, second: float, backend: str) -> None:
    a, b = with_norm(first), with_norm(second)
    cosine = get_cos_similarity(a, b)
    assert cosine.dtype == torch.float32
    assert cosine.shape == ()
    assert torch.isfinite(cosine)
    exact = exact_cosine(a, b)
    # from float64 products of N terms, rounded once
    assert abs(cosine.double() - exact) <= EPS * exact.abs() + N * 2.3e-16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cosine_of_a_vector_with_itself(dtype: torch.dtype, backend: str) -> None:
    vector = torch.randn(N).to(dtype)
    for scale, sign in ((1, 1), (4, 1), (-2, -1)):
        cosine = get_cos_similarity(vector, scale * vector)
        assert cosine.dtype == dtype
        assert abs(cosine.double() - sign) <= torch.finfo(dtype).eps


def test_cosine_with_a_zero_vector_is_zero(backend: str) -> None:
    zero, vector = torch.zeros(N), torch.randn(N)
    assert get_cos_similarity(zero, vector) == 0
    assert get_cos_similarity(vector, zero) == 0
    assert get_cos_similarity(zero, zero) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_cosine_of_a_broken_vector_is_nan(bad: float, backend: str) -> None:
    vector = torch.randn(N)
    vector[3] = bad
    assert get_cos_similarity(vector, torch.randn(N)).isnan()
    assert get_cos_similarity(torch.zeros(N), vector).isnan()


# unit_vector


@pytest.mark.parametrize("norm", NORMS)
def test_unit_vector_at_any_norm(norm: float) -> None:
    vector = with_norm(norm)
    unit = unit_vector(vector)
    assert unit.dtype == torch.float32
    exact = vector.double() / vector.double().norm()
    assert torch.isfinite(unit).all()
    assert ((unit - exact).abs() <= EPS * exact.abs()).all()  # every element is rounded once


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 1e38), (torch.float16, 6e4), (torch.bfloat16, 1e38)]
)
def test_unit_vector_of_a_norm_beyond_its_dtype(dtype: torch.dtype, value: float) -> None:
    vector = torch.full((10_000,), value, dtype=dtype)
    assert not torch.isfinite(vector.double().norm().to(dtype))
    torch.testing.assert_close(unit_vector(vector), torch.full_like(vector, 0.01))


def test_unit_vector_keeps_shape_and_leaves_its_input() -> None:
    given = torch.randn(3, 4, 5, requires_grad=True)
    before = given.detach().clone()
    unit = unit_vector(given)
    assert unit.shape == given.shape
    assert not unit.requires_grad
    assert torch.equal(given, before)


@pytest.mark.parametrize("warn_zero", [False, True])
def test_unit_vector_of_zero_is_zero(warn_zero: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        unit = unit_vector(torch.zeros(5), warn_zero)
    assert not unit.any()
    assert [str(w.message) for w in caught] == (
        ["Detected zero vector when doing normalization."] if warn_zero else []
    )
    if warn_zero:
        assert caught[0].filename == __file__  # it points at the caller


def test_unit_vector_does_not_warn_without_cause() -> None:
    unit = unit_vector(torch.tensor([3.0, 4.0]), warn_zero=True)  # a warning would be an error
    torch.testing.assert_close(unit, torch.tensor([0.6, 0.8]))


# estimate_conflict


@pytest.mark.parametrize("norm", NORMS)
def test_estimate_conflict_at_any_norm(norm: float, backend: str) -> None:
    rows = conflicting(4, N, torch.float64)
    rows = (rows * (norm / rows.norm())).float()
    total = rows.double().sum(0)
    estimate = estimate_conflict(rows)
    assert estimate.dtype == torch.float32
    assert torch.isfinite(estimate).all()
    exact = torch.stack([exact_cosine(row, total) for row in rows])
    # rounded once; before that float64 products, whose sums may cancel down to |sum| of sum |g_i|
    cancelled = rows.double().norm(dim=1).sum() / total.norm()
    assert ((estimate - exact).abs() <= EPS * exact.abs() + len(rows) * N * 2.3e-16 * cancelled**2).all()
    assert torch.equal(estimate_conflict(list(rows)), estimate)  # type: ignore[arg-type]


def test_estimate_conflict_agrees_with_conflictfree(backend: str) -> None:
    rows = conflicting(4, N, torch.float64)
    theirs = THEIRS["utils"].estimate_conflict(rows)
    torch.testing.assert_close(estimate_conflict(rows), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("zero", [0, 2])
def test_estimate_conflict_with_a_zero_gradient(zero: int, backend: str) -> None:
    rows = conflicting(3, N)
    rows[zero] = 0
    estimate = estimate_conflict(rows)
    assert torch.isfinite(estimate).all()
    assert estimate[zero] == 0
    others = [i for i in range(3) if i != zero]
    torch.testing.assert_close(estimate[others], estimate_conflict(rows[others]))


def test_estimate_conflict_of_gradients_that_cancel(backend: str) -> None:
    row = torch.randn(N)
    assert estimate_conflict(torch.stack([row, -row])).tolist() == [0, 0]
    assert estimate_conflict(torch.zeros(3, N)).tolist() == [0, 0, 0]


def test_estimate_conflict_of_a_broken_gradient_is_nan(backend: str) -> None:
    rows = torch.randn(3, N)
    rows[1, 5] = torch.inf
    assert estimate_conflict(rows).isnan().all()


# transfer_coef_double


def two_units(cosine: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """v_1, v_2 at this cosine, and o_1, o_2 as conflictfree takes them; float64."""
    a, b = torch.linalg.qr(torch.randn(N, 2, dtype=torch.float64))[0].T
    v_1, v_2 = a, cosine * a + (1 - cosine**2) ** 0.5 * b
    o_1, o_2 = v_2 - cosine * v_1, v_1 - cosine * v_2
    return v_1, v_2, o_1 / o_1.norm(), o_2 / o_2.norm()


@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.7])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_transfer_coef_double(weights: tuple[float, float], cosine: float) -> None:
    v_1, v_2, o_1, o_2 = two_units(cosine)
    c_1, c_2 = transfer_coef_double(torch.tensor(weights), v_1, v_2, o_1, o_2)
    direction = c_1 * o_1 + c_2 * o_2
    assert torch.isfinite(direction).all()
    assert direction.norm() > 0
    # (direction . v_1) w_2 = (direction . v_2) w_1
    left, right = direction @ v_1 * weights[1], direction @ v_2 * weights[0]
    assert abs(left - right) <= 1e-12
    assert direction @ v_1 >= -1e-12
    assert direction @ v_2 >= -1e-12


def test_transfer_coef_double_agrees_with_conflictfree() -> None:
    weights, vectors = torch.tensor([2.0, 0.5]), two_units(-0.3)
    ours = transfer_coef_double(weights, *vectors)
    theirs = THEIRS["utils"].transfer_coef_double(weights, *vectors)
    assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-12)
    assert float(ours[1]) == theirs[1]


def test_transfer_coef_double_wants_two_weights() -> None:
    with pytest.raises(ValueError, match="weights: got 3, want 2"):
        transfer_coef_double(torch.ones(3), *[torch.ones(2)] * 4)


# has_zero


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], False),
        ([1, 2], False),
        ([1, 0], True),
        ([0.0], True),
        ((1e-300, -1), False),
        ([torch.tensor(1.0), torch.tensor(0.0)], True),
        (torch.tensor([1.0, 2.0]), False),
        (np.array([3, 0]), True),
    ],
)
def test_has_zero(values: Any, expected: bool) -> None:
    assert has_zero(values) is expected


# Selectors

SOURCE = ["a", "b", "c", "d", "e"]


def test_ordered_selector_goes_round() -> None:
    selector = OrderedSliceSelector()
    assert selector.select(2, SOURCE) == ([0, 1], ["a", "b"])
    assert selector.select(2, SOURCE) == ([2, 3], ["c", "d"])
    assert selector.select(2, SOURCE) == ([4, 0], ["e", "a"])
    assert selector.select(1, SOURCE) == ([1], "b")
    assert selector.select(5, SOURCE) == ([2, 3, 4, 0, 1], ["c", "d", "e", "a", "b"])


@pytest.mark.parametrize("name", ["OrderedSliceSelector", "RandomSliceSelector"])
def test_selectors_agree_with_conflictfree(name: str, seed: int) -> None:
    chosen = []
    for selector in (THEIRS["utils"], globals()):
        kind = selector[name] if isinstance(selector, dict) else getattr(selector, name)
        np.random.seed(seed)  # noqa: NPY002
        one = kind()
        picks = [one.select(n, SOURCE) for n in (1, 2, 3, 5, 1, 4)]
        chosen.append([(list(indexes), values) for indexes, values in picks])
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("selector", [OrderedSliceSelector(), RandomSliceSelector()])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_selected_indexes_are_plain_ints(selector: Any, n: int) -> None:
    indexes, values = selector.select(n, SOURCE)
    assert type(indexes) is list
    assert {type(i) for i in indexes} == {int}
    assert len(set(indexes)) == n
    assert values == (SOURCE[indexes[0]] if n == 1 else [SOURCE[i] for i in indexes])


def test_random_selector_reaches_everything() -> None:
    selector = RandomSliceSelector()
    # the chance that an element is missed: 5 (4/5)^300 < 1e-28
    assert {selector.select(1, SOURCE)[1] for _ in range(300)} == set(SOURCE)


@pytest.mark.parametrize("selector", [OrderedSliceSelector(), RandomSliceSelector()])
@pytest.mark.parametrize("n", [0, 6])
def test_selectors_say_what_they_want(selector: Any, n: int) -> None:
    with pytest.raises(ValueError, match=rf"n: got {n}, want 1\.\.5"):
        selector.select(n, SOURCE)


def test_vectors_of_one_length_and_different_parameters_are_told_of() -> None:
    network = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    x = torch.randn(4, 3)
    first, second = (head(x).sum() for head in network)
    for _ in range(2):  # the same loss again
        first.backward(retain_graph=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            get_gradient_vector(network)
    network.zero_grad()
    second.backward()
    with pytest.warns(UserWarning, match="left out other parameters"):
        assert len(get_gradient_vector(network)) == 8
