"""Groups of parameters, and a monitor: right, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastconfig import GramOperator, reference
from fastconfig.bench.accuracy import Exact
from fastconfig.bench.cases import Inputs, Setting, make_inputs
from fastconfig.bench.timing import GRAPH, Contestant, measure
from fastconfig.grad_operator import ConFIGOperator, PCGradOperator, PPCGradOperator
from fastconfig.methods import MGDA, UPGrad
from fastconfig.monitor import Monitor
from gpu.points import Machine

SIZES = (50_003, 257, 4099, 1024, 20_011, 300)  # elements of the groups
OPERATORS: dict[str, Callable[[], Any]] = {
    "ConFIG_update": ConFIGOperator,
    "PCGradOperator": PCGradOperator,
    "PPCGradOperator": PPCGradOperator,
}
TIMED = ((3, 100, 1000), (3, 100, 10_000), (8, 100, 10_000), (32, 100, 10_000), (3, 100, 100_000))
STEPS = 4  # of a monitor
SHARE = 0.03  # seconds a contestant


def grouped(operator: Any) -> Any:
    operator.groups = "parameter"
    return operator


def updates(m: int, dtype: str, machine: Machine) -> Iterator[tuple[str, float]]:
    """Errors of groups over their bounds; half of the groups at odd addresses."""
    settings = [Setting(m, n, dtype) for n in (SIZES[:2] if machine.dry else SIZES)]
    columns: list[list[Tensor]] = [list(make_inputs(s, torch.device("cpu")).segments[0]) for s in settings]
    exact = [Exact(s, Inputs(rows, [rows])) for s, rows in zip(settings, columns, strict=True)]
    placed = [
        [odd(row.to(machine.device)) if p % 2 else row.to(machine.device) for row in rows]
        for p, rows in enumerate(columns)
    ]
    for name, make in OPERATORS.items():
        update = grouped(make()).calculate_gradient([list(row) for row in zip(*placed, strict=True)])
        for one, piece in zip(exact, update, strict=True):
            yield f"groups, {name}, N = {piece.numel()}", one.error(name, piece.cpu()) / one.bound(name)


def odd(row: Tensor) -> Tensor:
    return torch.cat([row[:1], row])[1:]


def iterating(machine: Machine) -> Iterator[tuple[str, float]]:
    """Errors of groups over 1e-8, by methods that iterate."""
    for m in (3, 9):
        columns = [make_inputs(Setting(m, n, "float64"), torch.device("cpu")).segments[0] for n in SIZES[1:3]]
        for rule in (UPGrad, MGDA):
            rows = [[column[i].to(machine.device) for column in columns] for i in range(m)]
            update = grouped(GramOperator(rule())).calculate_gradient(rows)
            for column, piece in zip(columns, update, strict=True):
                wanted = rule.oracle(torch.stack(list(column)))
                error = float((piece.cpu() - wanted).norm() / wanted.norm())
                yield f"groups, {rule.__name__}, m = {m}, N = {len(wanted)}", error / 1e-8


def watched(machine: Machine) -> dict[str, Any]:
    """A monitor's figures beside those of the rows; on a GPU half of the steps are replays of a graph.

    Raises:
        RuntimeError: naming the figures that are wrong.
    """
    operator, rows = ConFIGOperator(), torch.empty(3, 5003, dtype=torch.float64, device=machine.device)
    operator.monitor = monitor = Monitor()
    wanted: list[Tensor] = []

    def refill() -> None:
        rows.normal_()
        full = rows.cpu()
        update = reference.config(full)
        norms, units = full.norm(dim=1), torch.nn.functional.normalize(full)
        along = units @ update / update.norm()
        wanted.append(torch.stack([norms, (units @ units.T)[[0, 0, 1], [1, 2, 2]], along]))

    def step() -> None:
        operator.calculate_gradient(list(rows))

    for _ in range(STEPS):
        refill()
        step()
    if not machine.dry:
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            step()
        for _ in range(STEPS):
            refill()
            graph.replay()
    history = monitor.history()
    names = ("norms", "cosines", "update_cosines")
    found = np.stack([history[name] for name in names], 1)
    if len(found) != len(wanted):
        raise RuntimeError(f"{len(found)} steps, want {len(wanted)}")
    errors = np.abs(found - torch.stack(wanted).numpy()).max((0, 2)) / (1e3, 1, 1)
    wrong = [f"{name}: error {error:.3g}" for name, error in zip(names, errors, strict=True) if error > 1e-10]
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return {"largest_error": float(errors.max()), "steps": len(found)}


def timed(m: int, groups: int, n: int, machine: Machine, backend: str) -> dict[str, Any]:
    """A merge of so many groups of n elements, the same as one group, call by call, and with a monitor."""
    from gpu.times import clock_of, contestant

    rows = [[torch.randn(n, device=machine.device) for _ in range(groups)] for _ in range(m)]
    one, several, told = ConFIGOperator(), grouped(ConFIGOperator()), ConFIGOperator()
    told.monitor = Monitor()
    columns = [[[row[p]] for row in rows] for p in range(groups)]
    told.calculate_gradient(rows)  # before a capture

    def apart() -> Any:
        return [one.calculate_gradient(column)[0] for column in columns]

    calls: dict[str, Callable[[], Any]] = {
        "groups": partial(several.calculate_gradient, rows),
        "one group": partial(one.calculate_gradient, rows),
        "one group, monitor": partial(told.calculate_gradient, rows),
        "a call a group": apart,
    }
    running: list[Contestant] = [contestant(name, call, backend) for name, call in calls.items()]
    clock = clock_of(machine)
    for contender in running:
        clock.once(contender)
    measure(running, clock, SHARE, lambda: None)
    found: dict[str, Any] = {c.operation: {"us": 1e6 * c.median, "note": c.note} for c in running}
    for c in running:
        if c.warm:
            found[c.operation]["warm_us"] = 1e6 * median(c.warm)
    print(f"m = {m}, {groups} groups of {n}: {found}", flush=True)
    uncaptured = [c.operation for c in running if not (machine.dry or c.note == GRAPH)]
    return {"times": found, "bytes": (2 * m + 1) * groups * n * 4, "uncaptured": uncaptured}
