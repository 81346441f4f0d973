"""Models that a user wrote for conflictfree, on our base classes and on theirs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from inputs import relative_error, rounding_bound
from peer import LENGTHS, OURS, THEIRS, TheirOnes, agree, conflicting, length_of, peer_bound
from torch import Tensor

from fastconfig import ConFIG_update, ConFIG_update_double, ConFIGOperator, reference

DTYPES = [torch.float32, torch.float64]
SIZES = [2, 3, 5]
N = 101

BASES = {"ours": OURS, "theirs": THEIRS}


@pytest.fixture(params=list(BASES))
def base(request: pytest.FixtureRequest) -> dict[str, ModuleType]:
    return BASES[request.param]


class Seen:
    """What a model was given."""

    gradients: Tensor
    losses: Any

    def note(self, gradients: Tensor, losses: Any) -> None:
        self.gradients, self.losses = gradients, losses

    def check(self, rows: Tensor, losses: Any) -> None:
        assert isinstance(self.gradients, Tensor)
        assert self.gradients.shape == rows.shape
        assert self.gradients.dtype == rows.dtype
        assert torch.equal(self.gradients, rows)
        assert self.losses is losses


def weights_by_loss(modules: dict[str, ModuleType], seen: Seen, *, device: bool) -> Any:
    base_class: Any = modules["weight_model"].WeightModel

    class WithDevice(base_class):
        def get_weights(self, gradients: Any = None, losses: Any = None, device: Any = None) -> Tensor:
            assert device == torch.device("cpu")
            seen.note(gradients, losses)
            return torch.tensor(losses, dtype=gradients.dtype, device=device)

    class WithoutDevice(base_class):
        def get_weights(self, gradients: Any = None, losses: Any = None) -> Tensor:
            seen.note(gradients, losses)
            return torch.tensor(losses, dtype=gradients.dtype)

    return WithDevice() if device else WithoutDevice()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
def test_own_weights_with_device(
    m: int, dtype: torch.dtype, base: dict[str, ModuleType], backend: str
) -> None:
    rows, losses, seen = conflicting(m, N, dtype), [0.5 + 0.25 * i for i in range(m)], Seen()
    model = weights_by_loss(base, seen, device=True)
    theirs = THEIRS["grad_operator"].ConFIG_update(rows, model, use_least_square=False, losses=losses)
    update = ConFIG_update(list(rows), model, losses=losses)
    agree(update, theirs, reference.config(rows, torch.tensor(losses)), rows)
    seen.check(rows, losses)
    operator = ConFIGOperator(model)
    assert torch.equal(operator.calculate_gradient(list(rows), losses), update)


def test_own_weights_without_device(base: dict[str, ModuleType], backend: str) -> None:
    rows, losses, seen = conflicting(3, N), [1.0, 2.0, 0.5], Seen()
    update = ConFIG_update(rows, weights_by_loss(base, seen, device=False), losses=losses)
    seen.check(rows, losses)
    exact = reference.config(rows, torch.tensor(losses))
    assert relative_error(update, exact) <= rounding_bound(rows, exact)
    double = ConFIG_update_double(
        rows[0], rows[1], weights_by_loss(base, seen, device=False), losses=losses[:2]
    )
    exact = reference.config(rows[:2], torch.tensor(losses[:2]))
    assert relative_error(double, exact) <= rounding_bound(rows[:2], exact)


def median_length(modules: dict[str, ModuleType], seen: Seen) -> Any:
    base_class: Any = modules["length_model"].LengthModel

    class Median(base_class):
        def get_length(
            self,
            target_vector: Any = None,
            unit_target_vector: Any = None,
            gradients: Any = None,
            losses: Any = None,
        ) -> Tensor:
            assert target_vector.shape == unit_target_vector.shape == gradients[0].shape
            seen.note(gradients, losses)
            return gradients.norm(dim=1).median()

    return Median()


def fixed_rescaling(modules: dict[str, ModuleType], seen: Seen) -> Any:
    base_class: Any = modules["length_model"].LengthModel

    class Fixed(base_class):
        def rescale_length(self, target_vector: Tensor, gradients: Any = None, losses: Any = None) -> Tensor:
            seen.note(gradients, losses)
            return 3 * target_vector / target_vector.norm()

    return Fixed()


def tracked_median(modules: dict[str, ModuleType], seen: Seen) -> Any:
    base_class: Any = modules["length_model"]._FlexibleTrackProjectionLength

    class TrackMedian(base_class):
        def get_length(self, **given: Any) -> Tensor:
            seen.note(given["gradients"], given["losses"])
            return super().get_length(**given)

        def _tracked_value(self, grad_norms: Tensor) -> Tensor:
            return grad_norms.median()

    return TrackMedian()


def twice_the_minimum(modules: dict[str, ModuleType], seen: Seen) -> Any:
    base_class: Any = modules["length_model"].TrackMinimum

    class Twice(base_class):
        def get_length(self, **given: Any) -> Tensor:
            seen.note(given["gradients"], given["losses"])
            return super().get_length(**given)

        def _tracked_value(self, grad_norms: Tensor) -> Tensor:
            return 2 * super()._tracked_value(grad_norms)

    return Twice()


def scaled_oracle(kind: Any, rows: Tensor) -> Tensor:
    norms = rows.double().norm(dim=1)
    projected = reference.config(rows)
    unit = projected / projected.norm()
    along = (rows.double() / norms[:, None] @ unit).sum()
    length = {
        median_length: norms.median(),
        fixed_rescaling: torch.tensor(3.0),
        tracked_median: norms.median() * along,
        twice_the_minimum: 2 * norms.min() * along,
    }[kind]
    return length * unit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("kind", [median_length, fixed_rescaling, tracked_median, twice_the_minimum])
def test_own_lengths(
    kind: Any, m: int, dtype: torch.dtype, base: dict[str, ModuleType], backend: str
) -> None:
    rows, losses, seen = conflicting(m, N, dtype), [1.0] * m, Seen()
    model = kind(base, seen)
    update = ConFIG_update(list(rows), length_model=model, losses=losses)
    seen.check(rows, losses)
    theirs = THEIRS["grad_operator"].ConFIG_update(
        rows, TheirOnes(), kind(THEIRS, seen), use_least_square=False, losses=losses
    )
    exact = scaled_oracle(kind, rows)
    assert update.dtype == dtype
    assert relative_error(theirs, exact) <= peer_bound(rows)
    # the user's own arithmetic on N elements, in the gradients' dtype, comes on top of ours
    own = N * torch.finfo(dtype).eps
    assert relative_error(update, exact) <= max(rounding_bound(rows, exact), 1e-12) + own
    operator = ConFIGOperator(length_model=model)
    assert torch.equal(operator.calculate_gradient(rows, losses), update)


@pytest.mark.parametrize("length", LENGTHS)
def test_their_own_models_are_served(length: str, backend: str) -> None:
    rows = conflicting(3, N)
    update = ConFIG_update(
        rows, THEIRS["weight_model"].EqualWeight(), length_of(THEIRS, length), losses=[1, 2, 3]
    )
    exact = reference.config(rows, length=length, track_id=1)
    own = N * torch.finfo(torch.float32).eps  # the length is their float32 arithmetic
    assert relative_error(update, exact) <= rounding_bound(rows, exact) + own
