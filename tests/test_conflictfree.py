"""conflictfree's names, signatures and, where it is right, values."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
from inputs import relative_error, rounding_bound
from peer import LENGTHS, MODULES, OURS, THEIRS, TheirOnes, agree, conflicting, length_of

from fastconfig import ConFIG_update, ConFIG_update_double, ConFIGOperator, reference

DTYPES = [torch.float32, torch.float64]
SIZES = [2, 3, 5]
N = 101


def defined(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


PUBLIC = [(module, name) for module in MODULES for name in defined(THEIRS[module])]
CLASSES = [(m, n) for m, n in PUBLIC if inspect.isclass(getattr(THEIRS[m], n))]
FUNCTIONS = [pair for pair in PUBLIC if pair not in CLASSES]
METHODS = [
    (module, name, method)
    for module, name in CLASSES
    for method, value in inspect.getmembers(getattr(THEIRS[module], name), inspect.isfunction)
    if value.__module__.startswith("conflictfree")
]


def compatible(ours: Any, theirs: Any) -> None:
    """Same parameters, order and defaults; what is ours alone is keyword-only."""
    mine = list(inspect.signature(ours).parameters.values())
    wanted = list(inspect.signature(theirs).parameters.values())
    assert [p.name for p in mine[: len(wanted)]] == [p.name for p in wanted]
    for own, their in zip(mine, wanted, strict=False):
        assert own.kind == their.kind
        if their.default is inspect.Parameter.empty:
            continue  # a required one may be optional here
        if type(their.default).__module__.startswith("conflictfree"):
            assert type(own.default).__name__ == type(their.default).__name__
        else:
            assert own.default == their.default, own.name
    for extra in mine[len(wanted) :]:
        assert extra.kind == inspect.Parameter.KEYWORD_ONLY
        assert extra.default is not inspect.Parameter.empty


def test_the_peer_defines_what_is_compared() -> None:
    assert len(CLASSES) == 22
    assert len(FUNCTIONS) == 12
    assert len(METHODS) >= 30


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_a_module_exists_there(module: str) -> None:
    assert not [n for n in defined(THEIRS[module]) if not hasattr(OURS[module], n)]


@pytest.mark.parametrize("module", MODULES)
def test_star_import_gives_every_name(module: str) -> None:
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    exec(f"from conflictfree.{module} import *", theirs)
    exec(f"from fastconfig.{module} import *", ours)
    assert len(theirs) > 3
    assert not theirs.keys() - ours.keys()
    assert ours.get("torch") is theirs.get("torch")


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_functions_take_the_same_arguments(module: str, name: str) -> None:
    compatible(getattr(OURS[module], name), getattr(THEIRS[module], name))


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_constructors_take_the_same_arguments(module: str, name: str) -> None:
    compatible(getattr(OURS[module], name), getattr(THEIRS[module], name))


@pytest.mark.parametrize(("module", "name", "method"), METHODS)
def test_methods_take_the_same_arguments(module: str, name: str, method: str) -> None:
    theirs = getattr(getattr(THEIRS[module], name), method)
    compatible(getattr(getattr(OURS[module], name), method), theirs)


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_classes_have_the_same_public_bases(module: str, name: str) -> None:
    bases = {b.__name__ for b in getattr(THEIRS[module], name).__mro__ if b is not object}
    assert bases <= {b.__name__ for b in getattr(OURS[module], name).__mro__}


# Values: by conflictfree's pinv way; its lstsq may answer wrongly at any N (torch issue 187411).


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("length", LENGTHS)
def test_config_values(length: str, m: int, dtype: torch.dtype, backend: str) -> None:
    rows = conflicting(m, N, dtype)
    theirs = THEIRS["grad_operator"].ConFIG_update(
        rows, TheirOnes(), length_of(THEIRS, length), use_least_square=False
    )
    exact = reference.config(rows, length=length, track_id=1)
    agree(ConFIG_update(rows, length_model=length_of(OURS, length)), theirs, exact, rows)
    for least_square in (True, False):
        operator = ConFIGOperator(length_model=length_of(OURS, length), use_least_square=least_square)
        agree(operator.calculate_gradient(list(rows)), theirs, exact, rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_config_double_values(length: str, dtype: torch.dtype, backend: str) -> None:
    rows = conflicting(2, N, dtype)
    theirs = THEIRS["grad_operator"].ConFIG_update_double(
        rows[0], rows[1], length_model=length_of(THEIRS, length)
    )
    exact = reference.config(rows, length=length, track_id=1)
    update = ConFIG_update_double(rows[0], rows[1], length_model=length_of(OURS, length))
    agree(update, theirs, exact, rows)
    for simplified in (True, False):
        operator = ConFIGOperator(length_model=length_of(OURS, length), allow_simplified_model=simplified)
        assert torch.equal(operator.calculate_gradient(rows), update)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
def test_pcgrad_values(m: int, dtype: torch.dtype, backend: str) -> None:
    rows = conflicting(m, N, dtype)
    exact = reference.pcgrad(rows)
    terms = rounding_bound(rows, exact) / (8 * torch.finfo(dtype).eps)  # sum |c_i| |g_i| / |update|
    given = THEIRS["grad_operator"].PCGradOperator().calculate_gradient(list(rows))
    # at most m projections a row, each rounded as a product of N terms
    assert relative_error(given, exact) <= m * N * torch.finfo(dtype).eps * terms
    update = OURS["grad_operator"].PCGradOperator().calculate_gradient(list(rows))
    assert relative_error(update, exact) <= max(rounding_bound(rows, exact), 1e-12 * terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
def test_imtlg_values(m: int, dtype: torch.dtype, backend: str) -> None:
    rows = conflicting(m, N, dtype)
    exact = reference.imtlg(rows)
    terms = rounding_bound(rows, exact) / (8 * torch.finfo(dtype).eps)
    full = rows.double()
    units = full / full.norm(dim=1, keepdim=True)
    condition = float(torch.linalg.cond((full[0] - full[1:]) @ (units[0] - units[1:]).T))
    given = THEIRS["grad_operator"].IMTLGOperator().calculate_gradient(list(rows))
    assert relative_error(given, exact) <= N * torch.finfo(dtype).eps * condition * terms
    update = OURS["grad_operator"].IMTLGOperator().calculate_gradient(list(rows))
    assert relative_error(update, exact) <= max(rounding_bound(rows, exact), 1e-12 * terms)


@pytest.mark.parametrize("name", ["PCGradOperator", "IMTLGOperator", "ConFIGOperator"])
@pytest.mark.parametrize("m", SIZES)
def test_operators_take_tensor_or_list_alike(name: str, m: int, backend: str) -> None:
    rows = conflicting(m, N)
    operator = getattr(OURS["grad_operator"], name)()
    assert torch.equal(operator.calculate_gradient(rows), operator.calculate_gradient(list(rows.unbind())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [2, 3, 8])
def test_momentum_values(m: int, dtype: torch.dtype, backend: str) -> None:
    """Over 200 steps; conflictfree's moving averages, and its solver, round in the dtype of the rows."""
    inner = THEIRS["grad_operator"].ConFIGOperator(TheirOnes(), use_least_square=False)
    given = THEIRS["momentum_operator"].PseudoMomentumOperator(m, gradient_operator=inner)
    operator = OURS["momentum_operator"].PseudoMomentumOperator(m)
    mean = conflicting(m, N, dtype)
    for step in range(200):
        row = mean[step % m] + torch.randn(N, dtype=dtype)
        theirs = given.calculate_gradient(step % m, row)
        ours = operator.calculate_gradient(step % m, row)
    assert ours.dtype == dtype
    assert relative_error(ours, theirs.double()) <= (1e-5 if dtype is torch.float32 else 1e-10)
