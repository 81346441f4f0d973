"""Weight and length models: values, checks, and a user's own on every form of input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inputs import LENGTH_MODELS, relative_error, rounding_bound
from peer import conflicting
from torch import Tensor

from fastconfig import (
    ConFIG_update,
    ConFIG_update_double,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    reference,
)
from fastconfig.length_model import LengthModel, ProjectionLength, TrackMinimum, TrackSpecific
from fastconfig.weight_model import EqualWeight, WeightModel

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
N = 501


class Given(WeightModel):
    """The weights that it was made with."""

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self.weights = weights

    def get_weights(self, gradients: Any = None, losses: Any = None) -> Any:
        return self.weights


class Longest(LengthModel):
    """A user's own length model: the length of the longest gradient."""

    def get_length(
        self,
        target_vector: Any = None,
        unit_target_vector: Any = None,
        gradients: Any = None,
        losses: Any = None,
    ) -> Tensor | float:
        return torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64).max()


class LongestAsFloat(Longest):
    def get_length(self, **given: Any) -> float:
        return float(super().get_length(**given))


def longest(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    exact = reference.config(rows, weights)
    return exact / exact.norm() * rows.double().norm(dim=1).max()


def own_bound(rows: Tensor, exact: Tensor) -> float:
    """Ours, and a direction, a unit vector and a product that are each rounded to the dtype."""
    return rounding_bound(rows, exact) + 3 * torch.finfo(rows.dtype).eps


# Weights.


@pytest.mark.parametrize("m", [1, 2, 3, 8])
@pytest.mark.parametrize("length", LENGTH_MODELS)
def test_weights(m: int, length: str, backend: str) -> None:
    rows, weights = conflicting(m, N), torch.rand(m, dtype=torch.float64) + 0.1
    exact = reference.config(rows, weights, length, track_id=-1)
    update = ConFIG_update(rows, Given(weights), LENGTH_MODELS[length])
    assert relative_error(update, exact) <= rounding_bound(rows, exact)


def test_projections_are_in_the_ratio_of_the_weights(backend: str) -> None:
    rows, weights = conflicting(4, N, torch.float64), torch.tensor([1.0, 0.5, 3.0, -2.0]).double()
    update = ConFIG_update(rows, Given(weights))
    ratios = (rows / rows.norm(dim=1, keepdim=True)) @ update / weights
    assert torch.isfinite(ratios).all()
    assert (ratios - ratios.mean()).abs().max() <= 1e-12 * update.norm()


@pytest.mark.parametrize(
    "weights", [[1, 2, 3], torch.tensor([1, 2, 3]), torch.tensor([1.0, 2, 3]).bfloat16()]
)
def test_weights_may_be_anything_that_becomes_a_tensor(weights: Any, backend: str) -> None:
    rows = conflicting(3, N)
    wanted = ConFIG_update(rows, Given(torch.tensor([1.0, 2.0, 3.0])))
    assert torch.isfinite(wanted).all()
    assert torch.equal(ConFIG_update(rows, Given(weights)), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_weights_are_ones_of_the_gradients_dtype(dtype: torch.dtype) -> None:
    weights = EqualWeight().get_weights(torch.randn(3, 5).to(dtype))
    assert weights.dtype == dtype
    assert weights.tolist() == [1, 1, 1]


def test_equal_weights_want_gradients() -> None:
    with pytest.raises(ValueError, match=r"gradients: got None, want the \(m, N\) gradients"):
        EqualWeight().get_weights(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_wrong_number_of_weights(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weights: got shape .* from Given.*want \(3,\)"):
        ConFIG_update(torch.randn(3, 5), Given(torch.ones(shape)))


def test_base_models_say_that_they_must_be_overridden() -> None:
    with pytest.raises(NotImplementedError):
        ConFIG_update(torch.randn(3, 5), WeightModel())
    with pytest.raises(NotImplementedError):
        ConFIG_update(torch.randn(3, 5), length_model=LengthModel())


def test_weights_are_asked_for_without_recording_a_graph() -> None:
    class Learned(WeightModel):
        def __init__(self) -> None:
            self.parameter = torch.nn.Parameter(torch.ones(3))

        def get_weights(self, gradients: Any = None, losses: Any = None) -> Tensor:
            self.parameter += 1  # refused where a graph is recorded
            return self.parameter

    model = Learned()
    assert not ConFIG_update(torch.randn(3, 5), model).requires_grad
    assert model.parameter.tolist() == [2, 2, 2]


def test_methods_put_on_an_instance_are_used(backend: str) -> None:
    rows = conflicting(3, N)
    weights, length = EqualWeight(), ProjectionLength()
    weights.get_weights = Given([1.0, 2.0, 3.0]).get_weights  # type: ignore[method-assign]
    length.get_length = Longest().get_length  # type: ignore[method-assign,assignment]
    exact = longest(rows, torch.tensor([1.0, 2.0, 3.0]))
    assert relative_error(ConFIG_update(rows, weights, length), exact) <= own_bound(rows, exact)


# Losses.


@pytest.mark.parametrize("operator", [ConFIGOperator(), PCGradOperator(), PPCGradOperator(), IMTLGOperator()])
def test_wrong_number_of_losses_writes_nothing(operator: Any) -> None:
    network = torch.nn.Linear(2, 2)
    network(torch.ones(2)).sum().backward()
    before = [par.grad.clone() for par in network.parameters()]
    with pytest.raises(ValueError, match="losses: got 2, want 3"):
        operator.update_gradient(network, torch.randn(3, 6), [1.0, 2.0])
    for par, grad in zip(network.parameters(), before, strict=True):
        assert torch.equal(par.grad, grad)
    with pytest.raises(ValueError, match="losses: got 4, want 3"):
        operator.calculate_gradient(torch.randn(3, 6), torch.ones(4))
    with pytest.raises(TypeError, match="losses: got a float without length, want"):
        operator.calculate_gradient(torch.randn(3, 6), 1.0)


def test_wrong_number_of_losses_for_the_functions() -> None:
    with pytest.raises(ValueError, match="losses: got 1, want 2"):
        ConFIG_update_double(torch.randn(5), torch.randn(5), losses=[1.0])
    with pytest.raises(ValueError, match="losses: got 3, want 2"):
        ConFIG_update(torch.randn(2, 5), losses=[1.0, 2.0, 3.0])


# Lengths.


def formula(length: str, rows: Tensor, target: Tensor, track_id: int = -1) -> tuple[Tensor, Tensor]:
    """sum_i l_i cos(g_i, u) in float64, and sum_i l_i: what its terms add up to at most."""
    full, unit = rows.double(), target.double() / target.double().norm()
    norms = full.norm(dim=1)
    alive = norms[norms > 0]
    lengths = {
        "projection": norms,
        "minimum": alive.min(),
        "maximum": alive.max(),
        "harmonic": len(alive) / (1 / alive).sum(),
        "arithmetic": alive.mean(),
        "geometric": alive.prod() ** (1 / len(alive)),
        "specific": norms[track_id],
    }[length].expand(len(norms))
    cosines = torch.where(norms > 0, full @ unit / norms, 0)
    return (lengths * cosines).sum(), lengths.sum()


@pytest.mark.parametrize("zeros", [[], [1]])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTH_MODELS)
def test_get_length(length: str, dtype: torch.dtype, zeros: list[int], backend: str) -> None:
    rows, target = conflicting(4, N, dtype), torch.randn(N).to(dtype)
    rows[zeros] = 0
    exact, terms = formula(length, rows, target)
    model = LENGTH_MODELS[length]
    got = model.get_length(target_vector=target, gradients=rows)
    assert got.dtype == dtype
    assert got.shape == ()
    assert torch.isfinite(got)
    # N products in float64, rounded once to the dtype of the gradients
    bound = N * 2.3e-16 * terms + torch.finfo(dtype).eps * exact.abs()
    assert abs(got.double() - exact) <= bound
    assert torch.equal(model.get_length(target_vector=target, gradients=list(rows)), got)


@pytest.mark.parametrize("length", LENGTH_MODELS)
def test_get_length_along_a_unit_vector(length: str, backend: str) -> None:
    rows, target = conflicting(3, N), torch.randn(N)
    unit = target / target.norm()
    exact, terms = formula(length, rows, unit)
    for given in ({}, {"target_vector": 7 * target}):
        got = LENGTH_MODELS[length].get_length(unit_target_vector=unit, gradients=rows, **given)
        assert torch.isfinite(got)
        assert abs(got.double() - exact) <= torch.finfo(torch.float32).eps * terms


@pytest.mark.parametrize("length", LENGTH_MODELS)
def test_get_length_of_zero_vectors(length: str, backend: str) -> None:
    model, zero = LENGTH_MODELS[length], torch.zeros(N)
    assert model.get_length(target_vector=zero, gradients=torch.randn(3, N)) == 0
    assert model.get_length(target_vector=torch.randn(N), gradients=torch.zeros(3, N)) == 0


@pytest.mark.parametrize("length", LENGTH_MODELS)
def test_get_length_says_what_it_wants(length: str) -> None:
    with pytest.raises(ValueError, match="gradients: got None, want"):
        LENGTH_MODELS[length].get_length(target_vector=torch.ones(5))
    with pytest.raises(ValueError, match="target_vector: got None"):
        LENGTH_MODELS[length].get_length(gradients=torch.ones(2, 5))


@pytest.mark.parametrize("track_id", [-4, 3, 7])
def test_track_specific_out_of_range(track_id: int) -> None:
    rows = torch.randn(3, 5)
    with pytest.raises(ValueError, match=rf"track_id: got {track_id}, want -3\.\.2"):
        ConFIG_update(rows, length_model=TrackSpecific(track_id))
    with pytest.raises(ValueError, match=rf"track_id: got {track_id}, want -3\.\.2"):
        TrackSpecific(track_id).get_length(target_vector=rows[0], gradients=rows)


@pytest.mark.parametrize("track_id", [-3, -1, 0, 2])
def test_track_specific(track_id: int, backend: str) -> None:
    rows = conflicting(3, N)
    exact = reference.config(rows, length="specific", track_id=track_id)
    update = ConFIG_update(rows, length_model=TrackSpecific(track_id))
    assert relative_error(update, exact) <= rounding_bound(rows, exact)


@pytest.mark.parametrize("model", [*LENGTH_MODELS.values(), Longest(), LongestAsFloat()])
def test_rescale_length(model: LengthModel, backend: str) -> None:
    rows, target = conflicting(3, N), torch.randn(N)
    length = model.get_length(target_vector=target, gradients=rows)
    wanted = length * (target.double() / target.double().norm())
    scaled = model.rescale_length(target, rows)
    # unit vector, length and product are each rounded once; the unit vector's rounding also reaches
    # the length, whose terms add up to at most 3 max |g_i|
    eps = torch.finfo(torch.float32).eps
    assert torch.isfinite(scaled).all()
    assert (scaled - wanted).norm() <= 3 * eps * (abs(length) + rows.norm(dim=1).max())
    zero = model.rescale_length(torch.zeros(N), rows)
    assert zero.shape == (N,)
    assert not zero.any()


# A user's own models, on the vectors, for every form of input.

OWN: list[LengthModel] = [Longest(), LongestAsFloat()]


@pytest.mark.parametrize("model", OWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_own_models_on_tensor_and_vectors(model: LengthModel, dtype: torch.dtype, backend: str) -> None:
    rows, weights = conflicting(3, N, dtype), torch.tensor([1.0, 2.0, 0.5])
    exact = longest(rows, weights)
    for grads in (rows, list(rows), rows.T.contiguous().T):
        update = ConFIG_update(grads, Given(weights), model)
        assert update.dtype == dtype
        assert relative_error(update, exact) <= own_bound(rows, exact)


@pytest.mark.parametrize("losses", [None, [1.0, 2.0, 3.0]])
def test_own_models_on_per_parameter_lists(losses: list[float] | None, backend: str) -> None:
    class Checked(Longest):
        def get_length(self, **given: Any) -> Tensor | float:
            assert given["gradients"].shape == (3, 24)
            assert given["losses"] is losses
            return super().get_length(**given)

    shapes = [(2, 3), (4,), (), (1, 2, 5), (3,)]
    grads: list[list[Tensor | None]] = [[torch.randn(s) for s in shapes] for _ in range(3)]
    grads[0][1] = grads[2][3] = None  # counts as zeros
    for row in grads:
        row.append(None)  # no loss has a gradient for this one
    rows = torch.stack(
        [
            torch.cat([(torch.zeros(s) if t is None else t).reshape(-1) for s, t in pairs])
            for pairs in (list(zip(shapes, row, strict=False)) for row in grads)
        ]
    )
    weights = torch.tensor([1.0, 2.0, 0.5])
    update = ConFIG_update(grads, Given(weights), Checked(), losses=losses)
    assert [None if t is None else tuple(t.shape) for t in update] == [*shapes, None]
    joined = torch.cat([t.reshape(-1) for t in update if t is not None])
    exact = longest(rows, weights)
    assert relative_error(joined, exact) <= own_bound(rows, exact)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_own_models_see_and_return_the_logical_order(memory: Any, backend: str) -> None:
    grads = [[torch.randn(2, 3, 4, 5).contiguous(memory_format=memory), torch.randn(7)] for _ in range(3)]
    rows = torch.stack([torch.cat([t.reshape(-1) for t in row]) for row in grads])
    direction = reference.config(rows)

    class Counted(LengthModel):
        def rescale_length(self, target_vector: Tensor, gradients: Any = None, losses: Any = None) -> Tensor:
            assert torch.equal(gradients, rows)
            unit = target_vector / target_vector.norm()
            assert relative_error(unit, direction / direction.norm()) <= own_bound(rows, direction)
            return torch.arange(127, dtype=torch.float64)  # answered in the gradients' dtype

    update = ConFIG_update(grads, length_model=Counted())
    assert [t.dtype for t in update] == [torch.float32] * 2
    assert [tuple(t.shape) for t in update] == [(2, 3, 4, 5), (7,)]
    assert torch.cat([t.reshape(-1) for t in update]).tolist() == list(range(127))


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5])])
@pytest.mark.parametrize("model", [ProjectionLength(), TrackMinimum(), Longest()])
def test_own_models_on_a_batch(model: LengthModel, weights: Tensor | None, backend: str) -> None:
    batch = torch.stack([conflicting(3, N) for _ in range(4)])

    class Checked(Given):
        def get_weights(self, gradients: Any = None, losses: Any = None) -> Any:
            assert gradients.shape == (3, N)  # one problem: what it was written for
            return super().get_weights(gradients, losses)

    weight_model = EqualWeight() if weights is None else Checked(weights)
    update = ConFIG_update(batch, weight_model, model)
    assert update.shape == (4, N)
    for rows, got in zip(batch, update, strict=True):
        exact = reference.config(
            rows, weights, "minimum" if isinstance(model, TrackMinimum) else "projection"
        )
        if isinstance(model, Longest):
            exact = longest(rows, weights)
        assert relative_error(got, exact) <= own_bound(rows, exact)


def test_own_models_on_an_empty_batch() -> None:
    update = ConFIG_update(torch.empty(0, 3, N), length_model=Longest())
    assert update.shape == (0, N)


def test_own_length_of_opposed_gradients_is_zero(backend: str) -> None:
    row = torch.randn(N)
    assert not ConFIG_update([row, -row], length_model=Longest()).any()


def test_own_models_get_gradients_without_a_graph() -> None:
    class Checked(Longest):
        def get_length(self, **given: Any) -> Tensor | float:
            assert not given["gradients"].requires_grad
            assert not torch.is_grad_enabled()
            return super().get_length(**given)

    rows = conflicting(3, N).requires_grad_()
    assert not ConFIG_update(rows, length_model=Checked()).requires_grad
