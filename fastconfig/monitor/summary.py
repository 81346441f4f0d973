"""What a run's figures say, as tables and in a sentence each."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import Figures, pairs

if TYPE_CHECKING:
    from rich.console import RenderableType

RARE = 0.05  # a share of the steps up to which a plain sum will do
LONG = 3.0  # a ratio of norms from which on one gradient decides
_SHOWN = 12  # pairs in a table


@dataclass(frozen=True)
class Summary:
    """Tables and sentences; ``print`` shows them.

    Attributes:
        pairs: of each pair of losses, those in conflict most often first: names, share of the steps in which
            they conflict, mean and lowest cosine.
        losses: of each loss: name, median norm, share of the steps in which its gradient is the longest,
            median coefficient, share of the steps in which the update points against it.
        sentences: what that means.
        groups: summaries of the groups of parameters, by name.
    """

    pairs: list[tuple[str, float, float, float]] = field(default_factory=list)
    losses: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    groups: dict[str, Summary] = field(default_factory=dict)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = []
        if self.losses:
            parts += [_pair_table(self.pairs), _loss_table(self.losses)]
        parts += [Text(f"• {sentence}") for sentence in self.sentences]
        for name, summary in self.groups.items():
            parts += [Text(f"\n{name}", style="bold"), *(Text(f"• {s}") for s in summary.sentences)]
        return Group(*parts)

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=100).print(self)
        return file.getvalue().rstrip("\n")

    __repr__ = __str__


def summarize(
    figures: Figures | None, names: Sequence[str], groups: Mapping[str, Summary] | None = None
) -> Summary:
    """The summary of figures as :meth:`Monitor.history` has them; None where there are groups only."""
    if figures is None:
        return Summary(groups=dict(groups or {}))
    finite: Any = np.isfinite(figures["norms"]).all(axis=1)
    count = int(finite.sum())
    if not count:
        known = "no step was kept" if not len(finite) else "no step had finite gradients"
        return Summary(sentences=[f"Nothing to say: {known}."], groups=dict(groups or {}))
    kept = {key: values[finite] for key, values in figures.items()}
    found = Summary(_pairs(kept, names), _losses(kept, names), [], dict(groups or {}))
    found.sentences.extend(_sentences(found, kept, len(finite) - count))
    return found


def _pairs(figures: Figures, names: Sequence[str]) -> list[tuple[str, float, float, float]]:
    found = []
    for p, (i, j) in enumerate(pairs(len(names))):
        cosines = figures["cosines"][:, p]
        known = cosines[~np.isnan(cosines)]
        if len(known):
            share = float((known < 0).sum() / len(cosines))
            found.append((f"{names[i]}, {names[j]}", share, float(known.mean()), float(known.min())))
    return sorted(found, key=lambda row: (-row[1], row[2]))


def _losses(figures: Figures, names: Sequence[str]) -> list[tuple[str, float, float, float, float]]:
    norms, against = figures["norms"], figures["update_cosines"] < 0
    longest = norms.argmax(axis=1)
    return [
        (
            name,
            float(np.median(norms[:, i])),
            float((longest == i).mean()),
            float(np.median(figures["coefficients"][:, i])),
            float(against[:, i].mean()),
        )
        for i, name in enumerate(names)
    ]


def _sentences(summary: Summary, figures: Figures, bad: int) -> list[str]:
    said = [] if len(summary.losses) < 2 else [*_of_conflict(summary.pairs), _of_lengths(summary, figures)]
    said.append(_of_update(summary.losses))
    ratio = figures["update_ratio"][np.isfinite(figures["update_ratio"])]
    if len(ratio):
        middle = float(np.median(ratio))
        long = "as long as" if abs(middle - 1) < 0.005 else f"{_times(middle)} as long as"
        said.append(f"The update is {long} the plain sum (median).")
    if bad:
        said.append(f"{bad} more {_steps(bad)} had gradients with NaN or Inf, and {_is(bad)} left out here.")
    return said


def _of_conflict(rows: list[tuple[str, float, float, float]]) -> list[str]:
    often = [row for row in rows if row[1] > RARE]
    some = [row for row in rows if row[1] > 0]
    if not some:
        return ["No two losses conflict in any step: they agree, and a plain sum will do."]
    if not often:
        pair, share, *_ = some[0]
        return [
            f"Losses hardly conflict, {_and(pair)} in {percent(share)} of the steps: a plain sum will do."
        ]
    found = ", ".join(f"{_and(pair)} in {percent(share)}" for pair, share, *_ in often[:3])
    said = (
        f"There is conflict between {found} of the steps: a step along one's gradient raises the other there."
    )
    if len(often) == 1 or len(rows) <= 3:
        return [said]
    return [said, f"In all, {len(often)} of {len(rows)} pairs conflict in more than 5 % of the steps."]


def _of_lengths(summary: Summary, figures: Figures) -> str:
    ratios = figures["norm_ratio"][np.isfinite(figures["norm_ratio"])]
    ratio = float(np.median(ratios)) if len(ratios) else np.inf
    name, _, share, *_ = max(summary.losses, key=lambda row: row[2])
    if ratio < LONG:
        return f"The gradients are of similar lengths, the longest {_times(ratio)} the shortest (median)."
    said = f"The gradient of {name} is the longest in {percent(share)} of the steps, and the longest is "
    said += f"{_times(ratio)} the shortest (median): " if np.isfinite(ratio) else "beside one that is zero: "
    return said + "a plain sum mostly follows the longest."


def _of_update(losses: list[tuple[str, float, float, float, float]]) -> str:
    against = [(share, name) for name, *_, share in losses if share > 0]
    if not against:
        return "The update points against no gradient in any step."
    worst = [f"{name} in {percent(share)}" for share, name in sorted(against, reverse=True)[:3]]
    return f"The update points against {', '.join(worst)} of the steps."


def percent(share: float) -> str:
    """A share in words that never round something to nothing, or to all."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    if 0.99 < share < 1:
        return "more than 99 %"
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 100 else f"{ratio:,.0f} times"


def _and(pair: str) -> str:
    return " and ".join(pair.split(", "))


def _steps(count: int) -> str:
    return "step" if count == 1 else "steps"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def table(title: str, columns: Sequence[str]) -> Any:
    """An empty table, the first column to the left."""
    from rich import box
    from rich.table import Table

    found = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for k, column in enumerate(columns):
        found.add_column(column, justify="right" if k else "left", overflow="fold")
    return found


def _pair_table(rows: list[tuple[str, float, float, float]]) -> Any:
    found = table("Pairs of losses", PAIR_COLUMNS)
    for row in pair_cells(rows[:_SHOWN]):
        found.add_row(*row)
    if len(rows) > _SHOWN:
        found.caption = f"and {len(rows) - _SHOWN} more pairs, which conflict less often"
    return found


def _loss_table(rows: list[tuple[str, float, float, float, float]]) -> Any:
    found = table("Losses", LOSS_COLUMNS)
    for row in loss_cells(rows):
        found.add_row(*row)
    return found


PAIR_COLUMNS = ("pair", "in conflict", "mean cosine", "lowest")
LOSS_COLUMNS = ("loss", "norm (median)", "longest in", "coefficient (median)", "update against it in")


def pair_cells(rows: Sequence[tuple[str, float, float, float]]) -> list[list[str]]:
    """The table of pairs as text."""
    return [[pair, percent(share), f"{mean:+.2f}", f"{low:+.2f}"] for pair, share, mean, low in rows]


def loss_cells(rows: Sequence[tuple[str, float, float, float, float]]) -> list[list[str]]:
    """The table of losses as text."""
    return [
        [name, f"{norm:.3g}", percent(longest), f"{c:.3g}", percent(against)]
        for name, norm, longest, c, against in rows
    ]
