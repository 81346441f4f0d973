"""Time of the whole ConFIG update over N, one panel for each m, with the floor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATION = "ConFIG_update"
COLOURS = {"plain torch": "#3b7dd8", "torchjd": "#2f9e6e", "conflictfree": "#e08a1e"}
OURS = ("#c0223b", "#8e5bb5", "#7a4a2b", "#d46a9f")
FLOOR = "#555555"
WRONG = "hollow: off by more than rounding"
FLOOR_NAME = "floor: read twice, write once"
LEGEND = (*COLOURS, FLOOR_NAME, WRONG)  # in this order, after this package

Point = tuple[float, dict[str, Any]]


def draw(numbers: dict[str, Any], path: Path) -> None:
    """Write the picture for the first dtype and form of the run.

    Args:
        numbers: of a run.
        path: of the file; its ending says which format.

    Raises:
        ValueError: if the run has no whole update to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept = drawable(numbers)
    if not kept:
        raise ValueError(f"this run has no {OPERATION} to draw")
    ms = sorted({of_setting["setting"]["m"] for of_setting in kept})
    columns = min(len(ms), 3)
    rows = -(-len(ms) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.7 * rows + 1.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel, m in zip(panels.flat, ms, strict=False):
        draw_panel(panel, [s for s in kept if s["setting"]["m"] == m], m)
    found = [pair for panel in panels.flat for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in reversed(found)}
    names = [name for name in LEGEND if name in handles]
    names = [name for name in handles if name not in LEGEND][::-1] + names
    for unused in panels.flat[len(ms) :]:
        unused.axis("off")
    for column in range(columns):
        lowest = max(k for k in range(column, len(ms), columns))
        panels.flat[lowest].set_xlabel("N, elements of a gradient")
        panels.flat[lowest].xaxis.set_tick_params(labelbottom=True)
    for row in panels:
        row[0].set_ylabel("µs a call")
    setting, machine = kept[0]["setting"], numbers["machine"]
    place = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    separator = "; " if columns > 1 else "\n"
    figure.suptitle(
        f"{OPERATION} of m gradients, {setting['dtype']} {setting['form']}\n"
        f"{place}, {machine['threads']} threads{separator}medians, bands from p20 to p80",
        fontsize=11,
    )
    if len(ms) < rows * columns:
        panels.flat[-1].legend(
            [handles[name] for name in names], names, loc="center", frameon=False, fontsize=11
        )
    else:
        columns_of_legend = len(names) if columns > 2 else columns + 1
        figure.legend(
            [handles[name] for name in names],
            names,
            loc="outside lower center",
            ncols=columns_of_legend,
            frameon=False,
        )
    figure.savefig(path)


def drawable(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings with a whole update, all of the dtype and form of the first."""
    kept = [
        of_setting
        for of_setting in numbers["settings"]
        if any(row["operation"] == OPERATION for row in of_setting.get("results", ()))
    ]
    return [
        of_setting
        for of_setting in kept
        if all(of_setting["setting"][key] == kept[0]["setting"][key] for key in ("dtype", "form"))
    ]


def draw_panel(panel: Any, settings: list[dict[str, Any]], m: int) -> None:
    """All lines of one m."""
    for name, colour in COLOURS.items():
        points = _points(settings, "peers", lambda row, name=name: row["name"] == name)  # type: ignore[misc]
        _line(panel, points, name, colour, 1.4)
    backends = list(dict.fromkeys(row["backend"] for s in settings for row in s["results"]))
    for backend, colour in zip(backends, OURS, strict=False):
        points = _points(settings, "results", lambda row, backend=backend: row["backend"] == backend)  # type: ignore[misc]
        _line(panel, points, f"fastconfig ({backend})", colour, 2.4)
    floors = sorted((s["setting"]["n"], _floor(s)) for s in settings)
    panel.plot(
        *zip(*floors, strict=True),
        color=FLOOR,
        linestyle="--",
        linewidth=1.4,
        label=FLOOR_NAME,
    )
    if any(
        row["right"] is False
        for of_setting in settings
        for row in [*of_setting["results"], *of_setting["peers"]]
    ):
        panel.plot([], [], color=FLOOR, marker="o", markerfacecolor="white", linestyle="", label=WRONG)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title(f"m = {m}", fontsize=11)
    panel.grid(which="major", color="#dddddd", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _points(
    settings: list[dict[str, Any]], key: str, wanted: Callable[[dict[str, Any]], bool]
) -> list[Point]:
    rows = [(s["setting"]["n"], row) for s in settings for row in s[key]]
    chosen = [(n, row) for n, row in rows if row["operation"] == OPERATION and wanted(row)]
    return sorted(chosen, key=lambda point: point[0])


def _line(panel: Any, points: list[Point], label: str, colour: str, width: float) -> None:
    if not points:
        return
    n = [at for at, _ in points]
    panel.plot(
        n,
        [row["median_us"] for _, row in points],
        color=colour,
        linewidth=width,
        label=label,
    )
    for right, face in ((True, colour), (False, "white")):
        shown = [(at, row["median_us"]) for at, row in points if row["right"] is right]
        panel.plot(
            [at for at, _ in shown],
            [median for _, median in shown],
            color=colour,
            linestyle="",
            marker="o",
            markersize=5,
            markerfacecolor=face,
        )
    low, high = ([row[key] for _, row in points] for key in ("p20_us", "p80_us"))
    panel.fill_between(n, low, high, color=colour, alpha=0.2, linewidth=0)


def _floor(of_setting: dict[str, Any]) -> float:
    return next(row["floor_us"] for row in of_setting["results"] if row["operation"] == OPERATION)
