"""A run's picture and summary on one page without anything from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

from .figures import Figures
from .picture import draw
from .summary import LOSS_COLUMNS, PAIR_COLUMNS, loss_cells, pair_cells, summarize

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem;
  margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.run { color: #555; margin: 0 0 1rem; } li { margin: .25rem 0; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; }
.tables { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; }
"""


def page(figures: Figures, names: Sequence[str]) -> str:
    """HTML of figures as :meth:`Monitor.history` has them."""
    summary = summarize(figures, names)
    steps = figures["step"]
    said = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in summary.sentences)
    heading = f"{len(steps):,} steps, {steps[0]:,} to {steps[-1]:,}, of {len(names)} losses"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Do the losses conflict? {escape(", ".join(names))}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Do the losses conflict?</h1>
<p class="run">{escape(heading)}</p>
<ul>
{said}
</ul>
<figure role="img" aria-label="{escape(" ".join(summary.sentences))}">
{_svg(figures, names)}
</figure>
<h2>Pairs of losses</h2>
{_table(PAIR_COLUMNS, pair_cells(summary.pairs))}
<h2>Losses</h2>
{_table(LOSS_COLUMNS, loss_cells(summary.losses))}
</body>
</html>
"""


def _svg(figures: Figures, names: Sequence[str]) -> str:
    file = io.StringIO()
    draw(figures, names, caption=False).savefig(file, format="svg")
    text = file.getvalue()
    return text[text.index("<svg") :]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="tables"><table>\n{table}\n</table></div>'
