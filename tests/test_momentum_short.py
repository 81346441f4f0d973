"""Momentum steps of short vectors on the CPU in one compiled call: the bits of the way that checks all."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from inputs import conflicting, in_one_call
from pairs import cases
from peer import THEIRS
from schedules import Long, Own, count_on_every_device, same_step, several, state
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastconfig import IMTLGOperator, PCGradOperator, PPCGradOperator, backends, use_backend
from fastconfig.backends.team import ALONE, threads_for
from fastconfig.config_update import PLAIN
from fastconfig.gradients.results import KEPT_FROM
from fastconfig.loss_recorder import LatestLossRecorder
from fastconfig.momentum_operator import PseudoMomentumOperator
from fastconfig.numbers import DTYPES

numba_momentum = pytest.importorskip("fastconfig.backends.numba_momentum")
keep = numba_momentum._C.keep_step_kernels
pytestmark = in_one_call
ALL = [0, 1, 2]
WIDE = [None, torch.float64]  # of the state


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Which steps were one compiled call, of those that a state was ready for."""
    found: list[bool] = []

    def noted(*arguments: Any) -> Tensor | None:
        update: Any = backends.short_step(*arguments)
        found.append(update is not None)
        return update

    monkeypatch.setattr("fastconfig.momentum_operator.short_step", noted)
    with use_backend("numba"):
        yield found


def pair(m: int = 3, n: int = 50, rows_of: torch.dtype = torch.float32, **given: Any) -> list[Any]:
    """Two operators with the same state, of which one goes the long way; the other knows the short one."""
    operators = [PseudoMomentumOperator(m, **given), Long(m, **given)]
    rows = list(conflicting(m, n).to(rows_of))
    for operator in operators:
        for _ in range(2):  # vectors are known to fit from the first step of theirs on
            operator.calculate_gradient(range(m), rows)
    return operators


def short(dtype: torch.dtype, steps: int) -> list[bool]:
    """What ``taken`` has after steps by gradients of a dtype: nothing where kernels cannot convert it."""
    known = numba_momentum.ir_numba.unsupported(numba_momentum.KINDS[dtype]) is None
    return [True] * steps if known else []


def forms(indexes: list[int], rows: Tensor) -> Iterator[tuple[Any, Any]]:
    """Indexes and gradients as they may be given."""
    each = [torch.nn.Parameter(row) if k % 2 else row for k, row in enumerate(rows)]
    yield indexes, each
    yield tuple(indexes), tuple(each)
    if len(indexes) == 1:
        yield indexes[0], rows[0]
        yield indexes[0], [rows[0]]
        yield indexes, rows[0]


@pytest.mark.parametrize(("m", "n", "dtype", "wide"), cases([1, 3, 9, 17], [1, 7, 1031], DTYPES, WIDE))
def test_the_bits_of_the_long_way(
    taken: list[bool], m: int, n: int, dtype: torch.dtype, wide: torch.dtype | None
) -> None:
    operators = pair(m, n, dtype, dtype=wide)
    taken.clear()
    schedule = list(several(m, 12)) + [[int(torch.randint(m, ()))] for _ in range(4)]
    for indexes in schedule:
        rows = conflicting(m, n)[indexes].to(dtype)
        given = list(forms(indexes, rows))
        same_step(operators, *given[int(torch.randint(len(given), ()))])
    assert taken == short(dtype, 16)


def test_every_form(taken: list[bool]) -> None:
    operators = pair(4)
    taken.clear()
    for indexes in ([2], [3, 0, 1]):
        for given in forms(indexes, conflicting(4, 50)[indexes]):
            assert not same_step(operators, *given).requires_grad
    assert taken == [True] * 7
    assert backends.last_backend() == "numba"


@pytest.mark.parametrize(
    "make", [PCGradOperator, lambda: PPCGradOperator(reduction="mean"), lambda: IMTLGOperator(rcond=0.3)]
)
def test_other_rules(taken: list[bool], make: Callable[[], Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        operators = pair(5, 40, dtype, gradient_operator=make())
        taken.clear()
        for indexes in several(5, 10):
            same_step(operators, indexes, list(conflicting(5, 40)[indexes].to(dtype)))
        assert taken == short(dtype, 10)


@pytest.mark.parametrize("wide", WIDE)
def test_the_rank_is_that_of_the_gradients_dtype(taken: list[bool], wide: torch.dtype | None) -> None:
    """Rows that bfloat16 cannot tell apart, in a state that could."""
    rows = conflicting(3, 2000).bfloat16()
    rows[1] = rows[0]
    rows[1, :40] *= 1 + 2**-7  # one unit in the last place
    operators = [PseudoMomentumOperator(3, dtype=wide), Long(3, dtype=wide)]
    for _ in range(4):
        same_step(operators, ALL, list(rows))
    assert taken == short(torch.bfloat16, 3)


def test_on_one_thread_and_several_up_to_results_that_are_kept(taken: list[bool]) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for n, short in (
                (ALONE // 8 - 1, True),
                (ALONE // 8, True),
                ((KEPT_FROM - 1) // 4, True),
                (KEPT_FROM // 4, False),
            ):
                operators = pair(2, n)
                taken.clear()
                for index in (0, 1, 0):
                    same_step(operators, index, torch.randn(n))
                assert taken == [short] * 3
    finally:
        torch.set_num_threads(before)


def test_the_first_steps_go_the_long_way(taken: list[bool]) -> None:
    """Until every gradient has come, and one step more."""
    operators = [PseudoMomentumOperator(3), Long(3)]
    for k in range(7):
        same_step(operators, k % 3, torch.randn(20))
    assert taken == [True] * 4


def test_among_all_other_steps(taken: list[bool]) -> None:
    """Short and long ones in any order, by changing operators and backends."""
    operators = pair(8)
    taken.clear()
    own, config = Own(), operators[0].gradient_operator
    for k in range(60):
        indexes = next(several(8, 1))
        rows = conflicting(8, 50)[indexes]
        given: Any = [rows, list(rows), list(rows.repeat_interleave(2, 1)[:, ::2]), list(rows)][k % 4]
        for operator in operators:
            operator.gradient_operator = own if k % 11 == 10 else config
        with use_backend("pytorch" if k % 13 == 12 else "numba"):
            same_step(operators, np.array(indexes) if k % 7 == 6 else indexes, given)
    assert 10 < sum(taken) < 40


VECTOR = torch.ones(50)
ELSE: dict[str, tuple[Any, Any]] = {
    "no index": ([], []),
    "a flag": (True, VECTOR),
    "a flag among them": ([0, True], [VECTOR, VECTOR]),
    "a fraction": (0.5, VECTOR),
    "NumPy's": (np.int64(1), VECTOR),
    "a range": (range(2), [VECTOR, VECTOR]),
    "a set": ({0, 1}, [VECTOR, VECTOR]),
    "above": (3, VECTOR),
    "below": (-1, VECTOR),
    "huge": (1 << 70, VECTOR),
    "twice": ([1, 1], [VECTOR, VECTOR]),
    "one too many": ([0], [VECTOR, VECTOR]),
    "one too few": ([0, 1], [VECTOR]),
    "one for two": ([0, 1], VECTOR),
    "none": (0, None),
    "none of them": ([0, 1], [VECTOR, None]),
    "a number": (0, 3.0),
    "a tensor of two": ([0, 1], torch.ones(2, 50)),
    "a batch": ([0, 1], torch.ones(2, 1, 50)),
    "per parameter": (0, [[VECTOR]]),
    "longer": (0, torch.ones(51)),
    "shorter": ([0, 1], [VECTOR, torch.ones(49)]),
    "empty": (0, torch.ones(0)),
    "a scalar": (0, torch.ones(())),
    "a matrix": (0, [torch.ones(5, 10)]),
    "strided": (0, torch.ones(100)[::2]),
    "two dtypes": ([0, 1], [VECTOR, VECTOR.double()]),
    "a dtype that is new here": (0, VECTOR.double()),
    "integers": (0, VECTOR.int()),
    "meta": (0, torch.ones(50, device="meta")),
    "sparse": (0, VECTOR.to_sparse()),
    "negative": (0, torch.ones(50, dtype=torch.complex64).conj().imag),
    "complex": (0, torch.ones(50, dtype=torch.complex64)),
}


@pytest.mark.parametrize("case", ELSE)
def test_anything_else_goes_the_long_way(case: str) -> None:
    operators = pair()
    before = state(operators[0])
    keep(0, 1, *[0] * 9)  # as before the first of this dtype
    assert backends.short_step(operators[0]._momenta.plain, *ELSE[case], PLAIN) is None
    assert state(operators[0]) == before
    answers = []
    for operator in operators:
        try:
            answers.append(str(operator.calculate_gradient(*ELSE[case])))
        except (TypeError, ValueError) as error:
            answers.append(str(error))
            assert answers[-1].startswith(("indexes: got", "grads"))
            assert state(operator) == before
    assert answers[0] == answers[1]
    assert state(operators[0]) == state(operators[1])


def test_another_kind_of_state_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = pair()[0]
    with use_backend("pytorch"):
        assert backends.short_step(complete._momenta.plain, 0, VECTOR, PLAIN) is None
        complete.calculate_gradient(0, VECTOR)
    assert complete._momenta.plain is None  # nobody knows the products
    parameters = PseudoMomentumOperator(2)
    for _ in range(3):
        parameters.calculate_gradient([0, 1], [[VECTOR], [VECTOR]])
    assert parameters._momenta.plain is None
    pairs = PseudoMomentumOperator(1)
    for _ in range(3):
        pairs.calculate_gradient(0, [torch.ones(25, dtype=torch.complex64)])
    assert pairs._momenta.plain is None
    group: Any = pair()[0]
    before = group._momenta.plain
    group.process_group = object()
    assert group._short_step(0, VECTOR) is None
    assert before is not None
    count_on_every_device(monkeypatch)
    assert pair()[0]._momenta.plain is None


def test_losses_are_looked_at(taken: list[bool]) -> None:
    operators = pair()
    with pytest.raises(ValueError, match="losses: got losses, but the operator has no loss_recorder"):
        operators[0].calculate_gradient(0, VECTOR, 1.0)
    operators = pair(loss_recorder=LatestLossRecorder(3))
    taken.clear()
    same_step(operators, 0, VECTOR, 2.0)
    assert not taken
    assert operators[0].loss_recorder.current_losses[0] == 2.0
    same_step(operators, 0, VECTOR)
    assert taken == [True]


def test_whoever_looks_on_sees_torchs_operations() -> None:
    operators = pair()
    with FlopCounterMode(display=False):
        assert backends.short_step(operators[0]._momenta.plain, 0, VECTOR, PLAIN) is None
        same_step(operators, 0, VECTOR)


COPIES: list[Callable[[Any], Any]] = [
    copy.deepcopy,
    lambda held: pickle.loads(pickle.dumps(held)),
    lambda held: loaded(held),
]


def loaded(held: Any, **given: Any) -> Any:
    twin = type(held)(held.num_vectors, **given)
    twin.calculate_gradient(0, torch.ones(50))  # has a state already
    twin.load_state_dict(held.state_dict())
    return twin


@pytest.mark.parametrize("duplicate", COPIES, ids=["deepcopy", "pickle", "load_state_dict"])
@pytest.mark.parametrize("m", [3, 9])
def test_a_copy_goes_its_own_way(taken: list[bool], duplicate: Any, m: int) -> None:
    operators = pair(m)
    same_step(operators, 0, torch.randn(50))
    twins = [duplicate(operator) for operator in operators]
    for k in range(4):
        before = state(twins[0])
        same_step(operators, k % m, torch.randn(50))
        assert state(twins[0]) == before
        before = state(operators[0])
        same_step(twins, (k + 1) % m, torch.randn(50))
        assert state(operators[0]) == before
    assert taken[-2:] == [True, True]


@pytest.mark.parametrize("dtype", WIDE)
def test_a_state_that_is_loaded_again(taken: list[bool], dtype: torch.dtype | None) -> None:
    """Over one that short steps know, of the same or of another dtype."""
    operators = pair(9)
    other = pair(9, dtype=torch.float64 if dtype is None else None)[0]
    operators = [loaded(operator, dtype=dtype) for operator in operators]
    for k in range(3):
        same_step(operators, k, torch.randn(50))
    for operator in operators:
        operator.load_state_dict(other.state_dict())
    for k in range(3):
        same_step(operators, k, torch.randn(50))
    assert taken[-1]


def test_memory_that_moves_under_the_state() -> None:
    """As where a tensor is sent to another process."""
    operators = pair()
    for operator in operators:
        known = operator.state_dict()
        for tensor in (known["momenta"][1][0], known["second"][0], known["gram"]):
            tensor.share_memory_()
    for k in range(3):
        same_step(operators, k, torch.randn(50))


def test_attributes_of_conflictfree_are_taken_over() -> None:
    theirs = THEIRS["momentum_operator"].PseudoMomentumOperator(3)
    theirs.calculate_gradient(ALL, list(conflicting(3, 50)))
    operators = pair()
    for operator in operators:
        for name in ("m", "s", "fake_m", "t", "t_grads"):
            setattr(operator, name, copy.deepcopy(vars(theirs)[name]))
    same_step(operators, 1, torch.randn(50))
    assert operators[0].state_dict()["counts"] == [1, 2, 1]


def test_a_broken_gradient_stays_in_the_state() -> None:
    operators = pair()
    for k in range(3):
        row = torch.randn(50)
        row[7] = torch.inf if k else torch.nan
        assert same_step(operators, 0, row).isnan().all()


def test_no_reference_is_lost_or_kept() -> None:
    operator = pair()[0]
    rows, indexes = [torch.randn(50) for _ in range(2)], [1000, 2]
    plain = operator._momenta.plain
    held = [rows, *rows, indexes, plain[0], *plain[0], plain[1], plain[2]]
    before = [sys.getrefcount(thing) for thing in held]
    for _ in range(50):
        assert backends.short_step(plain, [0, 2], rows, PLAIN) is not None
        assert backends.short_step(plain, indexes, rows, PLAIN) is None
        assert backends.short_step(plain, [0, 2], [rows[0], None], PLAIN) is None
    assert [sys.getrefcount(thing) for thing in held] == before
    update, like = backends.short_step(plain, 0, rows[0], PLAIN), torch.ones(1)
    assert sys.getrefcount(update) == sys.getrefcount(like)


def test_a_result_that_cannot_be_made_leaves_the_state() -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    operator = pair(2, ALONE // 8)[0]
    before, vector = state(operator), torch.ones(ALONE // 8)
    _, team, _, *passes = numba_momentum._entries(torch.float32, torch.float32)
    rest = (numba_momentum.momentum_address(), team, *passes, 4, ALONE, KEPT_FROM - 1)
    for makes in ((fail, threads_for), (torch.empty_like, fail)):
        keep(0, 0, *makes, *rest)
        with pytest.raises(MemoryError, match="no room"):
            operator.calculate_gradient(0, vector)
        assert state(operator) == before
    keep(0, 0, torch.empty_like, threads_for, *rest)
    assert torch.isfinite(operator.calculate_gradient(0, vector)).all()
    with pytest.raises(TypeError, match="two kinds"):
        keep(2, 0, torch.empty_like, threads_for, *rest)


def test_a_list_that_changes_meanwhile() -> None:
    """Its tensors are held while the kernel runs without the GIL."""
    rows = [torch.randn(2000) for _ in range(8)]
    operators = pair(8, 2000)
    stop: list[bool] = []

    def swap() -> None:
        while not stop:
            rows[:] = [row.clone() for row in rows]

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        for _ in range(200):
            operators[0].calculate_gradient(range(8), rows)
            operators[0].calculate_gradient(list(range(8)), rows)
            operators[1].calculate_gradient(range(8), list(rows))
            operators[1].calculate_gradient(range(8), list(rows))
        stop.append(True)
        swapping.result()
    assert state(operators[0]) == state(operators[1])
