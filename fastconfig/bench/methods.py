"""``fastconfig bench --only methods``: every method beside TorchJD's of the same name, G -> c and whole."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import aggregation, environment, methods, ops
from ..methods.base import Rule, coefficients_of
from . import peers
from .accuracy import Exact
from .cases import Setting, make_inputs
from .plan import Options
from .report import figure, origin
from .results import finite
from .run import description
from .timing import Clock, Contestant, DeviceClock, HostClock, measure

M, N = (3, 8, 32), (10_000,)
DRAWS = ("PCGrad", "GradVac", "Random")  # in an order, or with weights, of their own each time
CAPTION = (
    "µs of one call: G -> c from a Gram matrix that is there, merge from the gradients to the update. "
    "×: how many times faster than TorchJD. error: of the merged gradient by the paper's formula in "
    "float64, relative; (draws): random, not compared."
)


def settings_of(name: str, m: int) -> dict[str, Any]:
    """The arguments that have no default, for m gradients."""
    known: dict[str, dict[str, Any]] = {
        "CAGrad": {"c": 0.5},
        "Constant": {"weights": torch.arange(1.0, m + 1, device="cpu")},
        "FairGrad": {"alpha": 1.0},
        "Krum": {"n_byzantine": 0},
        "NashMTL": {"n_tasks": m},
    }
    return known.get(name, {})


def bench_methods(options: Options, command: str, console: Console) -> dict[str, Any]:
    """All figures, ready for JSON: as :func:`fastconfig.bench.run.bench`, with "methods" for "settings"."""
    device = environment.find_device(options.device)
    clock: Clock = HostClock() if device.type == "cpu" else DeviceClock(device)
    numbers = description(options, device, command, peers.find_peers())
    theirs = import_module("torchjd.aggregation") if numbers["peers"]["torchjd"] == "installed" else None
    numbers["methods"] = []
    dtype = (options.dtype or ("float32",))[0]
    try:
        for m in options.m or (M[:2] if options.quick else M):
            for n in options.n or N:
                setting = Setting(m, n, dtype, "tensor")
                console.print(f"{setting}", style="dim")
                numbers["methods"] += _of_setting(setting, options, device, clock, theirs)
    except KeyboardInterrupt:
        numbers["interrupted"] = f"{len(numbers['methods'])} rows were measured"
    return numbers


def _of_setting(
    setting: Setting, options: Options, device: torch.device, clock: Clock, theirs: Any
) -> Iterator[dict[str, Any]]:
    inputs = make_inputs(setting, device)
    rows: Any = inputs.grads
    exact = Exact(setting, inputs)
    gram = ops.gram(rows)
    for kind in methods.METHODS.values():
        if hasattr(aggregation, kind):
            yield _row(kind, setting, options, clock, theirs, rows, gram, exact)


def _row(
    kind: str,
    setting: Setting,
    options: Options,
    clock: Clock,
    theirs: Any,
    rows: Tensor,
    gram: Tensor,
    exact: Exact,
) -> dict[str, Any]:
    given = settings_of(kind, setting.m)
    aggregator = getattr(aggregation, kind)(**given)
    operator = aggregator.gramian_weighting.operator
    rule = operator.fixed_rule or operator.rule_at((setting.m,), gram.device)
    wanted = partial(_oracle, rule, exact.r.T)  # of a first call: a state starts anew
    row: dict[str, Any] = {"method": kind, "m": setting.m, "n": setting.n, "native": rule.native is not None}
    if kind != "Random":
        row["error"] = finite(_error(exact.r, coefficients_of(rule, gram, rows.dtype), wanted()))
    calls: dict[str, Callable[[], Any]] = {
        "ours_us": partial(coefficients_of, rule, gram, rows.dtype),
        "ours_merge_us": partial(aggregator.calculate_gradient, rows),
    }
    if theirs is not None and hasattr(theirs, kind):
        try:
            calls |= _their_calls(theirs, kind, given, rows, gram.to(rows.dtype))
            if kind not in DRAWS:
                row["their_error"] = finite(_their_error(calls, rows, exact, wanted()))
        except Exception as error:  # whatever keeps it from an answer is the figure
            row["their_failure"] = f"{type(error).__name__}: {error}".splitlines()[0]
            calls = {name: call for name, call in calls.items() if name.startswith("ours")}
    contestants = [
        Contestant(name, name, call, least=options.least, eager=name.startswith("theirs"))
        for name, call in calls.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure(contestants, clock, options.share / 2, lambda: None)
    return row | {contestant.name: 1e6 * contestant.median for contestant in contestants}


def _their_calls(theirs: Any, kind: str, given: dict[str, Any], rows: Tensor, gram: Tensor) -> dict[str, Any]:
    if kind == "Constant":
        given = {"weights": given["weights"].to(rows)}
    calls: dict[str, Any] = {"theirs_merge_us": partial(getattr(theirs, kind)(**given), rows)}
    weighting = getattr(theirs, f"{kind}Weighting", None)
    if weighting is not None:
        calls["theirs_us"] = partial(weighting(**given), gram)
    return calls


def _oracle(rule: Rule, rows: Tensor) -> Tensor:
    """The paper's update of rows, with the settings of the rule."""
    taken = inspect.signature(rule.oracle).parameters
    given = {name: value for name, value in vars(rule).items() if name in taken and value is not None}
    given.pop("squares", None)
    return type(rule).oracle(rows, **given)


def _error(r: Tensor, c: Tensor, exact: Tensor) -> float:
    return _relative(c.detach().to(r) @ r.T, exact)


def _their_error(calls: dict[str, Callable[[], Any]], rows: Tensor, exact: Exact, wanted: Tensor) -> float:
    """By their weights, as ours; by their update where they have none."""
    if "theirs_us" in calls:
        return _error(exact.r, calls["theirs_us"](), wanted)
    update = torch.linalg.pinv(exact.r) @ wanted @ rows.double()
    return _relative(calls["theirs_merge_us"]().double(), update)


def _relative(found: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((found - exact).norm()) / size if size > 0 else float(found.norm())


def methods_table(numbers: dict[str, Any]) -> Table:
    table = Table(title="methods", title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("method", "m", "N", "G → c", "torchjd", "×", "merge", "torchjd", "×", "error", "torchjd's"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in numbers["methods"]:
        cells = [row["method"], str(row["m"]), f"{row['n']:,}"]
        for stage in ("", "_merge"):
            ours, theirs = row[f"ours{stage}_us"], row.get(f"theirs{stage}_us")
            cells += [figure(ours), figure(theirs), "" if theirs is None else f"{figure(theirs / ours)}×"]
        cells.append(_shown(row.get("error"), "error" in row))
        failed = "fails" if "their_failure" in row else ""
        drawn = "(draws)" if row["method"] in DRAWS and "theirs_merge_us" in row else ""
        cells.append(failed or drawn or _shown(row.get("their_error"), "their_error" in row))
        table.add_row(*cells)
    return table


def _shown(error: float | None, compared: bool) -> str:
    if not compared:
        return ""
    return "nan" if error is None or not math.isfinite(error) else f"{error:.0e}"


def print_methods(numbers: dict[str, Any], console: Console) -> None:
    """Origin, the table, and why a peer's method took no part."""
    console.print(origin(numbers), methods_table(numbers), sep="\n")
    console.print(CAPTION, style="dim")
    if numbers["peers"]["torchjd"] != "installed":
        console.print(f"torchjd: {numbers['peers']['torchjd']}")
    for failure in dict.fromkeys(
        f"torchjd {row['method']}: {row['their_failure']}"
        for row in numbers["methods"]
        if "their_failure" in row
    ):
        console.print(failure, soft_wrap=True, highlight=False)
