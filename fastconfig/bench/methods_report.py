"""Figures of the methods -> tables on the console."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .report import NARROW, figure, origin

PEERS = ("torchjd", "LibMTL")
WORDS = (
    "µs of one call. G → c: from a Gram matrix that is there; merge: from the gradients to the update. "
    "goal: what G → c may take on one core. ×: how many times faster than that package, –: it has no "
    "such method. error: of the update, relative to the paper's formula in float64, for gradients of "
    "length 1 and 1000."
)
_UPGRAD_GOAL = 2  # times ConFIG's whole update, at most


def print_methods(numbers: dict[str, Any], console: Console) -> None:
    """Origin, a table for each m and N, and why a peer's method took no part."""
    console.print(origin(numbers))
    console.print(WORDS, style="dim")
    rows = numbers["methods"]
    for m, n in dict.fromkeys((row["m"], row["n"]) for row in rows):
        of_size = [row for row in rows if (row["m"], row["n"]) == (m, n)]
        console.print(methods_table(f"m = {m}, N = {n:,}", of_size, console.width < NARROW))
        merge = {row["method"]: row["merge_us"] for row in of_size}
        if numbers["machine"]["device"] == "cpu" and (m, n) == (3, 10_000) and "UPGrad" in merge:
            ratio = merge["UPGrad"] / merge["ConFIG"]
            console.print(f"merge by UPGrad: {ratio:.1f} times ConFIG's (goal: at most {_UPGRAD_GOAL})")
    for name, state in numbers["peers"].items():
        if state != "installed":
            console.print(f"{name}: {state}")
    for failure in dict.fromkeys(
        f"{name} {row['method']}: {theirs['failure']}"
        for row in rows
        for name, theirs in row["peers"].items()
        if "failure" in theirs
    ):
        console.print(failure, soft_wrap=True, highlight=False)


def methods_table(title: str, rows: list[dict[str, Any]], narrow: bool) -> Table:
    """The figures of one m and N; where the console is narrow, without the others' times."""
    table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    if narrow:
        table.padding, table.show_edge = (0, 0, 0, 0), False
    heads = ["method"]
    for stage in ("G → c", "merge"):
        heads += [stage, "goal"] if stage == "G → c" else [stage]
        for name in PEERS:
            heads += [f"{name}\n×"] if narrow else [name, "×"]
    heads += ["error", *(f"{name}\nerror" if narrow else f"{name}'s" for name in PEERS)]
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, narrow))
    return table


def _cells(row: dict[str, Any], narrow: bool) -> list[str]:
    cells = [row["method"]]
    for key in ("us", "merge_us"):
        cells.append(figure(row[key]))
        if key == "us":
            cells.append(f"{row['goal_us']}" if "goal_us" in row else "")
        for name in PEERS:
            time = row["peers"].get(name, {}).get(key)
            cells += [] if narrow else [figure(time)]
            cells.append("–" if time is None else figure(time / row[key]))
    cells.append(_error(row))
    return cells + [_error(row["peers"].get(name)) for name in PEERS]


def _error(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "–"
    if "failure" in figures:
        return "fails"
    if "error" not in figures:
        return "draws"
    error = figures["error"]
    return "nan" if error is None or not math.isfinite(error) else f"{error:.0e}"
