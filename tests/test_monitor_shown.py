"""A monitor's summary, pictures, page, loggers and check say what the figures say."""

from __future__ import annotations

import json
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastconfig
from fastconfig.cli import main
from fastconfig.monitor import (
    AccelerateTrackers,
    JSONLines,
    Monitor,
    TensorBoard,
    WandB,
    check,
    lightning_callback,
    pairs,
)
from fastconfig.monitor.figures import of
from fastconfig.monitor.picture import draw, series
from fastconfig.monitor.summary import summarize


def monitor_of(steps: list[Tensor], names: Any = None, operator: Any = None) -> Monitor:
    operator = operator or fastconfig.ConFIGOperator()
    operator.monitor = monitor = Monitor(names)
    for rows in steps:
        operator.calculate_gradient(list(rows))
    return monitor


def plane(*degrees: float, lengths: tuple[float, ...] = (1, 1, 1)) -> Tensor:
    """Gradients in a plane, in directions that are given."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor(lengths[: len(degrees)])[:, None]


def test_summary_of_conflict() -> None:
    steps = [plane(0, 120, 60)] * 3 + [plane(0, 60, 30)]
    summary = monitor_of(steps, ["a", "b", "c"], fastconfig.SumOperator()).summary()
    assert summary.pairs[0][:2] == ("a, b", 0.75)
    assert summary.pairs[0][2:] == pytest.approx((-0.25, -0.5))
    said = str(summary)
    assert "conflict between a and b in 75 % of the steps" in said
    assert "points against no gradient" in said
    long = monitor_of([plane(0, 120, lengths=(1, 10))], ["a", "b"], fastconfig.SumOperator()).summary()
    assert "The gradient of b is the longest in 100 % of the steps, and the longest is 10 times" in str(
        long
    ).replace("\n", " ")
    assert "The update points against a in 100 % of the steps." in str(long)
    assert long.losses[1][1:] == pytest.approx((10, 1, 1, 0))


def test_summary_of_agreement() -> None:
    said = str(monitor_of([plane(0, 30, 60)] * 5).summary())
    assert "they agree, and a plain sum will do" in said
    assert "similar lengths" in said
    hardly = monitor_of([plane(0, 30)] * 99 + [plane(0, 100)], ["a", "b"])
    assert "Losses hardly conflict, a and b in 1.0 % of the steps" in str(hardly.summary())


def test_summary_of_odd_runs() -> None:
    assert "no step was kept" in str(Monitor().summary())
    bad = [plane(0, 120) / 0]
    assert "no step had finite gradients" in str(monitor_of(bad).summary())
    assert "1 more step had gradients with NaN or Inf, and is left out" in str(
        monitor_of([plane(0, 120), *bad]).summary()
    ).replace("\n", " ")
    odd = str(monitor_of([plane(0, 60, lengths=(1, 0))]).summary()).replace("\n", " ")
    assert "beside one that is zero" in odd
    assert "points against no gradient" in str(monitor_of([plane(0)]).summary())


def history(m: int, count: int) -> tuple[dict[str, Any], list[str]]:
    """Of random Gram matrices."""
    rows = torch.randn(count, m, 9, dtype=torch.float64)
    gram = (rows @ rows.mT).numpy()
    figures = of(np.arange(count, dtype=float), gram, np.ones((count, m)), np.full((count, m), np.nan))
    return figures, [f"_loss ${i}$ <b>" for i in range(m)]


@pytest.mark.parametrize(("m", "count"), [(1, 1), (3, 50), (12, 600)])
def test_pictures(m: int, count: int, tmp_path: Path) -> None:
    """Every panel has its lines; names that are markup are shown as they are."""
    figures, names = history(m, count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(figures, names)
        figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    panels = figure.get_axes()
    lines = min(m, 6)
    assert [len(panel.lines) for panel in panels[2:4]] == [lines] * 2
    styles = [(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in panels[2].lines]
    colours, _, marks = zip(*styles, strict=True)
    assert len(set(colours)) == len(set(marks)) == lines  # also in grey
    first = panels[2].lines[0]
    if count <= 240:
        np.testing.assert_array_equal(first.get_ydata(), figures["norms"][:, 0])
    text = " ".join(t.get_text() for t in figure.findobj() if hasattr(t, "get_text"))
    if m > 1:
        assert f"{np.nanmean(figures['cosines'][:, 0]):+.2f}" in text
        assert summarize(figures, names).sentences[0][:20].replace("$", r"\$") in text.replace("\n", " ")


def test_long_runs_are_drawn_by_percentiles() -> None:
    values = np.stack([np.arange(1000.0), np.random.default_rng(0).random(1000)], 1)
    found = series(np.arange(1000), values)
    assert found.middle.shape == (60, 2)
    np.testing.assert_allclose(found.middle[:, 0], found.steps)
    np.testing.assert_allclose(found.high[3], np.percentile(values[50:66], 90, axis=0))
    values[50:66] = np.nan
    assert np.isnan(series(np.arange(1000), values).middle[3]).all()


class Page(HTMLParser):
    """Tags that are open, and what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        assert tag not in ("script", "link", "iframe", "img")
        assert str(given.get("xlink:href", "#")).startswith(("#", "data:"))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_command_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = monitor_of([plane(0, 120, 60)] * 4, ["a", "<b>", "c&d"])
    path = tmp_path / "run.npz"
    monitor.save(path)
    assert main(["plot", str(path)]) == 0
    assert "conflict between a and <b>" in capsys.readouterr().out
    assert main(["plot", str(path), "--html"]) == 0
    page = Page()
    page.feed((tmp_path / "run.html").read_text(encoding="utf-8"))
    assert not page.open
    assert page.cells[:4] == ["a, <b>", "100 %", "-0.50", "-0.50"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.html", "run.npz", "run.png"]
    for mistaken, message in (
        ([str(tmp_path / "none.npz")], "No such file"),
        ([str(tmp_path / "run.html")], "want a file that Monitor.save wrote"),
        ([str(path), "--html", "--out", "x.png"], "want a name that ends in .html"),
        ([str(path), "--group", "g"], "for a run without groups"),
    ):
        with pytest.raises(SystemExit):
            main(["plot", *mistaken])
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_the_command_draws_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    operator = fastconfig.ConFIGOperator()
    operator.groups = "parameter"
    operator.monitor = monitor = Monitor(["a", "b"])
    operator.calculate_gradient([[row[:1], row[1:]] for row in plane(10, 120)])
    monitor.save(tmp_path / "run.npz")
    assert main(["plot", str(tmp_path / "run.npz"), "--group", "0"]) == 0
    assert "conflict between a and b in 100 %" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plot", str(tmp_path / "run.npz")])
    assert "want one of 0, 1" in capsys.readouterr().err
    assert "0\n• There is conflict" in str(monitor.summary())


def test_json_lines_take_each_step_once(tmp_path: Path) -> None:
    monitor, path = Monitor(["a", "b"]), tmp_path / "run.jsonl"
    operator, logger = fastconfig.ConFIGOperator(), JSONLines(path)
    operator.monitor = monitor
    assert monitor.log(logger) == 0
    rows = [plane(0, 120), plane(0, 60, lengths=(1, 0)), plane(0, 30)]
    for each in rows[:2]:
        operator.calculate_gradient(each, [1.0, 2.0])
    assert monitor.log(logger) == 2
    operator.calculate_gradient(rows[2])
    assert [monitor.log(logger), monitor.log(logger)] == [1, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["cosine/a,b"] == pytest.approx(-0.5)
    assert lines[0]["loss/b"] == 2
    assert lines[1]["cosine/a,b"] is None
    assert "loss/b" not in lines[2]


class Kept:
    """A run, an accelerator or a writer that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def define_metric(self, *args: Any, **given: Any) -> None:
        pass

    def log(self, figures: dict[str, float], **given: Any) -> None:
        self.told.append((given.get("step", figures.get("gradients/step")), figures["gradients/cosine/a,b"]))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if name == "gradients/cosine/a,b":
            self.told.append((step, value))


@pytest.mark.parametrize("kind", [TensorBoard, WandB, AccelerateTrackers])
def test_loggers(kind: Any) -> None:
    kept = Kept()
    monitor_of([plane(0, 120), plane(0, 60)], ["a", "b"]).log(kind(kept))
    assert kept.told == [(0, pytest.approx(-0.5)), (1, pytest.approx(0.5))]
    with pytest.raises(TypeError, match="logger: got"):
        Monitor().log("run.jsonl")  # type: ignore[arg-type]


def test_lightning_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning itself, which takes seconds to import, has it in examples/lightning_monitor.py."""
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    callbacks = ModuleType("callbacks")
    callbacks.Callback = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning.pytorch.callbacks", callbacks)
    monitor = monitor_of([plane(0, 120)], ["a", "b"])
    logged: list[dict[str, float]] = []
    module = type("Module", (), {"log_dict": lambda self, figures: logged.append(figures)})()
    callback = lightning_callback(monitor, every=2)
    for batch in range(4):
        callback.on_train_batch_end(None, module, None, None, batch)
    assert len(logged) == 2
    assert logged[0]["gradients/cosine/a,b"] == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="every: got 0"):
        lightning_callback(monitor, every=0)


def test_check() -> None:
    """By module and over all; no gradient is written, and the graph is kept."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)

    def losses() -> list[Tensor]:
        y = net(x)[:, 0]
        return [y[0], -y[0] + 2 * y[1]]

    values = losses()
    found = check(net, values, ["a", "b"])
    parameters = list(net.parameters())
    grads = [torch.autograd.grad(v, parameters, retain_graph=True) for v in values]
    for name, cosines in found.modules.items():
        p = int(name)
        one, other = (row[p].reshape(-1) for row in grads)
        assert cosines[0, 1] == pytest.approx(float(one @ other / (one.norm() * other.norm())))
    rows = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in grads])
    cosine = float(rows[0] @ rows[1] / rows.norm(dim=1).prod())
    assert found.cosines[0, 1] == pytest.approx(cosine)
    assert found.conflict == (cosine < 0)
    assert ("There is conflict between a and b" if cosine < 0 else "a plain sum will do") in str(found)
    assert all(par.grad is None for par in parameters)
    agreeing = check(net, [values[0], 2 * values[0]])
    assert "Your losses agree: a plain sum will do." in str(agreeing)
    assert not agreeing.conflict
    opposed = check(net, [values[0], -3 * values[0]])
    assert "points against loss_0" in str(opposed)


@pytest.mark.parametrize(
    ("losses", "names", "message"),
    [(1, None, "losses: got 1, want at least 2"), (2, ["a"], "names: got 1, want 2")],
)
def test_check_refuses(losses: int, names: Any, message: str) -> None:
    net = nn.Linear(2, 1)
    value = net(torch.ones(1, 2)).sum()
    with pytest.raises(ValueError, match=message):
        check(net, [value] * losses, names)
    with pytest.raises(TypeError, match=r"model: got a list, want a torch\.nn\.Module"):
        check([net.weight], [value, value])  # type: ignore[arg-type]


def test_pairs() -> None:
    assert pairs(3) == [(0, 1), (0, 2), (1, 2)]
