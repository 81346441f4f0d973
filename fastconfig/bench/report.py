"""Figures -> tables on the console."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PEERS = ("plain torch", "torchjd", "conflictfree")
WIDTH = 200  # of the tables where nothing says how wide they may be
CAPTION = (
    "GB/s: (2m + 1) N b for an update, m N b for gram, (m + 1) N b for combine, (2m + 7) N b for momentum. "
    "floor: the time to read the gradients (twice for an update) and to write the answer, and the time "
    "over it. A peer's column: how many times faster this package is; (error): the peer's own result is "
    "off by more than rounding, relative to the oracle's length; (order): its order is random, not "
    "compared. memory: extra peak of one call beyond its result."
)

NARROW = 150  # columns of a terminal: below, the table has the figures that say most
BRIEF = (
    "median µs: of one call. over floor: that time over the time to read the gradients (twice for an "
    "update) and to write the answer. plain torch, torchjd, conflictfree: how many times faster this "
    "package is; * where the other's own result is off by more than rounding, † where its order is random. "
    "--json has all figures."
)


def wide_console() -> Console:
    """A console as wide as the terminal; wide enough for the tables if the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_report(numbers: dict[str, Any], console: Console) -> None:
    """Origin, bandwidths, a table for each dtype, form and backend, and what is left out."""
    console.print(origin(numbers), bandwidth_table(numbers), sep="\n")
    narrow = console.width < NARROW
    console.print(BRIEF if narrow else CAPTION, style="dim")
    for title, rows in grouped(numbers).items():
        console.print(narrow_table(title, rows) if narrow else result_table(title, rows))
    for line in left_out(numbers):
        console.print(line, soft_wrap=True, highlight=False)


def origin(numbers: dict[str, Any]) -> Table:
    machine, versions = numbers["machine"], numbers["versions"]
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    device = "" if machine["device"] == "cpu" else f"; {machine['device']}"
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    table.add_row("machine", f"{machine['processor']}, {cores}{device}")
    table.add_row("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v))
    if numbers["commit"]:
        table.add_row("commit", numbers["commit"])
    table.add_row("command", numbers["command"])
    table.add_row("date", numbers["date"])
    if machine["load_before"] is not None:
        load = f"{machine['load_before']:.1f} processes on average before the run"
        table.add_row("load", f"{load}; times are comparable where that is far below the cores")
    return table


def bandwidth_table(numbers: dict[str, Any]) -> Table:
    table = Table(title="memory", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("bytes", "read GB/s", "fastest way", "copy GB/s"):
        table.add_column(name, justify="left" if name == "fastest way" else "right")
    for row in numbers["bandwidth"]:
        read, copy = figure(row["read_gb_s"]), figure(row["copy_gb_s"])
        table.add_row(f"{row['bytes']:,}", read, row["read_way"], copy)
    return table


def grouped(numbers: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Rows of cells by dtype, form and backend; within, by operation."""
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for of_setting in numbers["settings"]:
        setting = of_setting["setting"]
        for row in of_setting.get("results", ()):
            title = f"{setting['dtype']}, {setting['form']}, {row['backend']}"
            groups.setdefault(title, []).append((row["operation"], cells(setting, row, of_setting["peers"])))
    order = list(dict.fromkeys(operation for rows in groups.values() for operation, _ in rows))
    return {
        title: [row for name in order for operation, row in rows if operation == name]
        for title, rows in groups.items()
    }


def cells(setting: dict[str, Any], row: dict[str, Any], theirs: list[dict[str, Any]]) -> list[str]:
    """One row of the table."""
    over = row["time_over_floor"]
    extra = row.get("extra_memory_bytes")
    return [
        row["operation"],
        str(setting["m"]),
        f"{setting['n']:,}",
        figure(row["median_us"]),
        f"{figure(row['p20_us'])}–{figure(row['p80_us'])}",
        figure(row["gb_s"]),
        figure(row["floor_us"]),
        "" if over is None else f"{over:.2f} ({row['percent_of_floor']:.0f} %)",
        *(faster(row, theirs, name) for name in PEERS),
        "" if extra is None else f"{extra / 1e6:.1f} MB",
    ]


def faster(row: dict[str, Any], theirs: list[dict[str, Any]], name: str) -> str:
    """How many times faster than a peer, and what is wrong with either's result."""
    peer = next((p for p in theirs if p["name"] == name and p["operation"] == row["operation"]), None)
    if peer is None:
        return ""
    if not row["right"]:
        return "refused"
    ratio = f"{figure(row['faster_than'][name])}×"
    if peer["right"]:
        return ratio
    if peer["right"] is None:
        return f"{ratio} (order)"
    error = "nan" if peer["error"] is None else f"{peer['error']:.0e}"
    return f"{ratio} ({error})"


def result_table(title: str, rows: list[list[str]]) -> Table:
    table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("case", no_wrap=True)
    for name in ("m", "N", "median µs", "p20–p80", "GB/s", "floor µs", "over floor", *PEERS, "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in rows:
        if before not in (None, row[0]):
            table.add_section()
        before = row[0]
        table.add_row(*row)
    return table


def narrow_table(title: str, rows: list[list[str]]) -> Table:
    """As many :func:`cells` as fit into 80 columns."""
    heads = ("m", "N", "median\nµs", "over\nfloor", "plain\ntorch", "torch-\njd", "conflict-\nfree")
    table = Table(
        title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    table.add_column("case", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True, min_width=len(head.partition("\n")[0]) + 1)
    before = None
    for case, m, n, median, _, _, _, over, *theirs, _ in rows:
        if before not in (None, case):
            table.add_section()
        before = case
        table.add_row(case, m, n, median, over.partition(" ")[0], *(_marked(cell) for cell in theirs))
    return table


def _marked(cell: str) -> str:
    """A mark in place of what stands in brackets."""
    ratio, _, why = cell.partition(" (")
    return ratio if not why else f"{ratio}{'†' if why == 'order)' else '*'}"


def left_out(numbers: dict[str, Any]) -> Iterator[str]:
    """Wrong results of ours, peers that are missing, and cases that were skipped, with the reasons."""
    for of_setting in numbers["settings"]:
        where = "m = {m}, N = {n:,}, {dtype}, {form}".format(**of_setting["setting"])
        for row in of_setting.get("results", ()):
            if not row["right"]:
                error = "not finite" if row["error"] is None else f"{row['error']:.1e}"
                yield (
                    f"WRONG: {row['operation']} on {row['backend']}, {where}: error {error}, "
                    f"bound {row['bound']:.1e}; no speed-up is stated"
                )
    for name, state in numbers["peers"].items():
        if state != "installed":
            yield f"{name}: {state}"
    places: dict[str, list[str]] = {}
    for of_setting in numbers["settings"]:
        where = "m = {m}, N = {n:,}, {dtype}, {form}".format(**of_setting["setting"])
        for skip in of_setting["skipped"]:
            what = " ".join(skip[key] for key in ("name", "backend", "operation") if key in skip)
            places.setdefault(f"{what}: {skip['reason']}", []).append(where)
    for what, where_all in places.items():
        more = f" and {len(where_all) - 1} more" if len(where_all) > 1 else ""
        yield f"skipped: {what} ({where_all[0]}{more})"


def figure(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
