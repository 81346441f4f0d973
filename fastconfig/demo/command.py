"""``fastconfig demo``: train, then print a table and write a picture and a JSON file."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .. import environment
from ..monitor import pairs
from .burgers import LOSS_NAMES
from .figure import draw
from .training import CONFIG, TORCH_THREADS, Result, Settings, train

if TYPE_CHECKING:
    from collections.abc import Iterable

PICTURE, NUMBERS = "demo.png", "demo.json"
REFRESH_SECONDS = 0.2


def run(settings: Settings, out: Path, command: str, console: Console | None = None) -> None:
    """Train, print the tables, write ``demo.png`` and ``demo.json`` into ``out``; after Ctrl-C no picture.

    Args:
        settings: of the run.
        out: folder, made if it is missing.
        command: how the run was started, for the JSON file.
        console: where the tables go; standard output by default.

    Raises:
        ValueError: the device cannot be used.
        OSError: the folder or a file cannot be written.
        KeyboardInterrupt: after Ctrl-C, once the figures so far are printed and written.
    """
    began = time.perf_counter()
    console = console or Console()
    environment.find_device(settings.device)
    out.mkdir(parents=True, exist_ok=True)
    result = train_with_progress(settings, console)
    numbers = collect(result, command)
    interrupted = result.steps < settings.steps
    if not interrupted:
        draw(result, out / PICTURE)
    numbers["total_seconds"] = time.perf_counter() - began
    (out / NUMBERS).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    console.print(training_table(numbers), operator_table(numbers), sep="\n")
    if "conflictfree" not in numbers["operators"]:
        console.print("conflictfree is not installed; with it, its answers are compared too.")
    for name in (NUMBERS,) if interrupted else (PICTURE, NUMBERS):
        console.print(f"wrote {out / name}", soft_wrap=True, highlight=False)
    if interrupted:
        raise KeyboardInterrupt(f"{result.steps} of {settings.steps} steps were trained")


def train_with_progress(settings: Settings, console: Console) -> Result:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task("Burgers", total=settings.steps, figures="")
        shown = 0.0

        def report(done: int, result: Result) -> None:
            nonlocal shown
            if done < settings.steps and time.perf_counter() - shown < REFRESH_SECONDS:
                return
            shown = time.perf_counter()
            progress.update(task, completed=done, figures=live(result))

        return train(settings, report)


def live(result: Result) -> str:
    """ConFIG's loss, and the cosines of each pair of its gradients by the first letters of the losses."""
    config = result.trainers[CONFIG]
    last = config.monitor.last()
    cosines = [
        f"{LOSS_NAMES[i][0]}{LOSS_NAMES[j][0]} {last[f'cosine/{LOSS_NAMES[i]},{LOSS_NAMES[j]}']:+.2f}"
        for i, j in pairs(len(LOSS_NAMES))
    ]
    return f"loss {sum(config.losses[-1]):.1e}, cosines {' '.join(cosines)}"


def collect(result: Result, command: str) -> dict[str, Any]:
    """All figures of a run and where they come from, ready for JSON."""
    device = torch.device(result.settings.device)
    return {
        "command": command,
        "settings": asdict(result.settings),
        "versions": environment.versions(),
        "machine": {
            "processor": environment.processor(),
            "cores": environment.cores(),
            "torch_threads": TORCH_THREADS,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        },
        "results": {name: result.summary(name) for name in result.trainers},
        "operators": {name: operator.summary() for name, operator in result.operators.items()},
        "trained_steps": result.steps,
        "training_seconds": result.training_seconds,
    }


def training_table(numbers: dict[str, Any]) -> Table:
    """All ways to train side by side; one below the other where there are more than three."""
    results = numbers["results"]
    steps, seed = numbers["trained_steps"], numbers["settings"]["seed"]
    title = f"Burgers' equation after {steps} steps, seed {seed}"
    if len(results) > 3:
        table = new_table(title, ("error", *LOSS_NAMES, "against", "ms/step", "operator"))
        table.padding = (0, 1, 0, 0)
        for name, result in results.items():
            table.add_row(name, *brief(result))
        table.caption = "error: relative L2; against: steps against a gradient; operator: ms of a step"
        return table
    table = new_table(title, results)
    names = [f"{name} loss" for name in LOSS_NAMES]
    rows = ("relative L2 error", *names, "steps against a gradient", "time per step (median)")
    columns = [cells(result) for result in results.values()]
    for name, *row in zip((*rows, "  of it the operator", "  as a share"), *columns, strict=True):
        table.add_row(name, *row)
    return table


def cells(result: dict[str, Any]) -> list[str]:
    """The figures of one way to train, in the order of the table."""
    against = result.get("share_of_measured_steps_with_a_negative_cosine")
    operator, share = result.get("median_operator_ms"), result.get("operator_share_of_step")
    return [
        percent(result["relative_l2_error"]),
        *(f"{result['final_losses'][name]:.2e}" for name in LOSS_NAMES),
        "-" if against is None else percent(against),
        f"{result['median_step_ms']:.2f} ms",
        "-" if operator is None else f"{operator:.3f} ms",
        "-" if share is None else percent(share),
    ]


def brief(result: dict[str, Any]) -> list[str]:
    """:func:`cells` in columns that a narrow terminal has room for."""
    against = result.get("share_of_measured_steps_with_a_negative_cosine")
    operator = result.get("median_operator_ms")
    return [
        f"{100 * result['relative_l2_error']:.1f} %",
        *(f"{result['final_losses'][name]:.1e}" for name in LOSS_NAMES),
        "-" if against is None else f"{100 * against:.0f} %",
        f"{result['median_step_ms']:.2f}",
        "-" if operator is None else f"{operator:.3f}",
    ]


def operator_table(numbers: dict[str, Any]) -> Table:
    """Give the same gradients to each implementation of ConFIG's update."""
    operators = numbers["operators"]
    summaries = operators.values()
    compared = numbers["operators"]["fastconfig"]["compared_steps"]
    table = new_table(
        f"ConFIG's update on the gradients of {compared} step{'s' * (compared != 1)}", operators
    )
    table.add_row("time (median)", *(f"{s['median_ms']:.3f} ms" for s in summaries))
    key = "share_off_by_more_than_1_percent"
    table.add_row("steps off by more than 1 %", *(percent(s[key]) for s in summaries))
    worst = [s["worst_relative_error"] for s in summaries]
    table.add_row("worst error", *("not finite" if w is None else f"{w:.1e}" for w in worst))
    table.caption = "error: relative to the exact float64 update"
    return table


def new_table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"
