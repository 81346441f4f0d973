"""A method that a user adds by one class, or one function: right wherever this package's own are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import emulated
import pytest
import torch
from inputs import conflicting, relative_error, rounding_bound
from pairs import slow
from rich.console import Console
from schedules import ELEMENTS, cyclic, errors, joined, per_parameter, several
from torch import Tensor, nn

import fastconfig
from fastconfig import GramOperator, PseudoMomentumOperator, Rule, SeparateMomentumOperator
from fastconfig.bench.plan import Options
from fastconfig.bench.run import bench
from fastconfig.methods import IMTLG, RULES

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter


class Milder(Rule):
    """The sum of the unit gradients, each divided by one more than it conflicts; times its loss."""

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        x = 1 / (1 - cosines.clamp(max=0).sum(-1))
        return x if losses is None else x * losses

    @staticmethod
    def oracle(rows: Tensor, losses: Sequence[float] | None = None, rcond: float | None = None) -> Tensor:
        rows = rows.double()
        units = [row / row.norm() if row.any() else row for row in rows]
        update = torch.zeros_like(rows[0])
        for i, unit in enumerate(units):
            conflict = sum(float((-(unit * other).sum()).clamp(min=0)) for other in units)
            update += unit / (1 + conflict) * (1 if losses is None else losses[i])
        return update


def milder(gram: Tensor) -> Tensor:
    """The same as a function of one Gram matrix."""
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0)
    conflict = (gram * inverse * inverse[:, None]).clamp(max=0).sum(-1)
    return inverse / (1 - conflict)


OPERATORS = {"class": lambda: GramOperator(Milder()), "function": lambda: GramOperator(milder)}


@pytest.fixture(params=["numba", "pytorch", pytest.param("triton", marks=slow), "cuda"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "cuda":
        emulated.serve(monkeypatch, float64=True)
    with fastconfig.use_backend(request.param):
        yield request.param


def test_once_in_tritons_interpreter() -> None:
    """What all forms and dtypes of the slow tests have in common."""
    pytest.importorskip("triton")
    rows = conflicting(3, 257)
    exact = Milder.oracle(rows)
    with fastconfig.use_backend("triton"):
        update = GramOperator(Milder()).calculate_gradient(list(rows))
    assert relative_error(update, exact) <= rounding_bound(rows, exact)


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_backend_and_form(served: str, dtype: torch.dtype, make: Any) -> None:
    operator = make()
    rows = conflicting(3, 1031).to(dtype)
    rows[1, 700:] = 0
    exact = Milder.oracle(rows)
    bound = rounding_bound(rows, exact)
    parameters = [[row[:700].clone(), row[700:].clone()] for row in rows]
    parameters[1][1] = None  # type: ignore[call-overload]
    for given in (rows, list(rows), parameters):
        update = operator.calculate_gradient(given)
        assert relative_error(update if isinstance(update, Tensor) else torch.cat(update), exact) <= bound
    batch = torch.stack([rows, rows.flip(0) * 2])
    for update, problem in zip(operator.calculate_gradient(batch), batch, strict=True):
        assert relative_error(update, Milder.oracle(problem)) <= bound


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
def test_zero_and_broken_gradients(served: str, make: Any) -> None:
    rows = conflicting(3, 33)
    rows[1] = 0
    assert relative_error(make().calculate_gradient(rows), Milder.oracle(rows)) <= 1e-6
    rows[2, 5] = torch.nan
    assert make().calculate_gradient(list(rows)).isnan().all()
    assert not make().calculate_gradient(torch.zeros(3, 33)).any()


def test_losses(backend: str) -> None:
    rows, losses = conflicting(3, 100), [0.5, 2.0, 3.0]
    for given in (losses, [torch.tensor(loss) for loss in losses], torch.tensor(losses)):
        update = GramOperator(Milder()).calculate_gradient(rows, given)
        assert relative_error(update, Milder.oracle(rows, losses)) <= 1e-6
    each = [torch.tensor([0.5, 1.5]), 2.0, torch.tensor([[3.0]])]  # of a batch, of all its problems
    batched = GramOperator(Milder()).calculate_gradient(torch.stack([rows, 2 * rows]), each)
    for update, problem, loss in zip(batched, (rows, 2 * rows), (0.5, 1.5), strict=True):
        assert relative_error(update, Milder.oracle(problem, [loss, 2.0, 3.0])) <= 1e-6


def test_a_subclass_of_a_compiled_rule_is_asked_itself() -> None:
    class Doubled(IMTLG):
        def unit_coefficients(self, *given: Any) -> Tensor:
            return 2 * super().unit_coefficients(*given)

    class Further(Doubled):
        """Inherits what is not compiled."""

    class Halving:
        """No rule itself."""

        def unit_coefficients(self, *given: Any) -> Tensor:
            return super().unit_coefficients(*given) / 2  # type: ignore[misc]

    class Mixed(Halving, IMTLG):
        """Is mixed with what is not compiled."""

    class Same(IMTLG):
        """Inherits what is."""

    rows = conflicting(3, 100)
    wanted = IMTLG.oracle(rows)
    for kind, factor, native in (
        (Doubled, 2, None),
        (Further, 2, None),
        (Mixed, 0.5, None),
        (Same, 1, "imtlg"),
    ):
        assert kind.native == native
        update = GramOperator(kind()).calculate_gradient(list(rows))
        assert relative_error(update, factor * wanted) <= 1e-6


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
def test_momenta(served: str, make: Any) -> None:
    schedule = cyclic(3, 5) if served == "triton" else several(3, 30)  # whose interpreter takes seconds
    operator = PseudoMomentumOperator(3, gradient_operator=make())
    found = errors(operator, schedule, ELEMENTS, give=per_parameter, take=joined, merge=Milder.oracle)
    assert max(found) <= 1e-5
    separate = SeparateMomentumOperator(3, gradient_operator=make())
    for _ in range(3):
        update = separate.calculate_gradient([0, 1, 2], conflicting(3, 50))
    assert update.isfinite().all()


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("zeroed", [True, False])
def test_backward(backend: str, make: Any, zeroed: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    y = net(torch.randn(16, 3, dtype=torch.float64))
    losses = [y[:, 0].square().mean(), -y.sum(), (y - 1).abs().mean()]
    parameters = list(net.parameters())
    grads = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    zeros = [torch.zeros_like(p) for p in parameters]
    rows = torch.stack(
        [
            torch.cat([(z if g is None else g).flatten() for g, z in zip(row, zeros, strict=True)])
            for row in grads
        ]
    )
    if not zeroed:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    operator = make()
    fastconfig.backward(losses, net, operator)
    found = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
    uses_losses = isinstance(operator.rule_for(None), Milder)
    exact = Milder.oracle(rows, [loss.item() for loss in losses] if uses_losses else None)
    assert relative_error(found, exact) <= 1e-12


def test_compiled() -> None:
    operator = GramOperator(Milder())
    rows = conflicting(3, 64)
    compiled = torch.compile(lambda rows: operator.calculate_gradient(rows) * 2, backend="eager")
    assert torch.equal(compiled(rows), 2 * operator.calculate_gradient(rows))


def test_a_rule_of_this_package_is_its_operator() -> None:
    rows = list(conflicting(3, 100))
    update = GramOperator(IMTLG()).calculate_gradient(rows)
    assert torch.equal(update, fastconfig.IMTLGOperator().calculate_gradient(rows))


def test_copies() -> None:
    operator = GramOperator(Milder(rcond=1e-3))
    rows = conflicting(3, 100)
    update = operator.calculate_gradient(rows)
    for other in (copy.copy(operator), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other.calculate_gradient(rows), update)
        assert other.rule_for(None).rcond == 1e-3


def test_rules_pickled_by_version_0_1() -> None:
    """It had one class, with the method's name among its attributes."""
    rule = object.__new__(Rule)
    rest = {"weights": None, "length": "projection", "track_id": 0, "order": None, "rcond": None}
    rule.__setstate__({"method": "ppcgrad", "mean": True, **rest})
    rows = conflicting(3, 100)
    wanted = fastconfig.PPCGradOperator(reduction="mean").calculate_gradient(rows)
    assert torch.equal(GramOperator(rule).calculate_gradient(rows), wanted)


class Named(Milder):
    """Has an attribute of a name that this package's rules once had, and makes nothing of rcond."""

    def __init__(self) -> None:
        self.method = "config"


def test_a_rule_with_attributes_of_its_own() -> None:
    rows = conflicting(3, 100)
    rule = Named()
    for other in (copy.copy(rule), copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert (type(other), other.method) == (Named, "config")
        update = GramOperator(other).calculate_gradient(rows)
        assert torch.equal(update, GramOperator(Milder()).calculate_gradient(rows))


def test_one_list_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "milder", Milder)
    rows = conflicting(3, 100).double()
    c = fastconfig.ops.coefficients(fastconfig.ops.gram(rows), "milder")
    assert relative_error(c @ rows, Milder.oracle(rows)) <= 1e-12
    options = Options(
        m=(3,), n=(1000,), quick=True, only=("update", "solve"), backend=("pytorch",), memory=False
    )
    console = Console(quiet=True)
    rows_of = bench(options, "a test", console)["settings"][0]["results"]
    for operation in ("Milder", "Milder coefficients"):
        (row,) = (row for row in rows_of if row["operation"] == operation)
        assert row["right"]


@pytest.mark.parametrize(
    ("rule", "error", "says"),
    [
        (Milder, TypeError, "rule: got the class Milder, want a Rule"),
        ("config", TypeError, "rule: got 'config', want a Rule"),
        (lambda gram: gram, ValueError, r"got shape \(3, 3\) from <lambda>, want 3 real"),
        (lambda gram: None, TypeError, "rule: got .*, want 3 numbers from <lambda>"),
        (lambda gram: ["a"] * 3, TypeError, "rule: got .*, want 3 numbers from <lambda>"),
        (Rule(), NotImplementedError, "Rule.unit_coefficients must be implemented"),
    ],
)
def test_refusals(rule: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        GramOperator(rule).calculate_gradient(conflicting(3, 10))


def test_the_method_in_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
    example = text.partition("<!-- method:begin -->\n```python\n")[2].partition("```")[0]
    monkeypatch.setattr("fastconfig.methods.RULES", dict(RULES))
    found: dict[str, Any] = {}
    exec(compile(example, "docs/extend.md", "exec"), found)
    assert found["RULES"]["milder"] is found["Milder"]
