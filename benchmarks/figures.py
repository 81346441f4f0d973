"""Draw the pictures of README.md and docs: what a conflict is, equal cosines, and how a merge works.

    python benchmarks/figures.py    writes docs/figures/*.svg; cosines.svg needs conflictfree

Every vector and every cosine in them is computed when the script runs.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from fastconfig import ConFIG_update

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
BLUE, ORANGE, GREEN, RED, GREY = "#1f77b4", "#e08214", "#1b7837", "#b2182b", "#777777"
M, SIZES, SEED = 5, (1_000_000, 5_000_000), 0  # as examples/equal_cosines.py


def conflict() -> Figure:
    """Two gradients more than 90 degrees apart: their sum hurts one, a merged update helps both."""
    grads = torch.tensor([[-0.55, 0.62], [1.9, 0.25]], dtype=torch.float64)
    updates = {"sum": grads.sum(0), "ConFIG": ConFIG_update(grads)}
    figure = Figure(figsize=(6, 2.3), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (name, update) in zip(panels, updates.items(), strict=True):
        for i, (grad, colour) in enumerate(zip(grads, (BLUE, ORANGE), strict=True)):
            arrow(axes, grad, colour)
            axes.annotate(f"$g_{i + 1}$", grad.tolist(), (4, 4), textcoords="offset points", color=colour)
        cosines = torch.cosine_similarity(update, grads)
        good = bool((cosines >= -1e-12).all())
        arrow(axes, update, GREEN if good else RED, width=3)
        axes.set_title(f"{name}: cosines {cosines[0]:+.2f}, {cosines[1]:+.2f}", fontsize=11)
        axes.set_xlabel("helps both losses" if good else "makes loss 1 worse", color=GREEN if good else RED)
        axes.set(xlim=(-0.9, 2.3), ylim=(-0.15, 1.35), aspect="equal", xticks=[], yticks=[])
    return figure


def arrow(axes: Axes, tip: torch.Tensor, colour: str, width: float = 2) -> None:
    axes.add_patch(FancyArrowPatch((0, 0), tip.tolist(), arrowstyle="-|>", mutation_scale=14, lw=width,
                                   color=colour, shrinkA=0, shrinkB=0))  # fmt: skip


def cosines() -> Figure:
    """The cosine of the update with each of five gradients, by this package and by conflictfree."""
    sys.path.insert(0, str(ROOT / "examples"))
    example: Any = importlib.import_module("equal_cosines")
    theirs = importlib.import_module("conflictfree.grad_operator").ConFIG_update
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    panels = figure.subplots(1, len(SIZES), sharey=True)
    torch.manual_seed(SEED)
    for axes, n in zip(panels, SIZES, strict=True):
        rows = example.gradients(M, n)
        places = list(range(1, M + 1))
        values = example.cosines(theirs(list(rows)), rows)
        axes.axhline(0, color=GREY, lw=0.8)
        axes.scatter(places, values, color=RED, marker="x", s=55, label="conflictfree", zorder=3)
        values = example.cosines(ConFIG_update(list(rows)), rows)
        axes.plot(places, values, color=GREEN, marker="o", ms=7, lw=1, label="fastconfig", zorder=2)
        axes.set_title(f"N = {n:,}", fontsize=11)
        axes.set(xlabel="gradient", xticks=places, ylim=(-1, 1))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cosine with the update")
    panels[0].legend(loc="lower left", frameon=False, ncols=2)
    return figure


def how() -> Figure:
    """Gram, rule, combine: the gradients are read twice, and only m numbers decide."""
    figure = Figure(figsize=(7, 2.1), layout="constrained")
    axes = figure.subplots()
    rows(axes, 0, "m gradients\nof N elements", (BLUE, ORANGE, GREEN))
    square(axes, 4.6, "Gram matrix\nm × m, float64")
    for k, height in enumerate((0.9, 0.35, 0.6)):
        axes.add_patch(Rectangle((7.3 + 0.42 * k, 0.75), 0.3, height, color=(BLUE, ORANGE, GREEN)[k]))
    caption(axes, 7.9, "m coefficients")
    rows(axes, 10.2, "update\nof N elements", ("#4d4d4d",))
    for left, right, text in ((3.1, 4.5, "gram"), (6.0, 7.2, "rule"), (8.8, 10.1, "combine")):
        axes.annotate("", (right, 1.2), (left, 1.2), arrowprops={"arrowstyle": "-|>", "color": "black"})
        axes.text((left + right) / 2, 1.32, text, ha="center", weight="bold")
    axes.annotate("", (9.4, 2.0), (1.5, 2.0), arrowprops={"arrowstyle": "-", "color": GREY, "ls": "--"})
    axes.annotate("", (9.4, 1.65), (9.4, 2.0), arrowprops={"arrowstyle": "-|>", "color": GREY, "ls": "--"})
    axes.text(5.5, 2.07, "second read of the gradients", ha="center", color=GREY)
    axes.text(3.8, 0.86, "first read", ha="center", color=GREY)
    axes.set(xlim=(-0.1, 13.3), ylim=(-0.1, 2.35))
    axes.axis("off")
    return figure


def rows(axes: Axes, left: float, text: str, colours: tuple[str, ...]) -> None:
    for k, colour in enumerate(colours):
        top = 1.2 + 0.32 * (len(colours) / 2 - 1 - k)
        axes.add_patch(Rectangle((left, top), 3.0, 0.24, color=colour))
    caption(axes, left + 1.5, text)


def square(axes: Axes, left: float, text: str) -> None:
    for i in range(3):
        for j in range(3):
            shade = {"color": GREY, "alpha": 0.9 if i + j == 2 else 0.35}
            axes.add_patch(Rectangle((left + 0.44 * i, 0.72 + 0.33 * j), 0.4, 0.3, **shade))
    caption(axes, left + 0.65, text)


def caption(axes: Axes, centre: float, text: str) -> None:
    axes.text(centre, 0.5, text, ha="center", va="top")


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    mpl.rcParams |= {"svg.hashsalt": "fastconfig", "font.size": 10, "svg.fonttype": "path"}
    for draw in (conflict, cosines, how):
        path = FIGURES / f"{draw.__name__}.svg"
        draw().savefig(path, metadata={"Date": None})
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
