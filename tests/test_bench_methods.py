"""``fastconfig bench --only methods``: what it measures beside others' methods, and its table."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from test_bench import bench
from test_bench import short as short  # the fixture

from fastconfig.bench import methods_report, peers, weightings
from fastconfig.methods import METHODS


def test_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, numbers = bench("--only", "methods", "--m", "3", "--n", "64", "--dtype", "float64", out=tmp_path)
    assert code == 0
    assert {row["method"] for row in numbers["methods"]} == {*METHODS.values()}
    for row in numbers["methods"]:
        assert row["method"] == "Random" or row["error"] <= 1e-9
        assert row["us"] > 0
        assert row["merge_us"] > 0
    text = capsys.readouterr().out
    assert "G → c" in text
    assert all(row["method"] in text for row in numbers["methods"])


class Theirs(ModuleType):
    """Stands in for torchjd.aggregation: one method that is right, one that fails."""

    class Mean:
        def __call__(self, matrix: torch.Tensor) -> torch.Tensor:
            return matrix.mean(0)

    class MGDA:
        def __call__(self, matrix: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("no solver")


class Weighting:
    """LibMTL's base class, as far as the bench goes."""

    task_num: int
    _compute_grad: Callable[..., torch.Tensor]
    _reset_grad: Callable[[torch.Tensor], None]

    def init_param(self) -> None: ...


class Theirs2(ModuleType):
    """Stands in for LibMTL.weighting: one sets the gradients, one weighs the losses, one has an order."""

    class PCGrad(Weighting):
        def backward(self, losses: torch.Tensor, **kwargs: Any) -> None:
            grads = self._compute_grad(losses, mode="backward")
            order = list(range(self.task_num))
            random.shuffle(order)
            rows = [grads[i].clone() for i in range(self.task_num)]
            for row in rows:
                for j in order:
                    row -= (row @ grads[j]).clamp(max=0) / grads[j].square().sum() * grads[j]
            self._reset_grad(torch.stack(rows).sum(0))

    class EW(Weighting):
        def backward(self, losses: torch.Tensor, **kwargs: Any) -> None:
            losses.sum().backward()


def test_methods_beside_peers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", Theirs("torchjd.aggregation"))
    monkeypatch.setitem(sys.modules, "LibMTL.weighting", Theirs2("LibMTL.weighting"))
    made = {"torchjd": weightings.of_torchjd, "LibMTL": weightings.of_libmtl}
    there = [(peers.Peer(name, "0"), maker) for name, maker in made.items()]
    monkeypatch.setattr(weightings, "find_weightings", lambda: there)
    _, numbers = bench("--only", "methods", "--m", "3", "--n", "64", out=tmp_path)
    theirs = {row["method"]: row["peers"] for row in numbers["methods"]}
    assert theirs["Mean"]["torchjd"]["merge_us"] > 0
    assert theirs["Mean"]["torchjd"]["error"] <= 1e-6
    assert theirs["MGDA"] == {"torchjd": {"failure": "ArithmeticError: no solver"}}
    assert theirs["UPGrad"] == {}
    for name in ("PCGrad", "Sum"):
        assert theirs[name]["LibMTL"]["us"] > 0
        assert theirs[name]["LibMTL"]["error"] <= 1e-5  # in order, and for gradients of length 1 and 1000
    text = capsys.readouterr().out
    assert "torchjd MGDA: ArithmeticError" in text
    assert "goal" in text


def test_methods_fit_a_narrow_terminal() -> None:
    row = {
        "method": "AlignedMTL",
        "us": 123.4,
        "merge_us": 1234.5,
        "goal_us": 300,
        "error": 1e-15,
        "peers": {name: {"us": 1.2e6, "merge_us": 1.2e6, "error": 1e-7} for name in ("torchjd", "LibMTL")},
    }
    console = Console(width=80, file=io.StringIO())
    console.print(methods_report.methods_table("m = 32", [row], narrow=True))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    wanted = ("AlignedMTL", "123", "300", "9,724", "1,234", "972", "1e-15", "1e-07")
    assert [cell for cell in wanted if cell not in lines[-1]] == []
