"""PCGrad and PPCGrad of flattened gradients beside a straight transcription of algorithm 1.

    python benchmarks/pcgrad.py [--framework torch,tensorflow] [--n 1e4,1e6] [--m 2,4,8,16] [--json FILE]

Baseline and ours take turns; a speed-up is stated only where ours is within 2e-6 of the float64 oracle. Masks
that are all ones are given to both. Extra memory is the peak of a call beyond its result, in vectors of N
elements.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastconfig import environment, reference
from fastconfig.bench.memory import MALLOC, extra_bytes

LIMIT = 2e-6  # of the relative error
SECONDS, LEAST, MOST = 4.0, 3, 1000
Call = Callable[[], Any]


def torch_calls(rows: torch.Tensor) -> dict[str, Call]:
    """Baseline, PCGrad and PPCGrad in PyTorch."""
    from fastconfig.pcgrad import PCGrad, PPCGrad

    grads = list(rows)
    masks = [torch.ones_like(row) for row in rows]
    m = len(grads)

    def baseline() -> torch.Tensor:
        total = torch.zeros_like(grads[0])
        for i in range(m):
            g = grads[i].clone()
            for j in torch.randperm(m).tolist():
                if j != i:
                    along = torch.dot(g, grads[j])
                    if along < 0:
                        g -= along / grads[j].norm() ** 2 * grads[j]
            total += g
        shared = torch.stack(masks).prod(0).bool()
        total[shared] /= m
        return total

    pcgrad, ppcgrad = PCGrad(), PPCGrad()
    return {
        "baseline": baseline,
        "PCGrad": lambda: pcgrad.project_conflicting(grads, masks),
        "PPCGrad": lambda: ppcgrad.project_conflicting(grads, masks),
    }


def tensorflow_calls(rows: torch.Tensor) -> dict[str, Call]:
    """The same in TensorFlow, under tf.function; a call ends when its result is there."""
    import tensorflow as tf

    from fastconfig.tensorflow import PCGrad, PPCGrad

    grads = [tf.constant(row.numpy()) for row in rows]
    masks = [tf.ones_like(row) for row in grads]
    m = len(grads)

    @tf.function
    def baseline(grads: list[Any], masks: list[Any]) -> Any:
        stacked = tf.stack(grads)
        projected = []
        for i in range(m):
            g = grads[i]
            order = tf.random.shuffle([j for j in range(m) if j != i]) if m > 1 else []
            for step in range(m - 1):
                other = stacked[order[step]]
                along = tf.reduce_sum(g * other)
                g = tf.where(along < 0, g - along / tf.reduce_sum(other * other) * other, g)
            projected.append(g)
        shared = masks[0]
        for mask in masks[1:]:
            shared = shared * mask
        total = tf.add_n(projected)
        return tf.where(shared > 0, total / m, total)

    pcgrad, ppcgrad = PCGrad(), PPCGrad()
    functions = {
        "baseline": baseline,
        "PCGrad": tf.function(lambda grads, masks: pcgrad.project_conflicting(grads, masks)),
        "PPCGrad": tf.function(lambda grads, masks: ppcgrad.project_conflicting(grads, masks)),
    }

    def ended(function: Any) -> Call:
        def call() -> Any:
            result = function(grads, masks)
            return torch.utils.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(result))  # without a copy

        return call

    return {name: ended(function) for name, function in functions.items()}


FRAMEWORKS = {"torch": torch_calls, "tensorflow": tensorflow_calls}


def gradients(m: int, n: int) -> torch.Tensor:
    """Of which most pairs conflict."""
    rows = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    return rows - 0.9 * rows.mean(0)


def errors(calls: dict[str, Call], rows: torch.Tensor) -> dict[str, float]:
    """Relative error of PPCGrad, and of PCGrad where its order does not matter: with two tasks."""
    found = {}
    exact = reference.ppcgrad(rows, reduction="mean")
    for name in ("PCGrad", "PPCGrad") if len(rows) == 2 else ("PPCGrad",):
        update = calls[name]().double()
        found[name] = float((update - exact).norm() / exact.norm())
    return found


def measure(framework: str, m: int, n: int) -> dict[str, Any]:
    rows = gradients(m, n)
    calls = FRAMEWORKS[framework](rows)
    error = errors(calls, rows)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    rounds = 0
    while rounds < LEAST or (rounds < MOST and time.perf_counter() - began < SECONDS):
        rounds += 1
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {
        "framework": framework,
        "m": m,
        "n": n,
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "error": error,
        # TensorFlow's own allocations blur those of short vectors
        "extra_vectors": extra(framework, m, n) if framework == "torch" or n >= 1e6 else {},
    }


def extra(framework: str, m: int, n: int) -> dict[str, float | None]:
    """Extra memory of the calls in vectors, from a process whose allocations are seen."""
    command = [sys.executable, __file__, "--memory", "--framework", framework, "--m", str(m), "--n", str(n)]
    # else TensorFlow keeps what it has freed, and resident memory does not tell what a call takes
    system = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}
    run = subprocess.run(command, env={**os.environ, **MALLOC, **system}, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else {}


def print_extra(framework: str, m: int, n: int) -> None:
    calls = FRAMEWORKS[framework](gradients(m, n))
    found: dict[str, float | None] = {}
    for name, call in calls.items():
        call()
        size = extra_bytes(call, torch.device("cpu"))
        found[name] = None if size is None else round(size / (4 * n), 2)
    print(json.dumps(found))


HEADS = ("", "m", "N", "algorithm 1", "PCGrad", "×", "PPCGrad", "×", "extra memory", "that of algorithm 1")


def cells(result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    seconds, base, more = result["seconds"], result["seconds"]["baseline"], result["extra_vectors"]
    good = max(result["error"].values()) <= LIMIT
    found = [result["framework"], str(result["m"]), f"{result['n']:,}", f"{1e3 * base:.3g} ms"]
    for name in ("PCGrad", "PPCGrad"):
        found += [f"{1e3 * seconds[name]:.3g} ms", f"{base / seconds[name]:.3g}" if good else "wrong"]
    return found + [
        f"{more[name]:.1f} N" if more.get(name) is not None else "–" for name in ("PCGrad", "baseline")
    ]


def report(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(*HEADS, title="project_conflicting, float32")
    for result in results:
        table.add_row(*cells(result))
    console.print(table)


def markdown(results: list[dict[str, Any]]) -> str:
    """The same table for a document."""
    lines = [list(HEADS), ["---"] * len(HEADS), *(cells(result) for result in results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_table(results: list[dict[str, Any]], target: Path) -> None:
    """Put the table between the marks of a document."""
    begin, end = "<!-- pcgrad:begin -->\n", "<!-- pcgrad:end -->"
    before, _, rest = target.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    target.write_text(before + begin + markdown(results) + "\n" + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time PCGrad and PPCGrad beside algorithm 1 as written.")
    parser.add_argument("--framework", default=",".join(FRAMEWORKS))
    parser.add_argument("--m", default="2,4,8,16")
    parser.add_argument("--n", default="1e4,1e6,1e7")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help="results of an earlier run, instead of a new one")
    parser.add_argument("--markdown", type=Path, help="document to put the table in")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    ms = [int(m) for m in arguments.m.split(",")]
    ns = [int(float(n)) for n in arguments.n.split(",")]
    if arguments.memory:
        print_extra(arguments.framework, ms[0], ns[0])
        return
    results = []
    if arguments.read:
        results = json.loads(arguments.read.read_text(encoding="utf-8"))["results"]
    else:
        for framework in arguments.framework.split(","):
            for n in ns:
                for m in ms:
                    results.append(measure(framework, m, n))
                    print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    report(results, Console(width=120))
    if arguments.markdown:
        write_table(results, arguments.markdown)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        origin = environment.origin(arguments.threads)
        text = json.dumps({"command": sys.argv, "origin": origin, "results": results}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
