"""The host's time of an eager call: many calls that the device's queue holds, without a wait."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fastconfig import ConFIG_update, ConFIGOperator, backends, use_backend
from gpu.points import Machine, Points

GROUPS = "3 lists of 100, groups"
FORMS = ("tensor", "list of 3", "3 lists of 20", "3 lists of 150", GROUPS)
CALLS, ROWS, N = 200, 10, 10_000
WARM_UP = 30  # calls before the first timing
ROW = 0.05  # seconds that the calls of a row may take: a slow backend makes fewer


def run(points: Points, machine: Machine) -> None:
    for name, reason in backends.explain(machine.device):
        points.note(name, reason or "serves")
        if reason is None and name != "numba":  # which a dry run would wait for
            for form in FORMS[:2] if machine.dry else FORMS:
                point = points.run(f"{name}, {form}", lambda name=name, form=form: timed(name, form, machine))
                print(f"{name}, {form}: {point}", flush=True)


def timed(backend: str, form: str, machine: Machine) -> dict[str, Any]:
    warm_up, most, rows = (2, 5, 2) if machine.dry else (WARM_UP, CALLS, ROWS)
    grads, operator = inputs(form, machine.device), ConFIGOperator()
    operator.groups = "parameter"
    update = operator.calculate_gradient if form == GROUPS else ConFIG_update
    with use_backend(backend):
        row(update, grads, warm_up, machine)
        calls = max(3, min(most, int(ROW / row(update, grads, 3, machine))))
        times = [row(update, grads, calls, machine) for _ in range(rows)]
        wait(machine)
    return {"us": 1e6 * statistics.median(times), "calls": calls}


def row(update: Callable[[Any], Any], grads: Any, calls: int, machine: Machine) -> float:
    """Seconds a call, of calls that follow each other at once."""
    wait(machine)
    began = time.perf_counter()
    for _ in range(calls):
        update(grads)
    return (time.perf_counter() - began) / calls


def inputs(form: str, device: str) -> Any:
    rows = torch.randn(3, N, device=device)
    if form == "tensor":
        return rows
    if form == "list of 3":
        return list(rows)
    pieces = int(form.split()[3].rstrip(","))
    return [[piece.clone() for piece in row.split(-(-N // pieces))] for row in rows]


def wait(machine: Machine) -> None:
    if not machine.dry:
        torch.cuda.synchronize()
