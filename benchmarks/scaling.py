"""Bytes and time of a step on many ranks: the model of docs/scaling.md, and its small end measured.

    python benchmarks/scaling.py --plot docs/scaling.png      the model, for 8 to 10,000 ranks
    python benchmarks/scaling.py --measure --json FILE        2 and 4 ranks on this machine, by Gloo
    python benchmarks/scaling.py --docs                       the tables of docs/scaling.md

Time is alpha a message of a tree, and what a ring sends over the bandwidth; the merge itself reads the
gradients twice and writes once, at the speed of memory. Ways take turns when they are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from readme_table import RESULTS, ROOT, duration, inserted, newest, versions_of
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastconfig import ConFIG_update, ConFIGOperator, environment
from fastconfig.bench import wire
from fastconfig.bench.wire import Problem
from fastconfig.merging import merge
from fastconfig.ranks.collectives import gather_parts, scatter_sum
from fastconfig.ranks.exchange import Exchange

Merge = Callable[[list[Tensor]], Any]
LOSSES = 3
RANKS = (8, 128, 1024, 10_000)
ELEMENTS = (10**8, 10**9, 10**10, 10**11, 10**12)
MEASURED_RANKS = (2, 4)
MEASURED_ELEMENTS = (10**5, 10**6, 10**7)
DOCUMENT = ROOT / "docs" / "scaling.md"
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


@dataclass(frozen=True)
class Machine:
    """What the model assumes of a rank: a GPU with a network card of its own."""

    latency: float = 10e-6  # seconds of a message
    wire: float = 50e9  # bytes a second that a rank sends: 400 Gbit/s
    memory: float = 4e12  # bytes a second
    capacity: float = 141e9  # bytes


@dataclass(frozen=True)
class Way:
    """One way of merging: what it sends, of which vectors it merges, and what it holds.

    Attributes:
        payload: of a problem, by kind of collective.
        whole: whether every rank merges the whole gradients.
        held: bytes of a rank, without what the optimizer and the activations take.
    """

    payload: Callable[[Problem], Counter[str]]
    whole: bool
    held: Callable[[Problem], float]


def held_by_shards(problem: Problem) -> float:
    """Bytes of a rank that has its part of parameters, gradients and update."""
    return (2 + problem.losses) * problem.elements * problem.itemsize / problem.ranks


WAYS = {
    # parameters, a loss's gradient, a flat one, the update; parts of all losses' gradients
    "DDP": Way(wire.replicas, False, lambda p: (4 + p.losses / p.ranks) * p.elements * p.itemsize),
    "DDP, peers": Way(wire.replicas_of_peers, True, lambda p: (2 + p.losses) * p.elements * p.itemsize),
    "FSDP2": Way(wire.shards, False, held_by_shards),
    "FSDP2, of it the merge": Way(wire.merge, False, held_by_shards),
    "FSDP2, peers": Way(
        wire.shards_of_peers, True, lambda p: (1 + p.losses + 1 / p.ranks) * p.elements * p.itemsize
    ),
}


def seconds(way: Way, problem: Problem, machine: Machine) -> float:
    """Collectives one after the other, nothing hidden behind computation, then the merge."""
    messages = math.ceil(math.log2(problem.ranks))
    payload = way.payload(problem)
    calls = {kind: problem.losses if kind != "all-reduce" else 1 for kind in payload}
    latency = sum(
        n * messages * (2 if kind == "all-reduce" else 1) * machine.latency for kind, n in calls.items()
    )
    merged = (
        (2 * problem.losses + 1) * problem.elements * problem.itemsize / (1 if way.whole else problem.ranks)
    )
    return latency + wire.bytes_sent(payload, problem.ranks) / machine.wire + merged / machine.memory


def model_table(machine: Machine) -> list[list[str]]:
    """A line for every problem; "–" where a rank's memory is too small."""
    lines = []
    for elements in ELEMENTS:
        for ranks in RANKS:
            problem = Problem(ranks, LOSSES, elements, 300)
            cells = [f"{elements:.0e}".replace("e+", "e"), f"{ranks:,}"]
            for way in WAYS.values():
                if way.held(problem) > machine.capacity:
                    cells.append("–")
                else:
                    sent = wire.bytes_sent(way.payload(problem), ranks)
                    cells.append(f"{amount(sent)}, {duration(1e6 * seconds(way, problem, machine))}")
            lines.append(cells)
    return lines


def amount(size: float) -> str:
    """Bytes, three digits and a prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor:
            return f"{size / factor:.3g} {prefix}B"
    return f"{size:.3g} B"


def plot(machine: Machine, path: Path) -> None:
    """Time of a step over ranks, a panel for each number of parameters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ranks = [2**k for k in range(3, 14)]
    figure, panels = pyplot.subplots(1, len(ELEMENTS), figsize=(16, 3.6))
    styles = dict(zip(WAYS, ("C0-o", "C1--s", "C2-^", "C2:", "C3--v"), strict=True))
    for panel, elements in zip(panels, ELEMENTS, strict=True):
        for name, way in WAYS.items():
            problems = [Problem(p, LOSSES, elements, 300) for p in ranks]
            fits = [p for p in problems if way.held(p) <= machine.capacity]
            times = [seconds(way, p, machine) for p in fits]
            panel.loglog([p.ranks for p in fits], times, styles[name], label=name, markersize=3)
        panel.set_title(f"$N = 10^{{{round(math.log10(elements))}}}$")
        panel.set_xlim(6, 13_000)
        if not any(
            WAYS["FSDP2, peers"].held(Problem(p, LOSSES, elements)) <= machine.capacity for p in ranks
        ):
            panel.text(0.5, 0.5, "peers do not fit", transform=panel.transAxes, ha="center", color="C3")
        panel.set_xlabel("ranks")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("communication and merge, s")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncol=len(WAYS))
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=80)


def measure() -> list[dict[str, Any]]:
    """Every problem of MEASURED_RANKS and MEASURED_ELEMENTS."""
    found: list[dict[str, Any]] = []
    for ranks in MEASURED_RANKS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (ranks, folder)
            mp.start_processes(_measure_rank, arguments, nprocs=ranks, start_method="fork")
            found += json.loads((Path(folder) / "results").read_text())
    return found


def _measure_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    costs = {kind: _cost(kind, ranks) for kind in CALLS}
    problems = [Problem(ranks, LOSSES, elements) for elements in MEASURED_ELEMENTS]
    results = [result for problem in problems for result in _measure_problem(problem, costs)]
    if rank == 0:
        (Path(folder) / "results").write_text(json.dumps(results))
    dist.destroy_process_group()


def _measure_problem(problem: Problem, costs: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Every way in turns, from gradients to the update, beside what its parts cost by themselves."""
    group: Any = dist.group.WORLD
    rows = [torch.randn(problem.elements) for _ in range(LOSSES)]
    parts = [row[: -(-problem.elements // problem.ranks)] for row in rows]
    parameter, operator = torch.nn.Parameter(torch.zeros(problem.elements)), ConFIGOperator()
    buckets = [row.clone() for row in rows]

    def ours() -> None:
        exchange = Exchange([parameter], group)
        for i, row in enumerate(rows):
            exchange.send([row], str(i))
        exchange.merged(lambda grads, out: merge(grads, operator.rule_for(grads), out))

    def packed() -> None:
        for row, bucket in zip(rows, buckets, strict=True):
            torch.mul(row, 1 / problem.ranks, out=bucket)

    def all_reduced(merge: Merge) -> None:
        packed()
        for bucket in buckets:
            dist.all_reduce(bucket)
        merge(buckets)

    merges: dict[str, Merge] = {"all-reduce, our merge": ConFIG_update}
    if importlib.util.find_spec("conflictfree") is not None:
        merges["all-reduce, conflictfree"] = importlib.import_module(
            "conflictfree.grad_operator"
        ).ConFIG_update
    whole = {f"merge, {name}": partial(merge, rows) for name, merge in merges.items()}
    calls: dict[str, Callable[[], Any]] = {
        "fastconfig.distributed": ours,
        **{name: partial(all_reduced, merge) for name, merge in merges.items()},
        "process_group=": lambda: ConFIG_update(parts, process_group=group),
    }
    local = {"merge": lambda: ConFIG_update(parts), "pack": packed}
    timed = _turns({**calls, **whole, **local})
    reduced = wire.replicas_of_peers(problem)
    payloads = {name: (reduced, timed["pack"] + timed[f"merge, {name}"]) for name in merges}
    payloads["fastconfig.distributed"] = wire.replicas(problem, by_gloo=True), timed["pack"] + timed["merge"]
    payloads["process_group="] = wire.merge(problem), timed["merge"]
    results = []
    counted = problem.elements == max(MEASURED_ELEMENTS)
    for name, call in calls.items():
        payload, at_home = payloads[name]
        times = {"all-to-all": LOSSES, "all-reduce": LOSSES if name in merges else 1}
        sending = sum(times.get(k, 1) * costs[k][0] + size * costs[k][1] for k, size in payload.items())
        results.append(
            {
                "way": name,
                "ranks": problem.ranks,
                "elements": problem.elements,
                "seconds": timed[name],
                "predicted": at_home + sending,
                "bytes": wire.bytes_sent(payload, problem.ranks),
                "loopback": _loopback(call, problem.ranks) if counted else None,
            }
        )
    return results


def _scatter(whole: Tensor, part: Tensor) -> None:
    scatter_sum(part, whole, dist.group.WORLD, "").wait()  # type: ignore[arg-type]


#: what is sent by itself, by the kind of collective that Gloo is asked for
CALLS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "all-reduce": lambda whole, part: dist.all_reduce(whole),
    "all-to-all": _scatter,
    "broadcast": lambda whole, part: gather_parts(whole, dist.group.WORLD, ""),  # type: ignore[arg-type]
}


def _cost(kind: str, ranks: int) -> tuple[float, float]:
    """Seconds of a call with next to nothing to send, and of a byte of payload."""
    few, many = 256, 1 << 22
    taken = []
    for elements in (few, many):
        whole, part = torch.zeros(elements), torch.zeros(elements // ranks)
        taken.append(_turns({kind: partial(CALLS[kind], whole, part)})[kind])
    return taken[0], (taken[1] - taken[0]) / (4 * (many - few))


def _turns(calls: dict[str, Callable[[], Any]], least: int = 7, most: float = 3.0) -> dict[str, float]:
    """Median seconds of each, in turns, the ranks together; the slowest rank's."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for turn in range(60):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
        enough = torch.tensor(float(turn >= least and time.perf_counter() - begin > most))
        dist.broadcast(enough, 0)
        if enough:
            break
    medians = torch.tensor([statistics.median(taken[2:] or taken) for taken in found.values()])
    dist.all_reduce(medians, dist.ReduceOp.MAX)
    return dict(zip(found, medians.tolist(), strict=True))


def _loopback(call: Callable[[], Any], ranks: int) -> float | None:
    """Bytes a rank that the kernel counts on the loopback device while all make a call."""
    if not LOOPBACK.exists():
        return None
    repeats = 3
    dist.barrier()
    before = int(LOOPBACK.read_text())
    for _ in range(repeats):
        call()
    dist.barrier()
    return (int(LOOPBACK.read_text()) - before) / repeats / ranks


def measured_table(results: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            r["way"],
            str(r["ranks"]),
            f"{r['elements']:,}",
            amount(r["bytes"]),
            "–" if r["loopback"] is None or r["bytes"] < 1e6 else f"{r['loopback'] / r['bytes']:.2f}",
            duration(1e6 * r["seconds"]),
            f"{r['seconds'] / r['predicted']:.2f}",
        ]
        for r in results
    ]


MODEL_HEADS = ["N", "ranks", *WAYS]
MEASURED_HEADS = ["way", "ranks", "N", "sent a rank", "counted / sent", "time", "time / model"]


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join([f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines]])


def documented() -> str:
    """docs/scaling.md as it must be."""
    path = newest(RESULTS / "scaling")
    text = inserted(
        DOCUMENT.read_text(encoding="utf-8"), markdown(MODEL_HEADS, model_table(Machine())), "model"
    )
    if path is None:
        return text
    numbers = json.loads(path.read_text(encoding="utf-8"))
    origin = numbers["origin"]
    title = f"{origin['processor']}, {origin['cores']} cores, one thread a rank, {versions_of(origin)} "
    title += f"([all figures](../benchmarks/results/scaling/{path.name}))."
    return inserted(
        text, f"{title}\n\n{markdown(MEASURED_HEADS, measured_table(numbers['results']))}", "measured"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step on several ranks sends, and how long it takes.")
    parser.add_argument("--plot", type=Path, help="draw the model to this PNG file")
    parser.add_argument("--measure", action="store_true", help="2 and 4 ranks on this machine")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/scaling.md")
    given = parser.parse_args()
    if given.docs:
        DOCUMENT.write_text(documented(), encoding="utf-8")
        return
    if given.plot is not None:
        plot(Machine(), given.plot)
    results = measure() if given.measure else []
    heads, lines = (
        (MEASURED_HEADS, measured_table(results)) if results else (MODEL_HEADS, model_table(Machine()))
    )
    table = Table(*heads)
    for line in lines:
        table.add_row(*line)
    Console(width=120).print(table)
    if given.json is not None:
        origin = environment.origin(1) | {"cores": environment.cores()}
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        given.json.parent.mkdir(parents=True, exist_ok=True)
        numbers = {"date": date, "origin": origin, "results": results}
        given.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
