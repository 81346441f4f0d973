"""What conflictfree 0.1.8 answers wrongly, or not at all, in its operators: here it is right.

The like for vectors and networks is in test_utils.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inputs import (
    LENGTH_MODELS,
    equiangular,
    half_bound,
    low_rank,
    relative_error,
    rounding_bound,
    scaled,
)
from peer import conflicting
from torch import Tensor

from fastconfig import (
    ConFIG_update,
    ConFIG_update_double,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    reference,
)
from fastconfig.weight_model import WeightModel

pytestmark = pytest.mark.usefixtures("backend")

TRACKED = [name for name in LENGTH_MODELS if name not in ("projection", "specific")]
N = 1000


def right(update: Tensor, exact: Tensor, rows: Tensor) -> None:
    assert relative_error(update, exact) <= rounding_bound(rows, exact)


def heavy_tailed(m: int, n: int) -> Tensor:
    return torch.randn(m, n) * (2 * torch.randn(m, n)).exp()


@pytest.mark.parametrize("use_least_square", [True, False])
def test_directions_are_not_cut_at_large_n(use_least_square: bool) -> None:
    mixed = low_rank(8, 100_000, 8).float()
    for rows in (mixed, heavy_tailed(8, 100_000)):
        update = ConFIG_update(list(rows), use_least_square=use_least_square)
        right(update, reference.config(rows), rows)


def test_cosines_are_equal_at_a_million() -> None:
    rows = torch.randn(3, 1_000_000)
    update = ConFIG_update(list(rows)).double()
    assert torch.isfinite(update).all()
    cosines = torch.stack([row.double() @ update / row.double().norm() for row in rows])
    spread = (cosines - cosines.mean()).abs().max() / update.norm()
    assert spread <= rounding_bound(rows, update)


def test_the_same_input_gives_the_same_bits() -> None:
    rows = heavy_tailed(8, 10_000)
    first = ConFIG_update(rows)
    assert torch.isfinite(first).all()
    for _ in range(20):
        assert torch.equal(ConFIG_update(rows), first)


@pytest.mark.parametrize("m", [2, 32])
def test_nearly_parallel_gradients_keep_their_digits(m: int) -> None:
    rows = equiangular(m, 5000, 0.999999).float()
    right(ConFIG_update(rows), reference.config(rows), rows)


@pytest.mark.parametrize("cosine", [0.999, 0.999999, -0.999])
def test_two_gradients_at_any_angle(cosine: float) -> None:
    rows = equiangular(2, 100_000, cosine).float()
    exact = reference.config(rows)
    right(ConFIG_update_double(rows[0], rows[1]), exact, rows)
    right(ConFIGOperator().calculate_gradient(list(rows)), exact, rows)


@pytest.mark.parametrize("m", [2, 3])
def test_float64_gradients(m: int) -> None:
    rows = conflicting(m, N, torch.float64)
    update = ConFIG_update(rows)
    assert update.dtype == torch.float64
    assert relative_error(update, reference.config(rows)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m", [2, 3])
def test_half_precision_gradients(m: int, dtype: torch.dtype) -> None:
    rows = conflicting(m, N, dtype)
    exact = reference.config(rows)
    assert relative_error(ConFIG_update(rows), exact) <= half_bound(exact, dtype)


def merged_two(rows: Tensor) -> list[Tensor]:
    return [
        ConFIG_update_double(rows[0], rows[1]),
        ConFIGOperator().calculate_gradient(rows),
        ConFIGOperator(allow_simplified_model=False).calculate_gradient(rows),
    ]


@pytest.mark.parametrize("zero", [0, 1])
def test_one_zero_gradient_of_two(zero: int) -> None:
    rows = torch.randn(2, N)
    rows[zero] = 0
    for update in merged_two(rows):
        right(update, rows[1 - zero].double(), rows)


def test_opposed_gradients_give_zero() -> None:
    row = torch.randn(N)
    for update in merged_two(torch.stack([row, -row])):
        assert not update.any()


def test_identical_gradients_give_their_sum() -> None:
    row = torch.randn(N)
    for update in merged_two(torch.stack([row, row])):
        right(update, 2 * row.double(), torch.stack([row, row]))


@pytest.mark.parametrize("length", TRACKED)
@pytest.mark.parametrize("m", [2, 4])
def test_a_zero_gradient_leaves_the_tracked_length(m: int, length: str) -> None:
    rows = conflicting(m, N)
    rows[1] = 0
    update = ConFIG_update(rows, length_model=LENGTH_MODELS[length])
    right(update, reference.config(rows, length=length), rows)
    others = torch.cat([rows[:1], rows[2:]])
    assert torch.equal(update, ConFIG_update(others, length_model=LENGTH_MODELS[length]))


@pytest.mark.parametrize("norm", [1e-30, 1e-25, 1e20, 1e30])
@pytest.mark.parametrize("name", ["config", "double", "pcgrad", "imtlg"])
def test_norms_whose_squares_leave_float32(name: str, norm: float) -> None:
    rows = conflicting(2, N, torch.float64)
    rows = (rows * (norm / rows.norm())).float()
    methods: dict[str, Any] = {
        "config": (ConFIG_update, reference.config),
        "double": (lambda g: ConFIG_update_double(g[0], g[1]), reference.config),
        "pcgrad": (PCGradOperator().calculate_gradient, reference.pcgrad),
        "imtlg": (IMTLGOperator().calculate_gradient, reference.imtlg),
    }
    ours, oracle = methods[name]
    right(ours(rows), oracle(rows), rows)


@pytest.mark.parametrize("scale", [1e12, 1e-12])
def test_imtlg_has_no_absolute_cut_off(scale: float) -> None:
    rows = conflicting(3, N) * scale
    right(IMTLGOperator().calculate_gradient(rows), reference.imtlg(rows), rows)


def test_imtlg_of_norms_that_differ_by_1e20() -> None:
    rows = scaled(equiangular(3, N, 0.2), decades=10).float()
    right(IMTLGOperator().calculate_gradient(rows), reference.imtlg(rows), rows)


def test_imtlg_of_one_gradient_is_that_gradient() -> None:
    row = torch.randn(N)
    right(IMTLGOperator().calculate_gradient([row]), row.double(), row[None])


def test_imtlg_of_opposed_gradients_is_zero() -> None:
    row = torch.randn(N)
    assert not IMTLGOperator().calculate_gradient([row, -row]).any()


def test_imtlg_of_opposed_gradients_of_different_length_is_zero() -> None:
    row = torch.randn(N)
    assert not IMTLGOperator().calculate_gradient([row, -0.5 * row]).any()


def test_imtlg_of_dependent_gradients_is_the_minimum_norm_answer() -> None:
    rows = equiangular(3, N, -0.2).float()
    rows = torch.cat([rows, 2 * rows[1:2]])  # the same direction twice, exactly
    update = IMTLGOperator().calculate_gradient(rows)
    right(update, reference.imtlg(rows), rows)
    cosines = rows.double() @ update.double() / rows.double().norm(dim=1)
    spread = (cosines - cosines.mean()).abs().max() / update.double().norm()
    assert spread <= rounding_bound(rows, update.double())


def test_weights_may_be_made_without_a_device() -> None:
    class Documented(WeightModel):
        def get_weights(self, gradients: Any = None, losses: Any = None) -> Tensor:
            return torch.tensor([1.0, 2.0])

    rows = conflicting(2, N)
    exact = reference.config(rows, torch.tensor([1.0, 2.0]))
    right(ConFIG_update(rows, Documented()), exact, rows)
    right(ConFIG_update_double(rows[0], rows[1], Documented()), exact, rows)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0)])
def test_a_weight_of_two_may_be_zero(weights: tuple[float, float]) -> None:
    class Fixed(WeightModel):
        def get_weights(self, gradients: Any = None, losses: Any = None) -> Tensor:
            return torch.tensor(weights)

    rows = conflicting(2, N)
    exact = reference.config(rows, torch.tensor(weights))
    for update in (
        ConFIG_update_double(rows[0], rows[1], Fixed()),
        ConFIGOperator(Fixed()).calculate_gradient(rows),
    ):
        right(update, exact, rows)
        ignored = rows[weights.index(0.0)].double()
        along = ignored @ update.double() / (ignored.norm() * exact.norm())
        assert abs(along) <= rounding_bound(rows, exact)


def test_double_takes_one_sequence_of_two() -> None:
    rows = conflicting(2, N)
    wanted = ConFIG_update_double(rows[0], rows[1])
    assert torch.isfinite(wanted).all()
    assert torch.equal(ConFIG_update_double(list(rows)), wanted)
    assert torch.equal(ConFIG_update_double(rows), wanted)


@pytest.mark.parametrize("m", [1, 3])
def test_double_wants_two(m: int) -> None:
    with pytest.raises(ValueError, match=f"grad_1: got {m} gradients and no grad_2, want 2"):
        ConFIG_update_double(torch.randn(m, 5))
