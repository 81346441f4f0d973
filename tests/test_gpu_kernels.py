"""The Triton and CUDA kernels against the float64 oracle: on a GPU, or interpreted and emulated."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import emulated
import pytest
import torch
from inputs import (
    METHODS,
    equiangular,
    gram_error,
    half_bound,
    low_rank,
    relative_error,
    rounding_bound,
    scaled,
)
from pairs import cases, slow, some
from torch import Tensor

from fastconfig import ConFIG_update, PCGradOperator, backends, ops, reference, use_backend
from fastconfig.gradients import Gradients
from fastconfig.methods import make_rule

# the interpreter computes with NumPy, which warns of what a GPU does in silence (Inf, NaN), and which an
# older Triton uses in ways that NumPy warns of
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton"),
]

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = (*range(1, 34), 64)
FEW = (1, 2, 3, 8, 9, 33)
# of four chunks of float32 columns: below, at, above, and several with a rest
LENGTHS = [1, 7, 1023, 1024, 1025, 3001]
NAMES = ["triton", "cuda", "cuda-launches"]


def on_each(names: str, *parameters: Sequence[Any]) -> pytest.MarkDecorator:
    """Their product on the CUDA kernels; each value once in Triton's interpreter, which takes seconds."""
    emulated = [pytest.param(name, *values) for name in NAMES[1:] for values in product(*parameters)]
    interpreted = cases(NAMES[:1], *parameters, together=1)
    return pytest.mark.parametrize(("name", *names.split()), [*interpreted, *emulated], indirect=["name"])


def few_interpreted(names: str, values: Sequence[Any], few: Sequence[Any]) -> pytest.MarkDecorator:
    """Values of a parameter, or tuples of several, of which Triton's interpreter has few."""
    given = [
        pytest.param(
            server,
            *(value if isinstance(value, tuple) else (value,)),
            marks=slow if server == "triton" and value not in few else (),
        )
        for server, value in product(NAMES, values)
    ]
    return pytest.mark.parametrize(("name", *names.split()), given, indirect=["name"])


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A backend that can serve here; CUDA's also without its form in one launch, which small inputs take."""
    if request.param == "triton":
        monkeypatch.setattr(backends, "registry", backends.Registry())  # a failure withdraws the backend
        pytest.importorskip("triton")
        yield "triton"
        return
    emulated.serve_here(monkeypatch)
    backends.load("cuda")
    kernels = importlib.import_module("fastconfig._cuda")
    kernels.options(request.param == "cuda", True)
    yield "cuda"
    kernels.options(True, True)


@pytest.fixture(autouse=True)
def served(name: str) -> Iterator[None]:
    """By the backend."""
    with use_backend(name):
        yield


def on_device(rows: Tensor) -> Tensor:
    return rows.to(DEVICE)


def check(rows: Tensor, names: list[str] | None = None, **settings: Any) -> None:
    """The bounds of the CPU path, see test_accuracy.py."""
    for name in names or METHODS:
        exact = METHODS[name].oracle(rows)
        update = METHODS[name].ours(list(on_device(rows))).cpu()
        assert update.dtype == rows.dtype
        if rows.dtype == torch.float64:
            bound = 1e-12
        elif rows.dtype == torch.float32:
            bound = rounding_bound(rows, exact)
        else:
            bound = half_bound(exact, rows.dtype)
        assert relative_error(update, exact) <= bound, name


@on_each("n dtype", LENGTHS, DTYPES)
def test_gram(n: int, dtype: torch.dtype) -> None:
    for m in FEW:
        rows = torch.randn(m, n).to(dtype)
        gram = ops.gram(on_device(rows)).cpu()
        assert torch.equal(gram, gram.T)
        # float64 sums of n products: at most n eps, by blocks far less
        assert gram_error(gram, reference.gram(rows)) <= 1e-14


@few_interpreted("m", SIZES, (1, 3, 8, 9, 33))
def test_every_number_of_gradients(m: int) -> None:
    rows = scaled(torch.randn(m, 1025).double(), decades=2).float()
    check(rows, ["config-projection", "pcgrad", "ppcgrad", "imtlg"] if m in FEW else ["config-projection"])


@on_each("method dtype", list(METHODS), DTYPES)
def test_methods(method: str, dtype: torch.dtype) -> None:
    for m in (3, 9):
        rows = equiangular(m, 1501, 0.3) if dtype.itemsize == 2 else scaled(equiangular(m, 1501, -0.1), 2)
        check((100 * rows).to(dtype), [method])


# with four multiprocessors: rows that take a vector a thread, several, and those that do not fit
@few_interpreted("n", [*LENGTHS, 5003, 16_001, 30_011], LENGTHS)
def test_lengths(n: int) -> None:
    for m in (2, 3):
        if n >= m:
            check(torch.randn(m, n), ["config-projection", "pcgrad"])


LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda rows: rows,
    "columns": lambda rows: rows.T.contiguous().T,
    "every second": lambda rows: rows.repeat_interleave(2, dim=1)[:, ::2],
    "strided vectors": lambda rows: [row.repeat_interleave(3)[::3] for row in rows],
    "odd addresses": lambda rows: [torch.cat([row[:1], row])[1:] for row in rows],
    "expanded": lambda rows: torch.stack(list(rows)).unsqueeze(0).expand(2, -1, -1),
}


@on_each("layout dtype", list(LAYOUTS), DTYPES)
def test_layouts(name: str, layout: str, dtype: torch.dtype) -> None:
    for m, n in ((1, 1), (3, 1000), (9, 1025 if name == "triton" and not ON_GPU else 2049)):
        rows = on_device(torch.randn(m, n).to(dtype))
        wanted = ConFIG_update(list(rows))
        close(ConFIG_update(LAYOUTS[layout](rows)), wanted)
        assert torch.isfinite(wanted).all()


@few_interpreted("m dtype", [*product([3, 6, 8, 9, 17, 41], DTYPES)], [(3, torch.bfloat16)])
def test_rows_at_odd_addresses(m: int, dtype: torch.dtype) -> None:
    # all but every eighth row of one tensor; several rounds of every thread, with a rest
    rows = torch.randn(m, 9001).to(dtype)
    assert gram_error(ops.gram(on_device(rows)).cpu(), reference.gram(rows)) <= 1e-14
    exact = METHODS["config-projection"].oracle(rows)
    update = ConFIG_update(on_device(rows)).cpu()
    if dtype.itemsize == 2:
        assert relative_error(update, exact) <= half_bound(exact, dtype)
    else:
        bound = 1e-12 if dtype == torch.float64 else rounding_bound(rows, exact)
        assert relative_error(update, exact) <= bound


def close(update: Tensor, wanted: Tensor) -> None:
    # the same coefficients up to the order of the sums in G, one rounding each
    assert update.dtype == wanted.dtype
    assert torch.isfinite(update).all()
    difference = (update.double() - wanted.double()).norm()
    assert difference <= max(torch.finfo(wanted.dtype).eps, 1e-12) * update.double().norm()


@few_interpreted("dtype", DTYPES, [torch.bfloat16])
def test_parameters(dtype: torch.dtype) -> None:
    shapes = [(5, 3), (7,), (), (40, 41), (1100,)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    for m in (3, 9):
        rows = on_device(torch.randn(m, sum(sizes)).to(dtype))
        grads: list[list[Tensor | None]] = [
            [piece.reshape(shape) for piece, shape in zip(row.split(sizes), shapes, strict=True)]
            for row in rows
        ]
        for i, p in ((0, 0), (1, 3), (2, 4)):
            grads[i][p] = None
            start = sum(sizes[:p])
            rows[i, start : start + sizes[p]] = 0
        update = ConFIG_update(grads)
        assert [piece.shape for piece in update] == [torch.Size(shape) for shape in shapes]
        close(torch.cat([piece.reshape(-1) for piece in update]), ConFIG_update(rows))


@on_each(
    "method shape",
    ["config-projection", "config-geometric", "pcgrad", "imtlg"],
    [(2, 1), (2, 701), (3, 516), (9, 516)],
)
def test_batches(method: str, shape: tuple[int, int]) -> None:
    m, n = shape
    rows = on_device(torch.randn(4, m, n).double())
    for batch in (rows, rows.transpose(0, 1).contiguous().transpose(0, 1), rows[1:1]):
        update = METHODS[method].ours(batch)
        assert update.shape == (len(batch), n)
        for problem, result in zip(batch.cpu(), update.cpu(), strict=True):
            if n >= m:
                assert relative_error(result, METHODS[method].oracle(problem)) <= 1e-12


def test_more_tensors_than_parameters_of_a_launch_hold(name: str) -> None:
    for m, count in ((3, 130), (9, 60)):  # more than 480 words
        if name == "triton" and not ON_GPU:  # has them in memory at any number
            count //= 6
        sizes = torch.randint(0, 40, (count,)).tolist()
        rows = on_device(torch.randn(m, sum(sizes)))
        grads = [list(row.split(sizes)) for row in rows]
        close(torch.cat(ConFIG_update(grads)), ConFIG_update(rows))


def test_no_elements() -> None:
    for grads in (torch.empty(3, 0, device=DEVICE), [torch.empty(0, device=DEVICE)] * 2):
        assert ConFIG_update(grads).shape == (0,)
    assert not ops.gram(torch.empty(3, 0, device=DEVICE)).any()


def test_zero_duplicate_and_opposed_rows() -> None:
    rows = torch.randn(5, 1500)
    rows[1] = 0
    rows[3] = 0.7 * rows[0]
    names = [name for name in METHODS if name != "config-specific"]
    check(rows, names)
    rows[3] = -0.4 * rows[0]
    check(rows, ["config-projection", "config-minimum", "ppcgrad", "pcgrad"])
    row = on_device(torch.randn(1500))
    assert not ConFIG_update([row, -0.3 * row]).any()
    assert not ConFIG_update([torch.zeros_like(row)] * 3).any()


@pytest.mark.parametrize(("m", "rank"), [(3, 2), (8, 5), (20, 13)])
def test_dependent_rows(m: int, rank: int) -> None:
    check(low_rank(m, 1300, rank), ["config-projection", "pcgrad", "ppcgrad"])


@on_each("value m", [torch.nan, torch.inf, -torch.inf], [2, 9])
def test_a_broken_gradient_breaks_the_update(value: float, m: int) -> None:
    for method in ("config-projection", "pcgrad", "ppcgrad", "imtlg"):
        rows = on_device(torch.randn(m, 1500))
        rows[1, 1234] = value
        assert torch.isnan(METHODS[method].ours(list(rows))).all()


def test_norms_from_1e_30_to_1e30() -> None:
    rows = torch.randn(4, 1500) * torch.tensor([[1e-30], [1e-10], [1e10], [1e30]])
    for name in ("config-projection", "config-geometric", "imtlg"):
        exact = METHODS[name].oracle(rows)
        update = METHODS[name].ours(list(on_device(rows))).cpu()
        assert relative_error(update, exact) <= rounding_bound(rows, exact)


def test_weights(name: str) -> None:
    rows = torch.randn(4, 1200)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    gram = ops.gram(on_device(rows))
    server = backends.load(name)
    grads = Gradients(list(on_device(rows)))
    made = make_rule("config", 4, DEVICE, weights=weights)
    out = grads.new_update()
    server.update(grads, made, out)
    exact = reference.config(rows, weights=weights)
    assert relative_error(out.cpu(), exact) <= rounding_bound(rows, exact)
    alone = ops.combine(list(on_device(rows)), server.coefficients(gram, made, grads))
    close(alone, out)


def by_rule(name: str, rows: Tensor, weights: Tensor, rcond: float) -> Tensor:
    grads = Gradients(list(on_device(rows)))
    out = grads.new_update()
    made = make_rule("config", len(rows), DEVICE, weights=weights, rcond=rcond)
    backends.load(name).update(grads, made, out)
    return out.cpu()  # type: ignore[union-attr]


@pytest.mark.parametrize("share", [0.45, 1.1])
def test_rcond_cuts_the_eigenvalues_that_the_reference_cuts(name: str, share: float) -> None:
    """As in test_ops.py."""
    rcond, weights = 1e-3, torch.tensor([1.0, 2.0], dtype=torch.float64)
    rows = equiangular(2, 300, (1 - share * rcond) / (1 + share * rcond))
    exact = reference.config(rows, weights, rcond=rcond)
    assert relative_error(by_rule(name, rows, weights, rcond), exact) <= 5 * rcond


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_weights_count_as_unsupported_where_the_reference_says_so(name: str, share: float) -> None:
    rcond, row = 1e-3, torch.randn(300, dtype=torch.float64)
    rows = torch.stack([row, -0.25 * row])
    weights = torch.tensor([1 + share * rcond, 1 - share * rcond], dtype=torch.float64)
    exact = reference.config(rows, weights, rcond=rcond)
    assert bool(exact.any()) == (share > 1)
    update = by_rule(name, rows, weights, rcond)
    if share > 1:
        assert relative_error(update, exact) <= 1e-10
    else:
        assert not update.any()


@pytest.mark.parametrize("m", [3, 8, 17])
def test_pcgrad_takes_the_order_it_is_given(m: int) -> None:
    rows = torch.randn(4, m, 300).double()
    order = torch.rand(4, m, m).argsort(-1)
    update = PCGradOperator().calculate_gradient(on_device(rows), order=order.to(DEVICE)).cpu()
    for problem in range(4):
        exact = reference.pcgrad(rows[problem], order=order[problem])
        assert relative_error(update[problem], exact) <= 1e-12
    with use_backend("pytorch"):
        close(PCGradOperator().calculate_gradient(rows, order=order), update)


def test_the_same_bits_every_time() -> None:
    for m in (3, 9):
        rows = list(on_device(torch.randn(m, 100_003 if ON_GPU else 2050)))
        first = ConFIG_update(rows)
        for _ in range(100 if DEVICE.type == "cuda" else 3):
            assert torch.equal(ConFIG_update(rows), first)


class TestFloat32Products:
    """What devices with little float64 do."""

    # CUDA's kernels would be built once more
    @pytest.fixture(params=["triton", *(pytest.param(name, marks=slow) for name in NAMES[1:])])
    def name(self, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
        if name == "triton":
            monkeypatch.setenv("FASTCONFIG_TRITON_FLOAT64", "0")
        elif ON_GPU:
            pytest.skip("this device's kernels decided when they were compiled")
        else:
            emulated.serve(monkeypatch, float64=False)
        return name

    @staticmethod
    def taken(m: int, name: str) -> bool:
        """Whether a backend takes so many gradients on such a device."""
        return name == "triton" or m <= 8

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_gram(self, name: str, dtype: torch.dtype) -> None:
        # at most 16 products in a row in float32
        chain = 1e-14 if dtype == torch.float64 else 16 * torch.finfo(torch.float32).eps / 2
        few = (3, 9) if name == "triton" and not ON_GPU else FEW
        for m in (m for m in few if self.taken(m, name)):
            rows = torch.randn(m, 3001).to(dtype)
            gram = ops.gram(on_device(rows)).cpu()
            assert gram_error(gram, reference.gram(rows)) <= chain

    @pytest.mark.parametrize("m", some([2, 3, 8, 9], quick=[3]))
    def test_methods(self, name: str, m: int) -> None:
        if not self.taken(m, name):
            return
        # condition of C below 10, of the coefficients below 100
        rows = scaled(equiangular(m, 2500, 0.2), decades=2).float()
        for method, given in METHODS.items():
            exact = given.oracle(rows)
            update = given.ours(list(on_device(rows))).cpu()
            bound = 100 * 16 * torch.finfo(torch.float32).eps / 2 + rounding_bound(rows, exact)
            assert relative_error(update, exact) <= bound, method

    @pytest.mark.parametrize("m", [4, 9])
    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_products_that_float32_cannot_hold_are_taken_again(self, name: str, m: int, scale: float) -> None:
        if not self.taken(m, name):
            return
        full = scaled(torch.randn(m, 2500).double(), decades=4) * scale ** torch.rand(m, 1)
        full[0] *= scale / full[0].norm()
        rows = full.float()
        gram = ops.gram(list(on_device(rows))).cpu()
        assert gram_error(gram, reference.gram(rows)) <= 1e-14
        exact = METHODS["config-projection"].oracle(rows)
        update = ConFIG_update(list(on_device(rows))).cpu()
        assert relative_error(update, exact) <= rounding_bound(rows, exact)

    def test_duplicates_still_count_as_one(self) -> None:
        rows = torch.randn(4, 2500)
        rows[2] = rows[0]
        exact = METHODS["config-projection"].oracle(rows)
        update = ConFIG_update(list(on_device(rows))).cpu()
        assert relative_error(update, exact) <= 1e-4  # 16 products in float32, condition below 100
