"""``fastconfig bench``: options -> figures of every setting, with a progress bar."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import environment
from ..backends import BackendUnavailable, load, use_backend
from ..gradients import Gradients
from . import cases, floor, memory, peers, plan
from .accuracy import Exact
from .cases import Inputs, Setting, passes
from .momentum import MOMENTUM
from .plan import Options
from .results import our_figures, peer_figures
from .timing import Clock, Contestant, DeviceClock, HostClock, measure

FORMAT = 1
FEW = 5  # samples at least of a backend that is not the default
PROBE = 64  # a peer is first tried on this fraction of a large N
LARGE = 1_000_000
ROOM = 6  # a peer may need this many times the memory of the gradients
CHECK_AGAIN_BELOW = 1.0  # seconds: the result of a shorter call is checked once more at the end


def bench(
    options: Options,
    command: str,
    console: Console,
    save: Callable[[dict[str, Any]], None] = lambda numbers: None,
) -> dict[str, Any]:
    """Run everything and return all figures, ready for JSON.

    After Ctrl-C these are the figures so far, with "interrupted": how far it came.

    Args:
        options: what to run.
        command: how the run was started.
        console: where the progress bar goes.
        save: is given the figures so far after every setting.

    Raises:
        ValueError: for a device or a backend that does not exist.
        BackendUnavailable: for a backend that cannot run here.
    """
    device = environment.find_device(options.device)
    chosen = plan.settings(options)
    order = plan.backends(options, device.type)
    found = peers.find_peers()
    console.print(f"{len(chosen)} settings, {plan.expected(options, chosen, order)}", style="dim")
    numbers = description(options, device, command, found)
    clock: Clock = HostClock() if device.type == "cpu" else DeviceClock(device)
    began = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # redrawn between rounds only: a thread that draws would take time from what is timed
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("bandwidth", total=len(chosen) + 1 + options.memory)
        redraw = partial(_redraw, progress, [0.0])
        progress.refresh()
        try:
            numbers["bandwidth"] = floor.bandwidths(clock, device, redraw)
            for setting in chosen:
                progress.update(task, advance=1, description=str(setting), refresh=True)
                numbers["settings"].append(run_setting(setting, options, device, clock, order, found, redraw))
                save(numbers)
            progress.update(task, advance=1, description="memory", refresh=True)
            if options.memory:
                add_memory(numbers["settings"], options, redraw)
                progress.update(task, advance=1, refresh=True)
        except KeyboardInterrupt:
            numbers["interrupted"] = f"{len(numbers['settings'])} of {len(chosen)} settings were measured"
    numbers["seconds"] = time.perf_counter() - began
    numbers["machine"]["load_after"] = _load()
    return numbers


def _redraw(progress: Progress, last: list[float]) -> None:
    if time.perf_counter() - last[0] > 0.5:
        progress.refresh()
        last[0] = time.perf_counter()


def description(
    options: Options, device: torch.device, command: str, found: list[peers.Peer]
) -> dict[str, Any]:
    """Where the figures come from."""
    versions = environment.versions()
    for peer in found:
        if peer.name != peers.PLAIN:
            versions[peer.name] = peer.version
    return {
        "format": FORMAT,
        "command": command,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "versions": versions,
        "machine": {
            "processor": environment.processor(),
            "cores": environment.cores(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "load_before": _load(),
        },
        "options": asdict(options),
        "peers": {peer.name: peer.missing or "installed" for peer in found},
        "bandwidth": [],
        "settings": [],
    }


def commit() -> str | None:
    """The commit of the checkout that this package lies in, with "+" where files differ; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
        name = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "fastconfig", "kernels", "csrc"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}+" if changed else name


def _load() -> float | None:
    """Processes that want to run, averaged over a minute: says whether the machine was busy."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def run_setting(
    setting: Setting,
    options: Options,
    device: torch.device,
    clock: Clock,
    order: list[str],
    found: list[peers.Peer],
    between: Callable[[], None],
) -> dict[str, Any]:
    """Time and check all contestants of one setting."""
    size = setting.m * setting.row_bytes
    if 2 * size > available_memory(device):
        reason = f"the gradients take {size / 2**30:.1f} GiB, more than the memory that is free"
        return {"setting": asdict(setting), "skipped": [{"name": "fastconfig", "reason": reason}]}
    inputs = cases.make_inputs(setting, device)
    exact = Exact(setting, inputs)
    skipped: list[dict[str, Any]] = []
    ours = our_contestants(setting, inputs, exact, options, order, skipped)
    theirs = peer_contestants(setting, inputs, {c.operation for c in ours}, options, found, device, skipped)
    errors: dict[int, float] = {}
    running = []
    for contestant in [*ours, *theirs]:
        if admitted(contestant, exact, clock, options, errors, skipped):
            running.append(contestant)
        between()
    momentum = any(contestant.operation == MOMENTUM for contestant in running)
    floors = floor.floor_contestants(setting, inputs, device, options.least, momentum)
    named = {contestant.operation for contestant in theirs} if device.type == "cuda" else set()
    called = {
        c.operation: replace(c, eager=True, samples=[], warm=[])
        for c in running
        if c.backend == order[0] and c.operation in named - {MOMENTUM}
    }
    measure([*running, *floors, *called.values()], clock, options.share, between)
    for contestant in running:
        if contestant.median < CHECK_AGAIN_BELOW:
            check(contestant, exact, clock.once(contestant)[1], errors)
    best = floor.fastest(floors)
    them = [
        peer_figures(c, errors.get(id(c)), exact.bound(c.operation)) for c in running if c.backend is None
    ]
    us = [
        our_figures(c, setting, errors[id(c)], exact.bound(c.operation), best, them, called.get(c.operation))
        for c in running
        if c.backend is not None
    ]
    return {
        "setting": asdict(setting),
        "floor": best.numbers(),
        "results": us,
        "peers": them,
        "skipped": skipped,
    }


def our_contestants(
    setting: Setting,
    inputs: Inputs,
    exact: Exact,
    options: Options,
    order: list[str],
    skipped: list[dict[str, Any]],
) -> list[Contestant]:
    contestants = []
    rows = Gradients(inputs.grads)
    for backend in order:
        reason = load(backend).unsupported(rows)
        if reason is not None:
            skipped.append({"name": "fastconfig", "backend": backend, "reason": reason})
            continue
        calls = cases.our_calls(setting, inputs, backend, exact.gram, exact.coefficients("config"))
        # the default is measured the way that it is chosen
        served = "auto" if options.backend is None and backend == order[0] else backend
        for operation in plan.operations(options, setting, backend, order):
            contestants.append(
                Contestant(
                    operation,
                    "fastconfig",
                    calls[operation],
                    backend,
                    least=options.least if backend == order[0] else FEW,
                    around=partial(use_backend, served),
                    answer=getattr(calls[operation], "answer", None),
                )
            )
    return contestants


def peer_contestants(
    setting: Setting,
    inputs: Inputs,
    operations: set[str],
    options: Options,
    found: list[peers.Peer],
    device: torch.device,
    skipped: list[dict[str, Any]],
) -> list[Contestant]:
    """Those that have the operation and are expected to answer within the limit."""
    contestants = []
    size = setting.m * setting.row_bytes
    small = replace(setting, n=max(setting.n // PROBE, 1))
    probe = cases.make_inputs(small, device) if setting.n >= LARGE else None
    for peer in found:
        trial = {} if probe is None else peer.calls(probe.grads)
        for operation, call in peer.calls(inputs.grads).items():
            if operation not in operations:
                continue
            skip = {"name": peer.name, "operation": operation}
            if ROOM * size > available_memory(device):
                skipped.append({**skip, "reason": f"needs up to {ROOM} times the gradients' memory"})
                continue
            seconds = _seconds(trial[operation]) if trial else 0.0
            if seconds * PROBE > options.call_limit:
                reason = f"{seconds:.2f} s at N = {small.n:,}: too slow for N = {setting.n:,}"
                skipped.append({**skip, "reason": reason})
                continue
            compared = operation not in peer.unordered or setting.m <= 2
            answer = getattr(call, "answer", None)
            contestants.append(
                Contestant(operation, peer.name, call, compared=compared, answer=answer, eager=True)
            )
    return contestants


def _seconds(call: Callable[[], Any]) -> float:
    """Of the shortest of a few calls. What fails here fails again, and is told then."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        try:
            call()
        except Exception:
            return 0.0
        times.append(time.perf_counter() - began)
    return min(times)


def admitted(
    contestant: Contestant,
    exact: Exact,
    clock: Clock,
    options: Options,
    errors: dict[int, float],
    skipped: list[dict[str, Any]],
) -> bool:
    """The first call: does it work, is it fast enough, is it right?"""
    skip = {"name": contestant.name, "operation": contestant.operation}
    try:
        seconds, result = clock.once(contestant)
    except BackendUnavailable:
        raise
    except Exception as error:
        if contestant.backend is not None:
            raise
        text = str(error).splitlines()[0] if str(error) else ""
        skipped.append({**skip, "reason": f"{type(error).__name__}: {text}"})
        return False
    if contestant.backend is None and seconds > options.call_limit:
        skipped.append({**skip, "reason": f"{seconds:.1f} s a call, over {options.call_limit:g} s"})
        return False
    check(contestant, exact, result, errors)
    return True


def check(contestant: Contestant, exact: Exact, result: Any, errors: dict[int, float]) -> None:
    """Keep the worst error seen, except of an answer that depends on a random order."""
    if not contestant.compared:
        return
    if contestant.answer is not None:
        with contestant.around():
            result = contestant.answer()
    error = exact.error(contestant.operation, result)
    errors[id(contestant)] = max(error, errors.get(id(contestant), 0.0))


def add_memory(figures: list[dict[str, Any]], options: Options, between: Callable[[], None]) -> None:
    """Extra peak memory of every operation of ours on the gradients, and of every peer's ConFIG update."""
    rows, requests = [], []
    for of_setting in figures:
        for row in [*of_setting.get("results", ()), *of_setting.get("peers", ())]:
            all_passes = "backend" in row and not options.quick
            if row["operation"] not in (passes() if all_passes else ("ConFIG_update",)):
                continue
            rows.append(row)
            requests.append(
                {
                    "setting": of_setting["setting"],
                    "operation": row["operation"],
                    "name": row["name"],
                    "backend": row.get("backend"),
                    "device": options.device,
                    "threads": torch.get_num_threads(),
                }
            )
    for row, extra in zip(rows, memory.extra_memory(requests), strict=True):
        row["extra_memory_bytes"] = extra
        between()


def available_memory(device: torch.device) -> float:
    """Free bytes, inf where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
