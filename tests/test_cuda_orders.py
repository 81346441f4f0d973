"""Orders of blocks, warps and lanes that tests/emulator draws: races show, and updates keep their bits."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import built
import emulated
import processes
import pytest
import torch
from inputs import METHODS
from pairs import slow
from schedules import odd_addresses, strided
from torch import Tensor

from fastconfig import ConFIGOperator, MGDAOperator, PCGradOperator, backends, use_backend
from fastconfig.gradients import Gradients
from fastconfig.methods import RULES
from fastconfig.momentum_operator import PseudoMomentumOperator

RACES = Path(__file__).parent / "emulator" / "races.cpp"
ORDERS = 4


def test_a_race_shows() -> None:
    """Without a barrier results depend on the drawn order; with it they don't."""
    found = processes.compiler()
    if found is None:
        pytest.skip("no C++ compiler: CXX is not set, and there is no c++, g++ or clang++")
    command = [
        *found,
        *emulated.FLAGS,
        "-DFASTCONFIG_EMULATED_FLOAT64=1",
        f"-I{RACES.parent}",
        "-pthread",
        str(RACES),
    ]
    program = built.once(
        "races",
        built.sources(RACES.parent),
        command,
        lambda target: subprocess.run([*command, "-o", str(target)], check=True),
    )
    printed = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout
    results = {name: int(count) for name, count in map(str.split, printed.splitlines())}
    for race in ("warps", "reuse", "lanes", "blocks"):
        assert results[f"{race}-ordered"] == 1
        assert results[race] > 1, race


@pytest.fixture(params=[True, False], ids=["one launch", "launches"])
def _served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the emulated kernels."""
    emulated.serve(monkeypatch, float64=True)
    with use_backend("cuda"):
        kernels = importlib.import_module("fastconfig._cuda")
        kernels.options(request.param, True)
        yield
        kernels.options(True, True)


def same_bits(update: Callable[[], Tensor], seed: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether an update has the same bits under all of several orders."""
    found = []
    for order in range(ORDERS):
        monkeypatch.setenv("FASTCONFIG_EMULATOR_SEED", str(seed + order))
        torch.manual_seed(seed)  # PCGrad draws an order, too
        found.append(update().view(torch.uint8))
    return all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.usefixtures("_served")
@pytest.mark.parametrize(
    ("m", "give"),
    [
        (3, list),
        (8, odd_addresses),
        (9, strided),
        (20, list),
        *(
            pytest.param(m, give, marks=slow)
            for m, give in product((2, 4, 9, 17, 40), (list, odd_addresses, strided))
            if (m, give) != (9, strided)
        ),
    ],
)
def test_updates(m: int, give: Callable[[Tensor], Any], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last with a rest."""
    for dtype in (torch.float32, torch.bfloat16):
        rows = give(torch.randn(m, 4999).to(dtype))
        for name, method in METHODS.items():
            if name in ("config-projection", "pcgrad", "imtlg", "upgrad"):
                assert same_bits(lambda: method.ours(rows), seed, monkeypatch), (name, dtype)  # noqa: B023


@pytest.mark.parametrize("m", [6, pytest.param(17, marks=slow), 36])
def test_methods_that_iterate(m: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a warp and on a block: of several problems, one of gradients that depend on each other."""
    emulated.serve(monkeypatch, float64=True)
    backend = backends.load("cuda")
    rows = torch.randn(3, m, m + 5, dtype=torch.float64)
    rows[1, :2] = rows[1, 2:4] - 0.7 * rows[1, 4:5]
    rows -= 0.7 * rows.mean(1, keepdim=True)
    for name in ("upgrad", "nash", "fairgrad", "aligned"):
        rule = RULES[name]()
        grads = Gradients(rows)
        gram = backend.gram(grads)
        assert same_bits(lambda: backend.coefficients(gram, rule, grads), seed, monkeypatch), name  # noqa: B023


@pytest.mark.usefixtures("_served")
@pytest.mark.parametrize("m", [3, 12, 20])
def test_groups(m: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several blocks, and of one."""
    rows = [[torch.randn(n) for n in (4999, 3, 1025, 300)] for _ in range(m)]
    for make in (ConFIGOperator, PCGradOperator, MGDAOperator):
        operator = make()
        operator.groups = "parameter"
        assert same_bits(lambda: torch.cat(operator.calculate_gradient(rows)), seed, monkeypatch)  # noqa: B023


@pytest.mark.usefixtures("_served")
@pytest.mark.parametrize("m", [3, 12, pytest.param(40, marks=slow)])
def test_momentum(m: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps with all gradients, then with one."""
    rows = torch.randn(m, 4999)

    def run() -> Tensor:
        operator = PseudoMomentumOperator(m)
        operator.calculate_gradient(list(range(m)), list(rows))
        return operator.calculate_gradient([m - 1], [rows[0]])

    assert same_bits(run, seed, monkeypatch)
