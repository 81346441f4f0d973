"""``fastconfig bench --only methods``: every method beside TorchJD's and LibMTL's, G -> c and whole."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from .. import aggregation, environment, methods, ops
from ..methods.base import Rule, coefficients_of
from . import weightings
from .accuracy import Exact
from .cases import Inputs, Setting, make_inputs
from .plan import Options
from .results import finite
from .run import description
from .timing import Clock, Contestant, DeviceClock, HostClock, measure

M, N = (3, 8, 32), (10_000,)
SPREAD = 1e3  # between the lengths of the gradients that errors are taken on
_QUADRATIC, _NEWTON = {3: 3, 8: 15, 32: 300}, {3: 5, 8: 20, 32: 300}
#: µs of G -> c on one CPU core that a method may take, by m.
GOALS: dict[str, dict[int, int]] = {
    **dict.fromkeys(("UPGrad", "DualProj", "MGDA", "CAGrad", "AlignedMTL"), _QUADRATIC),
    **dict.fromkeys(("NashMTL", "FairGrad"), _NEWTON),
    "GradVac": {3: 3, 8: 6, 32: 40},
}


def settings_of(name: str, m: int) -> dict[str, Any]:
    """The arguments that have no default, for m gradients; Nash-MTL's update is not cut."""
    known: dict[str, dict[str, Any]] = {
        "CAGrad": {"c": 0.5},
        "Constant": {"weights": torch.arange(1.0, m + 1, device="cpu")},
        "FairGrad": {"alpha": 1.0},
        "Krum": {"n_byzantine": 0},
        "NashMTL": {"n_tasks": m, "max_norm": 0.0},
    }
    return known.get(name, {})


def bench_methods(options: Options, command: str, console: Console) -> dict[str, Any]:
    """All figures, ready for JSON: as :func:`fastconfig.bench.run.bench`, with "methods" for "settings"."""
    device = environment.find_device(options.device)
    clock: Clock = HostClock() if device.type == "cpu" else DeviceClock(device)
    found = weightings.find_weightings()
    numbers = description(options, device, command, [peer for peer, _ in found])
    others = {peer.name: maker for peer, maker in found if not peer.missing}
    numbers["methods"] = []
    dtype = (options.dtype or ("float32",))[0]
    try:
        for m in options.m or (M[:2] if options.quick else M):
            for n in options.n or N:
                setting = Setting(m, n, dtype, "tensor")
                console.print(f"{setting}", style="dim")
                numbers["methods"] += _of_setting(setting, options, device, clock, others)
    except KeyboardInterrupt:
        numbers["interrupted"] = f"{len(numbers['methods'])} rows were measured"
    return numbers


def _of_setting(
    setting: Setting,
    options: Options,
    device: torch.device,
    clock: Clock,
    others: dict[str, weightings.Maker],
) -> Iterator[dict[str, Any]]:
    rows: Any = make_inputs(setting, device).grads
    problem = _Problem(setting, rows)
    for kind in methods.METHODS.values():
        if hasattr(aggregation, kind):
            yield _row(kind, setting, options, clock, others, rows, problem)


class _Problem:
    """Gradients of length 1 and SPREAD in turn, for the errors; with the oracle's answers."""

    def __init__(self, setting: Setting, rows: Tensor) -> None:
        lengths = torch.ones(len(rows), 1, dtype=torch.float64, device=rows.device)
        lengths[1::2] = SPREAD
        self.rows = (rows * (lengths / rows.double().norm(dim=1, keepdim=True))).to(rows.dtype)
        self.gram = ops.gram(self.rows)
        self.r = Exact(setting, Inputs(self.rows, [list(self.rows)])).r

    def error(self, rule: Rule) -> float:
        """Of our coefficients; the oracle takes the rule's settings and its order."""
        given = {name: value for name, value in vars(rule).items() if name != "squares"}
        c = coefficients_of(rule, self.gram, self.rows.dtype)  # of a first call: a state starts anew
        return _relative(c.detach().to(self.r) @ self.r.T, self._exact(rule, given))

    def error_of(self, rule: Rule, merge: Callable[[], Tensor]) -> float:
        """Of another's update; the oracle's order is 0 to m - 1."""
        given = {name: value for name, value in vars(rule).items() if name not in ("squares", "order")}
        exact = torch.linalg.pinv(self.r) @ self._exact(rule, given) @ self.rows.double()
        with weightings.in_order():
            return _relative(merge().detach().double(), exact)

    def _exact(self, rule: Rule, given: dict[str, Any]) -> Tensor:
        """The paper's update of the gradients, as coordinates in the space that they span."""
        taken = inspect.signature(rule.oracle).parameters
        given = {name: value for name, value in given.items() if name in taken and value is not None}
        return type(rule).oracle(self.r.T, **given)


def _row(
    kind: str,
    setting: Setting,
    options: Options,
    clock: Clock,
    others: dict[str, weightings.Maker],
    rows: Tensor,
    problem: _Problem,
) -> dict[str, Any]:
    m, gram, given = setting.m, ops.gram(rows), settings_of(kind, setting.m)
    row: dict[str, Any] = {"method": kind, "m": m, "n": setting.n}
    if rows.device.type == "cpu" and m in GOALS.get(kind, ()):
        row["goal_us"] = GOALS[kind][m]
    if kind != "Random":
        row["error"] = finite(problem.error(_rule(_made(kind, given), gram)))
    aggregator = _made(kind, given)
    rule = _rule(aggregator, gram)
    row["native"] = rule.native is not None
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        ("", "us"): partial(coefficients_of, rule, gram, rows.dtype),
        ("", "merge_us"): partial(aggregator.calculate_gradient, rows),
    }
    theirs: dict[str, dict[str, Any]] = {}
    for name, maker in others.items():
        try:
            found = maker(kind, given, rows, gram)
            if not found:
                continue
            theirs[name] = {}
            if kind != "Random":
                fresh = maker(kind, given, problem.rows, problem.gram)["merge_us"]
                theirs[name]["error"] = finite(problem.error_of(_rule(_made(kind, given), gram), fresh))
            calls |= {(name, key): call for key, call in found.items()}
        except Exception as error:  # whatever keeps it from an answer is the figure
            theirs[name] = {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
    contestants = {
        key: Contestant(key[1], key[0], call, least=options.least, eager=bool(key[0]))
        for key, call in calls.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure(list(contestants.values()), clock, options.share / 2, lambda: None)
    for (name, key), contestant in contestants.items():
        (theirs[name] if name else row)[key] = 1e6 * contestant.median
    return row | {"peers": theirs}


def _made(kind: str, given: dict[str, Any]) -> aggregation.Aggregator:
    return getattr(aggregation, kind)(**given)


def _rule(aggregator: aggregation.Aggregator, gram: Tensor) -> Rule:
    operator = aggregator.gramian_weighting.operator
    return operator.fixed_rule or operator.rule_at((len(gram),), gram.device)


def _relative(found: Tensor, exact: Tensor) -> float:
    size = float(exact.norm())
    return float((found - exact).norm()) / size if size > 0 else float(found.norm())
