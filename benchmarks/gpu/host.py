"""The host's time of an eager call: many calls that the device's queue holds, without a wait."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from fastconfig import ConFIG_update, backends, use_backend
from gpu.points import Machine, Points

FORMS = ("tensor", "list of 3", "3 lists of 20", "3 lists of 150")
CALLS, ROWS, N = 200, 10, 10_000


def run(points: Points, machine: Machine) -> None:
    for name, reason in backends.explain(machine.device):
        points.note(name, reason or "serves")
        if reason is None and name != "numba":  # which a dry run would wait for
            for form in FORMS[:2] if machine.dry else FORMS:
                point = points.run(f"{name}, {form}", lambda name=name, form=form: timed(name, form, machine))
                print(f"{name}, {form}: {point}", flush=True)


def timed(backend: str, form: str, machine: Machine) -> dict[str, Any]:
    calls, rows = (5, 2) if machine.dry else (CALLS, ROWS)
    grads, times = inputs(form, machine.device), []
    with use_backend(backend):
        ConFIG_update(grads)
        for _ in range(rows):
            wait(machine)
            began = time.perf_counter()
            for _ in range(calls):
                ConFIG_update(grads)
            times.append((time.perf_counter() - began) / calls)
        wait(machine)
    return {"us": 1e6 * statistics.median(times)}


def inputs(form: str, device: str) -> Any:
    rows = torch.randn(3, N, device=device)
    if form == "tensor":
        return rows
    if form == "list of 3":
        return list(rows)
    pieces = int(form.split()[-1])
    return [[piece.clone() for piece in row.split(-(-N // pieces))] for row in rows]


def wait(machine: Machine) -> None:
    if not machine.dry:
        torch.cuda.synchronize()
