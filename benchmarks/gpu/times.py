"""Times in the form of ``fastconfig bench``: ours as CUDA graphs, then peers beside ours, all eager."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch

from fastconfig import GramOperator
from fastconfig.backends import use_backend
from fastconfig.bench.accuracy import Exact
from fastconfig.bench.cases import Inputs, Setting, make_inputs, our_calls, updates
from fastconfig.bench.floor import fastest, floor_contestants
from fastconfig.bench.momentum import MOMENTUM
from fastconfig.bench.peers import find_peers
from fastconfig.bench.plan import Options
from fastconfig.bench.results import our_figures, peer_figures
from fastconfig.bench.run import admitted, available_memory, check, peer_contestants
from fastconfig.bench.timing import GRAPH, Clock, Contestant, DeviceClock, HostClock, measure
from fastconfig.methods import RULES, native_coefficients
from gpu import grouped
from gpu.points import AGAIN, Machine, Points

M, N = (3, 8, 32), (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
MAIN = ("ConFIG_update", "gram", "combine")
LARGEST_QR = 1_000_000  # elements up to which the oracle orthogonalises the rows themselves
SHARE = 0.08  # seconds a contestant
LEAST = 15  # samples of ours
ABOUT = 1e-4  # float32 updates of rows that conflict, beside compiled code on the host
FEW = ("config", "upgrad", "dualproj")  # what takes one launch or two for up to 4 gradients
EAGER = ("random",)  # which draw on the host
EACH = 0.03  # seconds a method, where all of them are timed
BEYOND = 171_798_203  # elements at which others' 3 N or stacked copies exceed 32-bit sizes


class ByGram(Exact):
    """For long rows: R by Cholesky from G, which is summed in float64. Good to 1e-13 on these rows."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        self.dtype, self.segments = setting.torch_dtype, inputs.segments
        self.gram = sum(block @ block.T for block in self._blocks())
        self.r = torch.linalg.cholesky(self.gram).T
        self._coefficients, self._updates = {}, {}


def ours(points: Points, machine: Machine) -> None:
    backend = "pytorch" if machine.dry else "cuda"
    for setting, operations in of_ours(machine):
        take(points, machine, setting, operations, backend)
        if setting == (Setting(3, 1000) if machine.dry else Setting(M[-1], N[1])):
            for m in M[:1] if machine.dry else (*M, 64):
                some_methods(points, machine, Setting(m, setting.n), backend, tuple(RULES))
            for m, n in () if machine.dry else product((2, 3, 4), (N[0], N[1], N[3])):
                some_methods(points, machine, Setting(m, n), backend, FEW)
            groups(points, machine, backend)


def groups(points: Points, machine: Machine, backend: str) -> None:
    """Merges of many groups of parameters."""
    for shape in ((3, 2, 100),) if machine.dry else grouped.TIMED:
        name = "m = {}, {} groups of {}".format(*shape)
        found = points.run(name, lambda shape=shape: grouped.timed(*shape, machine, backend))
        if found.get("uncaptured"):
            raise SystemExit(AGAIN)


def of_ours(machine: Machine) -> Iterator[tuple[Setting, tuple[str, ...]]]:
    """The main table first, small sizes before large ones; then what differs in one thing."""
    if machine.dry:
        yield Setting(3, 1000), MAIN
        yield Setting(3, 1000, form="parameters"), (*updates(), MOMENTUM)
        return
    for n in N:
        for m in M:
            yield Setting(m, n), MAIN
    for m in (3, 8):
        for n in (1_000_000, 10_000_000):
            yield Setting(m, n, "bfloat16"), MAIN
    for n in (10_000, 1_000_000, 10_000_000):
        yield Setting(3, n, form="parameters"), (*updates(), MOMENTUM)
    for m, n in ((3, 1_000_001), (3, 10_000_001), (8, 10_000_001), (32, 1_000_001)):
        yield Setting(m, n, form="tensor"), MAIN  # rows at odd addresses
    for m in (2, 4, 5, 6, 7, 12, 16, 24, 48, 64):
        for n in (10_000, 10_000_000):
            yield Setting(m, n), ("ConFIG_update",)
    for n in (N[1], N[2], N[4]):
        yield Setting(2, n), ("ConFIG_update",)
    yield Setting(3, BEYOND), MAIN[:1]
    for m in (3, 8):
        yield Setting(m, 10_000_000, "float64"), MAIN
        yield Setting(m, 10_000_000, "float16"), MAIN


def some_methods(
    points: Points, machine: Machine, setting: Setting, backend: str, names: tuple[str, ...]
) -> None:
    """Of each method a merge as a graph's replay; of those that draw, or wait for the host, call by call."""
    found = points.run(f"methods, {setting}", lambda: of_methods(setting, backend, machine, names))
    for row in found.get("methods", ()):
        wrong = "" if row["right"] else f", WRONG: error {row['error']}"
        print(f"{setting}: {row['method']} {row['median_us']:,.1f} us, {row['note']}{wrong}", flush=True)
    if found.get("uncaptured"):
        raise SystemExit(AGAIN)


def of_methods(setting: Setting, backend: str, machine: Machine, names: tuple[str, ...]) -> dict[str, Any]:
    device, clock = torch.device(machine.device), clock_of(machine)
    inputs = make_inputs(setting, device)
    exact, running, rows = oracle(setting, inputs), [], []
    for name in names:
        kind = RULES[name]
        rule = kind([1.0] * setting.m) if name == "constant" else kind()
        call = partial(GramOperator(rule).calculate_gradient, inputs.grads)
        one = contestant(name, call, backend)
        one.eager = name in EAGER
        running.append(one)
        if rule.native is not None:
            c = native_coefficients(exact.gram.cpu(), rule, setting.torch_dtype).to(device)
            wanted = sum(c_i * row.double() for c_i, row in zip(c, inputs.segments[0], strict=True))
            error = float((clock.once(one)[1].double() - wanted).norm() / wanted.norm())
            rows.append({"error": error, "right": error <= ABOUT})
        else:
            rows.append({"error": None, "right": True})
    measure(running, clock, EACH, lambda: None)
    for one, row in zip(running, rows, strict=True):
        row |= {"method": one.operation, "m": setting.m, "n": setting.n, "backend": backend}
        row |= {"median_us": 1e6 * one.median, "note": one.note}
        if one.warm:
            row["warm_us"] = 1e6 * median(one.warm)
    uncaptured = [one.operation for one in running if not (machine.dry or one.eager or one.note == GRAPH)]
    return {"methods": rows, "uncaptured": uncaptured}


def triton(points: Points, machine: Machine) -> None:
    backend = "pytorch" if machine.dry else "triton"
    for n in (1000,) if machine.dry else (10_000, 1_000_000, 10_000_000):
        for m in M[:1] if machine.dry else M:
            take(points, machine, Setting(m, n), MAIN[:1], backend)


def take(
    points: Points, machine: Machine, setting: Setting, operations: tuple[str, ...], backend: str
) -> None:
    """A point; the process starts again behind one whose capture failed."""
    if str(setting) in points.found["points"]:
        return
    found = points.run(str(setting), lambda: timed(setting, operations, backend, machine))
    for row in found.get("results", ()):
        print(line(setting, row, copy_speed(machine)), flush=True)
    if found.get("uncaptured"):
        raise SystemExit(AGAIN)


def timed(setting: Setting, operations: tuple[str, ...], backend: str, machine: Machine) -> dict[str, Any]:
    """Of one setting what ``fastconfig bench`` tells of it, without peers."""
    device, clock = torch.device(machine.device), clock_of(machine)
    size = setting.m * setting.row_bytes
    if 2.5 * size > available_memory(device):
        reason = f"two and a half times the gradients' {size / 2**30:.1f} GiB is more than what is free"
        return {"setting": asdict(setting), "skipped": [{"name": "fastconfig", "reason": reason}]}
    inputs = make_inputs(setting, device)
    exact = oracle(setting, inputs)
    calls = our_calls(setting, inputs, backend, exact.gram, exact.coefficients("config"))
    running = [contestant(name, calls[name], backend) for name in operations]
    errors: dict[int, float] = {}
    for one in running:
        check(one, exact, clock.once(one)[1], errors)
    floors = floor_contestants(setting, inputs, device, LEAST, MOMENTUM in operations)
    measure([*running, *floors], clock, SHARE, lambda: None)
    best, copy = fastest(floors), copy_speed(machine)
    rows = [our_figures(c, setting, errors[id(c)], exact.bound(c.operation), best, []) for c in running]
    for row in rows:
        row["percent_of_copy"] = 100 * row["gb_s"] / copy if copy else None
    oracle_of = "its Gram matrix" if isinstance(exact, ByGram) else "the rows"
    return {
        "setting": asdict(setting),
        "floor": best.numbers(),
        "results": rows,
        "peers": [],
        "skipped": [],
        "oracle": oracle_of,
        "uncaptured": [] if machine.dry else [c.name for c in (*running, *floors) if c.note != GRAPH],
    }


def peers(points: Points, machine: Machine) -> None:
    found = find_peers()
    points.note("versions", {peer.name: peer.version for peer in found})
    points.note("peers", {peer.name: peer.missing or "installed" for peer in found})
    settings = [Setting(m, n) for n in N[:4] for m in M] + [Setting(3, BEYOND)]
    for setting in [Setting(3, 1000)] if machine.dry else settings:
        told = points.run(str(setting), lambda setting=setting: beside_peers(setting, machine))
        for row in told.get("peers", ()):
            theirs, us = row["median_us"], told["eager_us"]
            print(f"{setting}: {row['name']} {theirs:,.1f} us, ours {us:,.1f} us, all eager", flush=True)


def beside_peers(setting: Setting, machine: Machine) -> dict[str, Any]:
    """Everybody's ConFIG update call by call; nobody's is captured."""
    device, clock = torch.device(machine.device), clock_of(machine)
    backend, operation = ("pytorch" if machine.dry else "cuda"), MAIN[0]
    options = Options(quick=True, device=machine.device)
    inputs = make_inputs(setting, device)
    exact = oracle(setting, inputs)
    skipped: list[dict[str, Any]] = []
    us = replace(contestant(operation, our_calls(
        setting, inputs, backend, exact.gram, exact.coefficients("config")
    )[operation], backend), eager=True)  # fmt: skip
    theirs = peer_contestants(setting, inputs, {operation}, options, find_peers(), device, skipped)
    errors: dict[int, float] = {}
    running = [c for c in (us, *theirs) if admitted(c, exact, clock, options, errors, skipped)]
    measure(running, clock, SHARE, lambda: None)
    bound = exact.bound(operation)
    rows = [peer_figures(c, errors.get(id(c)), bound) for c in running if c is not us]
    return {
        "setting": asdict(setting),
        "operation": operation,
        "eager_us": 1e6 * us.median,
        "peers": rows,
        "skipped": skipped,
    }


def clock_of(machine: Machine) -> Clock:
    return HostClock() if machine.dry else DeviceClock(torch.device(machine.device))


def contestant(name: str, call: Any, backend: str) -> Contestant:
    answer = getattr(call, "answer", None)
    return Contestant(
        name, "fastconfig", call, backend, least=LEAST, around=partial(use_backend, backend), answer=answer
    )


def oracle(setting: Setting, inputs: Inputs) -> Exact:
    return (ByGram if setting.n > LARGEST_QR else Exact)(setting, inputs)


def copy_speed(machine: Machine) -> float | None:
    """GB/s of the copy of the most bytes, which no cache holds; None where it could not be taken."""
    try:
        text = (machine.work / "steps" / "ceilings.json").read_text(encoding="utf-8")
    except OSError:
        return None
    copies = [point for point in json.loads(text)["points"].values() if "copy_gb_s" in point]
    return max(copies, key=lambda point: point["bytes"])["copy_gb_s"] if copies else None


def goal(setting: Setting, row: dict[str, Any]) -> list[str]:
    """What an update of three float32 vectors shall reach."""
    asked = (setting.m, setting.dtype, setting.form) == (3, "float32", "vectors")
    if not asked or row["operation"] != MAIN[0] or row["backend"] != "cuda":
        return []
    return ["goal 6 us"] if setting.n <= 100_000 else ["goal 95 %"] if setting.n >= 10_000_000 else []


def line(setting: Setting, row: dict[str, Any], copy: float | None) -> str:
    """A point for people."""
    parts = [f"{setting}: {row['operation']} {row['median_us']:,.1f} us"]
    if "warm_us" in row:
        parts.append(f"warm {row['warm_us']:,.1f} us")
    if copy and row["gb_s"]:
        parts.append(f"{row['gb_s']:,.0f} GB/s, {100 * row['gb_s'] / copy:.0f} % of copy")
    parts += goal(setting, row)
    if not row["right"]:
        parts.append(f"WRONG: error {row['error']}, bound {row['bound']:.1e}")
    return ", ".join([*parts, row["note"]] if row["note"] not in ("", GRAPH) else parts)
