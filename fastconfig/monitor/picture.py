"""All figures of a run in one picture: it can be read in grey and by the colour-blind."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .figures import Figures, pairs
from .ring import FloatArray
from .summary import summarize

# Okabe and Ito's colours; each line has a dash and a mark of its own, too
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
MARKS = ("o", "s", "^", "D", "v", "P")
LINES = len(COLOURS)  # that a panel has; the others are a band
GREY = "#d9d9d9"
_LEGEND: dict[str, Any] = {
    "loc": "outside right upper",
    "fontsize": 8,
    "title_fontsize": 8,
    "frameon": False,
    "handlelength": 3.2,
    "alignment": "left",
}
_RAW = 240  # steps up to which each is drawn
_BINS = 60
_WIDTH = 148  # characters of a line of the caption


class Series(NamedTuple):
    """Values (steps, k): as they are, or of many steps medians, and where 80 % of them lie."""

    steps: FloatArray
    middle: FloatArray
    low: FloatArray
    high: FloatArray


def plot(figures: Figures, names: Sequence[str], path: Path) -> None:
    """Write the picture, or the page for ``.html``; see :meth:`Monitor.plot`."""
    if not len(figures["step"]):
        raise ValueError("monitor: got no step yet, want one at least to plot")
    if path.suffix.lower() in (".html", ".htm"):
        from .page import page

        path.write_text(page(figures, names), encoding="utf-8")
        return
    figure = draw(figures, names)
    figure.savefig(path)


def draw(figures: Figures, names: Sequence[str], *, caption: bool = True) -> Any:
    """A matplotlib figure of six panels.

    Args:
        figures: as :meth:`Monitor.history` has them, one step at least.
        names: of the losses.
        caption: below it, what is seen.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot: needs matplotlib: pip install matplotlib") from error

    lines = _caption(figures, names) if caption else []
    figure = Figure(figsize=(10, 10.2 + 0.2 * len(lines)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(3, 1, height_ratios=(1.2, 0.9, 1.0))
    top, middle, bottom = parts
    cosines, share = top.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
    norms, coefficients = middle.subplots(1, 2)
    along, heat = bottom.subplots(1, 2, width_ratios=(1, 1))
    top.legend(*_cosines(cosines, figures, names), **_LEGEND, title="pair", ncols=1)
    _share(share, figures)
    chosen = _chosen_losses(figures)
    for panel in (share, norms, coefficients, along):
        panel.set_xlabel("step")
    everyone = [_label(_short(name)) for name in names]
    _lines(norms, figures, "norms", everyone, chosen)
    _log_scale(norms, figures["norms"])
    _title(norms, "Length of each gradient")
    _lines(coefficients, figures, "coefficients", everyone, chosen)
    if not _log_scale(coefficients, figures["coefficients"]):
        _without_outliers(coefficients, figures["coefficients"])
    _title(coefficients, "Coefficient of each gradient in the update")
    _lines(along, figures, "update_cosines", everyone, chosen)
    _below_zero(along)
    _title(along, "Cosine of the update with each gradient")
    _heat(heat, figures, names)
    middle.legend(*norms.get_legend_handles_labels(), **_LEGEND, title="loss", ncols=1)
    if lines:
        figure.supxlabel("\n".join(lines), x=0.02, ha="left", fontsize=9, linespacing=1.4)
    return figure


def _caption(figures: Figures, names: Sequence[str]) -> list[str]:
    steps = figures["step"]
    seen = f"{len(steps):,} steps, {steps[0]:,} to {steps[-1]:,}."
    if len(steps) > _RAW:
        seen += " Lines are medians of many steps, bands hold 80 % of them."
    said = " ".join([seen, *summarize(figures, names).sentences])
    return textwrap.wrap(_label(said).strip(), _WIDTH)


def series(steps: Any, values: FloatArray) -> Series:
    """Values (n, k) over the steps, of more than 240 steps in 60 parts."""
    if len(steps) <= _RAW:
        return Series(steps, values, values, values)
    edges = np.linspace(0, len(steps), _BINS + 1).astype(int)
    percentile = np.nanpercentile if np.isnan(values).any() else np.percentile  # which is quicker
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of parts that are NaN throughout
        found = [percentile(values[a:b], (10, 50, 90), axis=0) for a, b in pairwise(edges.tolist())]
    low, middle, high = np.array(found).swapaxes(0, 1)
    return Series((steps[edges[:-1]] + steps[edges[1:] - 1]) / 2, middle, low, high)


def _cosines(panel: Any, figures: Figures, names: Sequence[str]) -> Any:
    """Draws them; returns what the legend shows."""
    cosines = figures["cosines"]
    labels = [_label(f"{_short(names[i])} – {_short(names[j])}") for i, j in pairs(len(names))]
    filled = np.where(np.isnan(cosines), 0, cosines)
    order = np.argsort(filled.mean(axis=0), kind="stable")
    chosen = sorted(order[:LINES].tolist())
    _lines(panel, figures, "cosines", labels, chosen)
    _below_zero(panel)
    title = "Cosine of each pair of gradients; below 0 they conflict"
    if len(labels) > LINES:
        title = f"Cosine of pairs of gradients, of {len(labels)} the {LINES} lowest; below 0 they conflict"
    _title(panel, title)
    return panel.get_legend_handles_labels()


def _share(panel: Any, figures: Figures) -> None:
    rate = 100 * figures["conflict_rate"]
    count = len(rate)
    edges = np.linspace(0, count, min(count, 60) + 1).astype(int)
    steps = figures["step"]
    means = [
        np.nanmean(part) if len(part := rate[a:b][~np.isnan(rate[a:b])]) else 0.0
        for a, b in pairwise(edges.tolist())
    ]
    ends = [*steps[edges[:-1]], steps[-1] + 1]
    panel.stairs(means, ends, fill=True, color="#7f7f7f")
    panel.set_ylim(0, 100)
    panel.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    _title(panel, "Share of the pairs in conflict")
    _plain(panel)


def _chosen_losses(figures: Figures) -> list[int]:
    """Which losses have a line: all of a few; else those with the longest and the shortest gradients."""
    m = figures["norms"].shape[1]
    if m <= LINES:
        return list(range(m))
    norms = figures["norms"]
    order = np.argsort(np.median(np.where(np.isnan(norms), 0, norms), axis=0), kind="stable")
    return sorted([*order[: LINES // 2].tolist(), *order[-(LINES - LINES // 2) :].tolist()])


def _lines(
    panel: Any,
    figures: Figures,
    key: str,
    labels: Sequence[str],
    chosen: Sequence[int],
) -> None:
    found = series(figures["step"], figures[key])
    count = found.middle.shape[1]
    if len(chosen) < count:
        low, high = np.nanmin(found.low, axis=1), np.nanmax(found.high, axis=1)
        panel.fill_between(found.steps, low, high, color=GREY, linewidth=0, label=f"all {count}")
    for place, k in enumerate(chosen):
        colour = COLOURS[place]
        if found.low is not found.middle and len(chosen) == count:
            low, high = found.low[:, k], found.high[:, k]
            panel.fill_between(found.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        every = max(len(found.steps) // 8, 1)
        first = min(place * every // LINES, len(found.steps) - 1)
        panel.plot(
            found.steps,
            found.middle[:, k],
            color=colour,
            linestyle=DASHES[place],
            marker=MARKS[place],
            markersize=4,
            markevery=(first, every),
            linewidth=1.3,
            label=labels[k],
        )
    _plain(panel)


def _heat(panel: Any, figures: Figures, names: Sequence[str]) -> None:
    """Mean cosines: dark is conflict, in grey as well."""
    m = len(names)
    if m == 1:
        panel.axis("off")
        return
    mean = np.full((m, m), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for p, (i, j) in enumerate(pairs(m)):
            mean[j, i] = np.nanmean(figures["cosines"][:, p])
    limit = max(np.ceil(10 * np.nanmax(np.abs(mean), initial=0.1)) / 10, 0.1)
    image = panel.imshow(mean[1:, :-1], vmin=-limit, vmax=limit, cmap="cividis", aspect="auto")
    bar = panel.figure.colorbar(image, ax=panel, shrink=0.9)
    bar.set_ticks([-limit, 0, limit], labels=[f"{-limit:.1f}", "0", f"{limit:+.1f}"])
    size = 9 if m <= 6 else 7 if m <= 9 else 5.5
    for j in range(1, m):
        for i in range(j):
            value = mean[j, i]
            if not np.isnan(value):
                colour = "black" if value > 0.1 * limit else "white"
                weight = "bold" if value < 0 else "normal"
                panel.text(
                    i,
                    j - 1,
                    f"{value:+.2f}",
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize=size,
                    weight=weight,
                )
    labels = [_label(_short(name)) for name in names]
    panel.set_xticks(
        range(m - 1),
        labels[:-1],
        rotation=0 if m <= 4 else 60,
        ha="center" if m <= 4 else "right",
        rotation_mode="anchor" if m > 4 else "default",
        fontsize=8,
    )
    panel.set_yticks(range(m - 1), labels[1:], fontsize=8)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    _title(panel, "Mean cosine of each pair: dark is conflict")


def _below_zero(panel: Any) -> None:
    panel.axhspan(-2, 0, color="#f0f0f0", zorder=0)
    panel.axhline(0, color="#404040", linewidth=0.8)
    panel.set_ylim(-1.05, 1.05)


def _log_scale(panel: Any, values: FloatArray) -> bool:
    """Logarithmic, where 99 % of the values are positive, and they lie far apart; whether it is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return False
    low, high = np.quantile(known, (0.01, 1))
    if low > 0 and high > 10 * low:
        panel.set_yscale("log")
        return True
    return False


def _without_outliers(panel: Any, values: FloatArray) -> None:
    """Limit the axis so that 98 % of the values fill the panel."""
    known = values[np.isfinite(values)]
    if len(known) > _RAW:
        low, high = np.quantile(known, (0.01, 0.99))
        margin = 0.08 * (high - low)
        if margin > 0:
            panel.set_ylim(low - margin, high + margin)


def _plain(panel: Any) -> None:
    panel.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}" if step == round(step) else "")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.margins(x=0.01)


def _title(panel: Any, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=10, weight="bold")


def _label(name: str) -> str:
    """A name as matplotlib shows it as it is: no formula, and in a legend."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"
