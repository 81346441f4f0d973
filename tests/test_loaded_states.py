"""States that are loaded: of another dtype than the gradients, kept as they are, and never written into."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from inputs import conflicting, relative_error
from torch import Tensor

from fastconfig import ConFIGOperator, ProjectionLength, reference, use_backend
from fastconfig.loss_recorder import LatestLossRecorder, LossRecorder, MomentumLossRecorder
from fastconfig.momentum_operator import PseudoMomentumOperator, SeparateMomentumOperator

KINDS = [PseudoMomentumOperator, SeparateMomentumOperator]
ALL = [0, 1, 2]


def lists(rows: Tensor, last: bool = True) -> list[list[Tensor | None]]:
    """Rows of 50 as two parameters, of which the second may have no gradient."""
    return [[row[:30].view(5, 6), row[30:] if last else None] for row in rows]


def joined(update: Any) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in update])


def dtypes(state: dict[str, Any]) -> set[torch.dtype]:
    rows = [
        *state["momenta"],
        *(row for name, row in state.items() if name.startswith(("sec", "fake", "res"))),
    ]
    return {tensor.dtype for row in rows for tensor in row if tensor is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_float64_goes_on_with_float32_gradients(backend: str, kind: Any) -> None:
    """Also where a parameter has its first gradient after the state was loaded."""
    wide = kind(3, dtype=torch.float64)
    for _ in range(4):
        wide.calculate_gradient(ALL, lists(conflicting(3, 50).double(), last=False))
    fresh = kind(3)
    fresh.load_state_dict(wide.state_dict())
    for indexes in ([1], ALL, [2, 0]):
        rows = lists(conflicting(3, 50)[indexes])
        assert torch.equal(
            joined(fresh.calculate_gradient(indexes, rows)), joined(wide.calculate_gradient(indexes, rows))
        )
    assert dtypes(fresh.state_dict()) == {torch.float64}


def test_float64_by_the_oracle(backend: str) -> None:
    exact, first = reference.Momentum(3), PseudoMomentumOperator(3)
    for _ in range(5):
        rows = conflicting(3, 50).double()
        exact.step(ALL, rows)
        first.calculate_gradient(ALL, rows)
    second = PseudoMomentumOperator(3)
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        rows = conflicting(3, 50)
        update, wanted = second.calculate_gradient(ALL, rows), exact.step(ALL, rows)
        assert isinstance(update, Tensor)
        assert update.dtype is torch.float32
        assert relative_error(update * exact.divisor, wanted * exact.divisor) <= 1e-6


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_dtype_is_the_states_unless_it_was_given(dtype: torch.dtype | None) -> None:
    wide, used = PseudoMomentumOperator(3), PseudoMomentumOperator(3, dtype=dtype)
    wide.calculate_gradient(ALL, conflicting(3, 50).double())
    used.calculate_gradient(ALL, conflicting(3, 50))  # float32 until now
    used.load_state_dict(wide.state_dict())
    used.calculate_gradient(ALL, conflicting(3, 50))
    assert dtypes(used.state_dict()) == {dtype or torch.float64}
    used.load_state_dict(PseudoMomentumOperator(3).state_dict())  # an empty one says nothing
    used.calculate_gradient(ALL, conflicting(3, 50).double())
    assert dtypes(used.state_dict()) == {dtype or torch.float64}


def test_half_precision_states_are_widened() -> None:
    first, second = PseudoMomentumOperator(3), PseudoMomentumOperator(3)
    first.calculate_gradient(ALL, conflicting(3, 50))
    state = first.state_dict()
    half = [[tensor.half() for tensor in row] for row in (*state["momenta"], state["second"], state["fake"])]
    second.load_state_dict(state | {"momenta": half[:3], "second": half[3], "fake": half[4]})
    second.calculate_gradient(0, torch.randn(50).half())
    assert dtypes(second.state_dict()) == {torch.float32}
    with pytest.raises(ValueError, match=r"state: got torch.int64 for second, want torch.float32 or"):
        second.load_state_dict(state | {"second": [tensor.long() for tensor in state["second"]]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gram_matrix_is_kept_where_the_momenta_stay_what_they_are(dtype: torch.dtype) -> None:
    m = 9  # from 7 on the products of the momenta that change are taken, and no others
    with use_backend("numba"):
        first = PseudoMomentumOperator(m)
        for indexes in (range(m), [3], [5, 1]):
            first.calculate_gradient(indexes, conflicting(m, 40)[list(indexes)].to(dtype))
        state = first.state_dict()
        assert state["gram"] is not None
        second, cast = PseudoMomentumOperator(m), PseudoMomentumOperator(m, dtype=torch.float32)
        for operator in (second, cast):
            operator.load_state_dict(state)
            operator.allocate(torch.zeros(40, dtype=dtype))  # the next gradient's device and dtype are known
        assert torch.equal(second.state_dict()["gram"], state["gram"])
        assert (cast.state_dict()["gram"] is None) == (dtype is torch.float64)
        row = torch.randn(40, dtype=dtype)
        assert torch.equal(second.calculate_gradient(4, row), first.calculate_gradient(4, row))  # type: ignore[arg-type]


def frozen(value: Any) -> Any:
    """A state as it is now, in numbers."""
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {name: frozen(each) for name, each in value.items()}
    return [frozen(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("recorder", [LatestLossRecorder, MomentumLossRecorder])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_loaded_is_not_written_into(backend: str, kind: Any, recorder: Any) -> None:
    """Nor read again; also of one whose numbers came back as tensors."""

    def stepped(operator: Any) -> Any:
        return operator.calculate_gradient([0, 2], rows[:2], [torch.tensor(0.25), 0.5])

    rows = conflicting(3, 50)
    first, plain = kind(3, loss_recorder=recorder(3)), kind(3, loss_recorder=recorder(3))
    first.calculate_gradient(ALL, rows, list(torch.rand(3)))
    given = copy.deepcopy(first.state_dict())
    given |= {"counts": torch.tensor(given["counts"]), "updates": torch.tensor(given["updates"])}
    recorded = given["loss_recorder"]
    recorded["current_losses"] = torch.stack(recorded["current_losses"])
    if "t" in recorded:
        recorded |= {"t": torch.tensor(recorded["t"]), "m": torch.stack(recorded["m"])}
    before = frozen(given)
    operator = kind(3, loss_recorder=recorder(3))
    operator.load_state_dict(given)
    plain.load_state_dict(first.state_dict())
    assert torch.equal(stepped(operator), stepped(plain))
    assert frozen(given) == before
    wanted = frozen(operator.state_dict())
    for value in (given["counts"], given["updates"], *recorded.values(), *given["momenta"][0]):
        value.fill_(7)
    given["counts"], given["momenta"][1][0] = [], None
    assert frozen(operator.state_dict()) == wanted


def test_recorders_keep_values_of_their_own() -> None:
    recorders: list[LossRecorder] = [LatestLossRecorder(2), MomentumLossRecorder(2)]
    for recorder in recorders:
        loss = torch.tensor(0.5)
        recorder.record_loss(0, loss)
        state = recorder.state_dict()
        loss.fill_(3.0)  # as a captured graph does with its outputs
        assert float(recorder.current_losses[0]) == 0.5
        recorder.record_all_losses([1.0, 2.0])
        assert float(state["current_losses"][0]) == 0.5


@pytest.mark.parametrize("given", ["vectors", "lists"])
def test_memory_that_moves_under_the_states_tensors(given: str) -> None:
    """As it does where they are sent to another process: to a block that both have."""
    with use_backend("numba"):
        rows = conflicting(3, 50)
        grads: Any = rows if given == "vectors" else lists(rows)
        operator, other = PseudoMomentumOperator(3), PseudoMomentumOperator(3)
        for _ in range(2):
            for each in (operator, other):
                each.calculate_gradient(ALL, grads)
        for row in operator.state_dict()["momenta"]:
            for tensor in row:
                tensor.share_memory_()
        for _ in range(2):
            updates = [each.calculate_gradient(ALL, grads) for each in (operator, other)]
            assert str(updates[0]) == str(updates[1])


def test_a_model_of_the_users_and_the_gradients_own_cutoff(backend: str) -> None:
    """Rows that bfloat16 cannot tell apart are duplicates, though the state is in float32."""
    seen = []

    class Own(ProjectionLength):
        def get_length(self, target_vector: Any = None, **given: Any) -> Any:
            seen.append(target_vector)
            return super().get_length(target_vector, **given)

    rows = conflicting(3, 2000).bfloat16()
    rows[1] = rows[0]
    rows[1, :40] *= 1 + 2**-7  # one unit in the last place
    operator = PseudoMomentumOperator(3, gradient_operator=ConFIGOperator(length_model=Own()))
    operator.calculate_gradient(ALL, rows)
    wanted = reference.config(rows)
    found = seen[0].double()
    assert relative_error(found / found.norm(), wanted / wanted.norm()) <= 1e-4
    assert operator.gradient_operator.rcond is None  # type: ignore[attr-defined]
