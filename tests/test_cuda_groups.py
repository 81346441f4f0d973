"""Groups of parameters by the CUDA kernels, on a GPU or emulated: each group as if it were alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import emulated
import pytest
import torch
from emulated import ROOT
from grouping import (
    MAKERS,
    SHAPES,
    WAYS,
    assert_written,
    by_backward,
    by_lists,
    by_vectors,
    drawn,
    exact,
    grouped,
    network,
    source,
)
from inputs import LENGTH_MODELS, half_bound, in_one_call, relative_error, rounding_bound
from pairs import slow, some
from schedules import count_on_every_device
from torch import Tensor

from fastconfig import (
    ConFIGOperator,
    GramOperator,
    PCGradOperator,
    PPCGradOperator,
    PseudoMomentumOperator,
    backends,
    reference,
    use_backend,
)
from fastconfig.gradients import Gradients
from fastconfig.methods import RULES, ConFIG
from fastconfig.methods.groups import Group, among

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# of one element, of none, off multiples of 16 bytes, around chunks; that of 9001 takes several blocks
SIZES = (9001, 1, 256, 0, 7, 1023, 1025, 300, 3, 64)
GROUPS = ([3], [0], [2, 7], [1], [4, 8], [9, 5, 6])
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the CUDA backend; also when it is emulated, the device counts the steps."""
    emulated.serve_here(monkeypatch)
    if not ON_GPU:
        count_on_every_device(monkeypatch)
    with use_backend("cuda"):
        yield


def on_device(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [[None if t is None else t.to(DEVICE) for t in row] for row in rows]


def pieces(m: int, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Rows of which those of an odd length lie off multiples of 16 bytes, behind NaN."""
    return [
        [torch.cat([torch.full((n % 2,), torch.nan), torch.randn(n)]).to(dtype)[n % 2 :] for n in SIZES]
        for _ in range(m)
    ]


def merged(operator: Any, rows: Any, groups: Sequence[list[int]] = GROUPS) -> list[Any]:
    operator.groups = "parameter"
    with among([Group(str(k), places) for k, places in enumerate(groups)]):
        return [None if t is None else t.cpu() for t in operator.calculate_gradient(on_device(rows))]


def of_group(rows: Sequence[Sequence[Tensor]], places: list[int]) -> Tensor:
    return torch.stack([torch.cat([row[p].reshape(-1) for p in places]) for row in rows])


def check(rows: list[list[Tensor]], update: list[Tensor], oracle: Callable[[Tensor], Tensor]) -> None:
    """The bounds of a call without groups, for groups with more elements than gradients."""
    for places in GROUPS:
        full = of_group(rows, places)
        if full.shape[1] < 4 * len(rows):
            continue
        found, exact = torch.cat([update[p] for p in places]), oracle(full)
        bound = 1e-12 if full.dtype is torch.float64 else rounding_bound(full, exact)
        if full.dtype.itemsize == 2:
            bound = half_bound(exact, full.dtype)
        assert relative_error(found, exact) <= bound, places


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 2, 3, 8, 9, 17, *(pytest.param(m, marks=slow) for m in (4, 5, 16, 40, 64))])
def test_as_the_oracle(m: int, dtype: torch.dtype) -> None:
    rows = pieces(m, dtype)
    check(rows, merged(ConFIGOperator(), rows), reference.config)
    update = merged(PPCGradOperator(), rows)
    for places in GROUPS:  # nothing is solved for: of any size
        full = of_group(rows, places).double()
        exact, found = reference.ppcgrad(full), torch.cat([update[p] for p in places]).double()
        sums = 1e-14 * m * full.norm(dim=1).sum()  # |u| is at most m sum_i |g_i|
        rounding = torch.finfo(dtype).eps * exact.norm() + torch.finfo(dtype).tiny * full.shape[1]
        assert (found - exact).norm() <= sums + rounding, places


@pytest.mark.parametrize("length", LENGTH_MODELS)
def test_lengths(length: str) -> None:
    rows = pieces(3)
    update = merged(ConFIGOperator(length_model=LENGTH_MODELS[length]), rows)
    check(rows, update, lambda full: reference.config(full, length=length, track_id=-1))


@pytest.mark.parametrize("m", [3, 9, 20])
def test_an_order_for_each_group(m: int) -> None:
    """The rules differ in their tensors."""
    rows = pieces(m, torch.float64)
    update = merged(PCGradOperator(shuffle=True, generator=source()), rows)
    twin = PCGradOperator(shuffle=True, generator=source())
    orders = [twin.random_order((m,), False) for _ in GROUPS]
    for places, order in zip(GROUPS, orders, strict=True):
        check_one = of_group(rows, places)
        if check_one.shape[1] >= 4 * m:
            wanted = reference.pcgrad(check_one, order=order)
            assert relative_error(torch.cat([update[p] for p in places]), wanted) <= 1e-12


@pytest.mark.parametrize("m", [3, 9])
@pytest.mark.parametrize("method", ["upgrad", "dualproj", "mgda", "cagrad", "aligned", "mean"])
def test_methods_that_iterate(method: str, m: int) -> None:
    rows = pieces(m, torch.float64)
    update = merged(GramOperator(RULES[method]()), rows)
    for places in GROUPS:
        full = of_group(rows, places)
        if full.shape[1] >= 4 * m:
            assert relative_error(torch.cat([update[p] for p in places]), RULES[method].oracle(full)) <= 1e-8


def test_zero_and_broken_groups() -> None:
    """Zeros give zeros, and NaN stays within its group."""
    for m in (3, 9, 20):
        rows = pieces(m)
        wanted = merged(ConFIGOperator(), rows)
        for row in rows:
            row[0].zero_()
        rows[1][5][1022] = torch.nan
        update = merged(ConFIGOperator(), rows)
        assert not update[0].any()
        for p in (9, 5, 6):
            assert update[p].isnan().all()
        for p in (1, 2, 4, 7, 8):
            assert torch.equal(update[p], wanted[p])


@pytest.mark.parametrize(
    "name", some(list(MAKERS), quick=["config", "gradvac", "random", "pcd", "every gradvac"])
)
def test_as_calls_group_by_group(name: str) -> None:
    """Also the random numbers and the states; a gradient is missing, strided or transposed here and there."""
    torch.manual_seed(5)  # aggregation.GradVac draws from torch's own source
    mine, theirs = source(), source()
    operator, ones = grouped(MAKERS[name](mine)), [MAKERS[name](theirs) for _ in SHAPES]
    for step in range(3):
        rows, losses = drawn(dtype=torch.float64), [0.5, 2.0, 1.5]
        rows[1][0] = rows[2][3] = None
        for row in rows:
            row[5] = None
        rows = on_device(rows)
        if step:
            rows[0][4] = torch.randn(12, dtype=torch.float64, device=DEVICE)[::2]
        if step == 2:
            rows[2][0] = torch.randn(5, 4, dtype=torch.float64, device=DEVICE).T
        state = torch.get_rng_state()
        found = operator.calculate_gradient(rows, losses)
        torch.set_rng_state(state)
        assert found[5] is None
        for p, one in enumerate(ones[:5]):
            wanted = one.calculate_gradient([[row[p]] for row in rows], losses)[0]
            torch.testing.assert_close(found[p], wanted, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("take", [by_backward, by_lists, by_vectors])
def test_networks(take: Callable[..., None]) -> None:
    """Groups of several parameters, one of which no loss reaches."""
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    make, names = WAYS["names"]
    wanted = exact(net, x, names)
    net = net.to(DEVICE)
    take(net, x.to(DEVICE), grouped(ConFIGOperator(), make(net)))
    assert_written(net.cpu(), wanted)


def test_channels_last() -> None:
    """Each in the memory order of its gradients, and some complex."""
    rows = [
        [torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(6, dtype=torch.complex64)]
        for _ in range(3)
    ]
    update = merged(ConFIGOperator(), rows, [[0], [1]])
    assert update[0].is_contiguous(memory_format=torch.channels_last)
    for p, piece in enumerate(update):
        full = torch.stack([row[p].reshape(-1) for row in rows])
        full, found = (torch.view_as_real(t).flatten(-2) if p else t for t in (full, piece.reshape(-1)))
        exact = reference.config(full)
        assert relative_error(found, exact) <= rounding_bound(full, exact)


@in_one_call
def test_tables_are_kept() -> None:
    """A call with gradients at the same places writes no table; others do not mix up."""
    backend: Any = backends.load("cuda")
    several = [on_device(pieces(3)) for _ in range(6)]
    groups, rules = [list(places) for places in GROUPS], [ConFIG()] * len(GROUPS)
    targets = [Gradients(rows).new_update() for rows in several]

    def call(k: int) -> bytes:
        rows, out = several[k], targets[k]
        for row in rows:
            for piece in row:
                piece.copy_(torch.randn(piece.shape))
        assert backend.update_groups(Gradients(rows), groups, rules, out)
        check([[piece.cpu() for piece in row] for row in rows], [t.cpu() for t in out], reference.config)
        ((known, _),) = backend._tables.values()
        return bytes(known)

    first = call(0)
    assert call(0) == first
    for k in (0, 1, 0, 1, 2, 3, 0):
        before = call(k)
    assert call(3) == before
    for k in (4, 5, 0, 1, 2, 3, 0, 5):  # more than are kept
        call(k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_capturing", lambda: True)
        before = bytes(next(iter(backend._tables.values()))[0])
        assert call(1) == before  # a CUDA graph's table is its own


def test_rules_ask_where_their_tensors_are() -> None:
    """Those of groups lie anywhere: no step from the first ones' leads to them."""
    files = [*ROOT.glob("csrc/rules/*.hpp"), *ROOT.glob("kernels/cuda/*.cu*")]
    assert len(files) > 20
    for file in files:
        assert not re.findall(r"rule\.(?:weights|order|state)(?:_step)?\b", file.read_text()), file


def test_rules_that_differ_are_not_merged_at_once() -> None:
    backend: Any = backends.load("cuda")
    grads = Gradients(on_device(pieces(3)))
    rules = [ConFIG(length="minimum" if k % 2 else "projection") for k in range(len(GROUPS))]
    assert not backend.update_groups(grads, [list(places) for places in GROUPS], rules, grads.new_update())


def test_wrong_places_are_refused() -> None:
    backend: Any = backends.load("cuda")
    grads = Gradients(on_device(pieces(3)))
    with pytest.raises(IndexError, match="run_groups: places: got one beyond the parameters"):
        backend.update_groups(grads, [[len(SIZES)]], [ConFIG()], grads.new_update())


def test_momentum() -> None:
    """The device counts each step once, whatever the number of groups."""
    shapes = [(40, 30), (7,), (3, 5), (1025,)]
    operator, ones = PseudoMomentumOperator(3), [PseudoMomentumOperator(3) for _ in shapes]
    operator.groups = "parameter"
    for _ in range(4):
        rows = on_device([[torch.randn(shape) for shape in shapes] for _ in range(3)])
        update = operator.calculate_gradient(range(3), rows)
        for p, (piece, one) in enumerate(zip(update, ones, strict=True)):
            (wanted,) = one.calculate_gradient(range(3), [[row[p]] for row in rows])
            torch.testing.assert_close(piece, wanted, rtol=1e-5, atol=1e-6)
    assert operator.state_dict()["counts"] == [4] * 3
    assert operator.state_dict()["updates"] == 4
