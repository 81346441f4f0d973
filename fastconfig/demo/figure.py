"""The demo's picture: solution, prediction and errors above; losses and cosines below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .burgers import LOSS_NAMES, FloatArray
from .training import CONFIG, MOMENTUM, PLAIN_SUM, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    AxesRow = npt.NDArray[Any]

# Okabe and Ito's palette, which all kinds of colour vision tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73")
WIDTHS = (1.8, 1.8, 1.8)
# ConFIG's cosines coincide: the lines get thinner from one loss to the next, so that all are seen.
NESTED_WIDTHS = (5.5, 3.2, 1.2)
SHARED: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": (0, 1, -1, 1)}
DASHES = ("-", "--", "-.")  # in grey as well
BINS = 100
COSINE_BINS = 30  # the plain sum's swing from step to step
SMALLEST_ERROR = 1e-4
STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.labelsize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(result: Result, path: Path) -> None:
    """Write the picture as a PNG, of 16 : 9 for two ways to train; readable on a slide.

    With more methods to compare: a column for each, with errors, losses and cosines.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, hspace=0.04)
        several = bool(result.settings.compare)
        columns = len(result.trainers) + (0 if several else 2)
        figure = Figure(figsize=(4 * columns, 13 if several else 9), dpi=120, layout=layout)
        FigureCanvasAgg(figure)
        axes = figure.subplots(3 if several else 2, columns)
        others = "M-ConFIG's and the plain sum" if MOMENTUM in result.trainers else "the plain sum"
        shown = f"{columns} ways to train" if several else f"ConFIG's update beside {others}"
        figure.suptitle(
            f"Burgers' equation learnt from three losses: {shown}, {result.settings.steps} steps",
            fontsize=18,
        )
        if several:
            draw_errors(figure, axes[0], result)
            draw_losses(axes[1], result)
            draw_cosines(axes[2], result, [*result.trainers])
        else:
            draw_fields(figure, axes[0], result)
            draw_losses(axes[1, :-2], result)
            draw_cosines(axes[1, -2:], result, [CONFIG, PLAIN_SUM])
        handles, labels = axes[1, 0].get_legend_handles_labels()
        figure.legend(
            handles,
            [f"{label} loss" for label in labels],
            loc="outside lower center",
            ncols=3,
            fontsize=14,
        )
        figure.savefig(path)


def draw_fields(figure: Figure, axes: AxesRow, result: Result) -> None:
    """Exact solution and ConFIG's prediction on one scale, all errors on another."""
    for ax, title, field in (
        (axes[0], "Exact solution", result.exact),
        (axes[1], f"{CONFIG}: prediction", result.predictions[CONFIG]),
    ):
        image = ax.imshow(field.T, cmap="RdBu_r", vmin=-1, vmax=1, **SHARED)
        label(ax, title, "u(t, x)")
    figure.colorbar(image, ax=axes[:2].tolist(), pad=0.02, aspect=30, ticks=(-1, -0.5, 0, 0.5, 1))
    draw_errors(figure, axes[2:], result)
    for ax in axes[:2]:
        ax.set(xlabel="t", xticks=(0, 0.5, 1), yticks=(-1, 0, 1))
    axes[0].set_ylabel("x", labelpad=-6)


def draw_errors(figure: Figure, axes: AxesRow, result: Result) -> None:
    """The errors of all ways to train, on one scale."""
    from matplotlib.colors import LogNorm

    for ax, name in zip(axes, result.trainers, strict=True):
        error = np.abs(result.predictions[name] - result.exact)
        image = ax.imshow(
            np.maximum(error, SMALLEST_ERROR).T,
            cmap="cividis",
            norm=LogNorm(SMALLEST_ERROR, 1),
            **SHARED,
        )
        total = result.summary(name)["relative_l2_error"]
        label(ax, f"{name}: absolute error", f"{100 * total:.1f} % relative L2 error")
        ax.set(xlabel="t", xticks=(0, 0.5, 1), yticks=(-1, 0, 1))
    if result.settings.compare:  # it is the first panel of its row
        axes[0].set_ylabel("x", labelpad=-6)
    figure.colorbar(image, ax=axes.tolist(), pad=0.02, aspect=30)


def draw_losses(axes: AxesRow, result: Result) -> None:
    """The three losses of all ways to train, on one logarithmic scale."""
    for ax, name in zip(axes, result.trainers, strict=True):
        if ax is not axes[0]:
            ax.sharey(axes[0])
        record = np.array(result.trainers[name].losses)
        bands(ax, np.arange(1, len(record) + 1), record, WIDTHS)
        ax.set_yscale("log")
        label(ax, f"{name}: losses", "median, 10 to 90 % range")
    axes[0].set_ylabel("mean square")


def draw_cosines(axes: AxesRow, result: Result, names: list[str]) -> None:
    """Cosine of the update with each loss's gradient; below zero the update harms that loss."""
    for ax, name in zip(axes, names, strict=True):
        history = result.trainers[name].monitor.history()
        record = history["update_cosines"]
        if not len(record):  # not every loss of M-ConFIG has had its turn
            ax.set_axis_off()
            continue
        widths = NESTED_WIDTHS if name in (CONFIG, MOMENTUM) else WIDTHS
        bands(ax, history["step"] + 1, record, widths, COSINE_BINS)
        ax.axhline(0, color="black", linewidth=1)
        ax.set(ylim=(-1, 1), yticks=(-1, -0.5, 0, 0.5, 1))
        share = (record < 0).any(axis=1).mean()
        against = "momentum" if name == MOMENTUM else "gradient"
        label(ax, f"{name}: cosines", f"against a {against} in {100 * share:.0f} % of steps")
    axes[0].set_ylabel("cosine (update, gradient)")


def bands(
    ax: Axes, steps: npt.NDArray[Any], record: FloatArray, widths: tuple[float, ...], bins: int = BINS
) -> None:
    """For each loss the median and, paler, the range from the 10th to the 90th percentile."""
    parts = np.array_split(np.arange(len(steps)), min(bins, len(steps)))
    centres = [steps[part].mean() for part in parts]
    ranges = np.array([np.percentile(record[part], (10, 50, 90), axis=0) for part in parts])
    dashes = ("-", "-", "-") if widths is NESTED_WIDTHS else DASHES
    for column, name in enumerate(LOSS_NAMES):
        low, middle, high = ranges[:, :, column].T
        colour = COLOURS[column]
        ax.fill_between(centres, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(centres, middle, color=colour, linewidth=widths[column], linestyle=dashes[column], label=name)
    ax.set_xlabel("step")
    ax.grid(alpha=0.25)


def label(ax: Axes, title: str, subtitle: str) -> None:
    ax.set_title(title[0].upper() + title[1:], loc="left", fontsize=15, fontweight="bold", pad=26)
    ax.text(0, 1.03, subtitle, transform=ax.transAxes, color="0.3")
