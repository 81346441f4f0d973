"""Write the tables of docs/methods.md: every method of fastconfig.methods.METHODS, a row each.

    fastconfig bench --only methods --threads 1 --json benchmarks/results/methods/CPU.json
    python benchmarks/methods_table.py

The first line measures the times and errors of the second table anew; the newest JSON file counts.

The words are below. Whether a method avoids conflict, keeps its direction when a loss is rescaled, remembers
something or draws random numbers is found by asking the code: the first two on random gradients in float64.
"""

from __future__ import annotations

import inspect
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastconfig
from fastconfig import methods
from fastconfig.bench.report import figure
from fastconfig.methods import METHODS
from fastconfig.methods.stateful import StatefulOperator

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "methods.md"
RESULTS = ROOT / "benchmarks" / "results" / "methods"
HEADS = ("method", "the update", "no conflict", "rescaling a loss", "between calls")
PROBLEMS, LIMIT = 200, 1e-6  # of each size; a cosine below -LIMIT is a conflict
WITH_STATE = 20
PEERS = {"torchjd": "TorchJD", "LibMTL": "LibMTL"}

# what the update is, and the paper; other rules have ``words`` of their own
WORDS = {
    "ConFIG": (
        "has the same cosine with every gradient, or cosines in the ratio of your weights",
        "[2408.11104](https://arxiv.org/abs/2408.11104), eq. 2, 3",
    ),
    "PCGrad": (
        "the sum of the gradients, each without its part along those it conflicts with, one after another",
        "[2001.06782](https://arxiv.org/abs/2001.06782), alg. 1",
    ),
    "PPCGrad": ("PCGrad with every projection taken against the original gradients", "–"),
    "IMTLG": (
        "has equal projections on all unit gradients; with three or more losses of very different size "
        "these can all be negative",
        "[Liu et al. 2021](https://openreview.net/forum?id=IMPnRXEWpvr), § 3.1",
    ),
    "UPGrad": (
        "the mean of the gradients, each moved to the nearest vector that conflicts with none",
        "[2406.16232](https://arxiv.org/abs/2406.16232), § 3",
    ),
    "DualProj": (
        "the nearest vector to the mean gradient that conflicts with none",
        "[1706.08840](https://arxiv.org/abs/1706.08840)",
    ),
    "MGDA": (
        "the shortest convex combination of the gradients",
        "[1810.04650](https://arxiv.org/abs/1810.04650), eq. 3",
    ),
    "CAGrad": (
        "within `c` times its length of the mean gradient, and there best for the gradient that gains least",
        "[2110.14048](https://arxiv.org/abs/2110.14048)",
    ),
    "NashMTL": (
        "maximises the product of all gains (a Nash bargain)",
        "[2202.01017](https://arxiv.org/abs/2202.01017), alg. 1",
    ),
    "FairGrad": (
        "is alpha-fair to the gains; `alpha=1` is Nash-MTL's bargain",
        "[2402.15638](https://arxiv.org/abs/2402.15638), eq. 3 to 6",
    ),
    "AlignedMTL": (
        "the mean after the gradients have been made orthogonal and equally long",
        "[2305.19000](https://arxiv.org/abs/2305.19000)",
    ),
    "GradVac": (
        "raises each pair's cosine to its moving average first",
        "[2010.05874](https://arxiv.org/abs/2010.05874), alg. 1",
    ),
    "Krum": (
        "the mean of the gradients that lie nearest to the others: protects against `n_byzantine` bad ones",
        "[Blanchard et al. 2017](https://papers.nips.cc/paper/6617-machine-learning-with-adversaries-byzantine-"
        "tolerant-gradient-descent), § 4",
    ),
    "PCD": (
        "gives every gradient but the first a share of the progress; the first is the primary loss's",
        "[2606.29521](https://arxiv.org/abs/2606.29521)",
    ),
    "Mean": ("the mean of the gradients", "–"),
    "Sum": ("the sum of the gradients: what `sum(losses).backward()` gives", "–"),
    "Constant": ("the gradients' sum with weights of yours", "–"),
    "Random": (
        "the gradients' sum with random weights that add up to 1",
        "[2111.10603](https://arxiv.org/abs/2111.10603), § 3.1",
    ),
}


def operator_of(kind: str, m: int) -> Any:
    operator = getattr(fastconfig, f"{kind}Operator")
    return operator([1.0] * m) if kind == "Constant" else operator()


@cache
def problems(m: int) -> tuple[Tensor, Tensor]:
    """Two batches (PROBLEMS, m, m) of random gradients whose lengths differ by orders of magnitude."""
    source = torch.Generator().manual_seed(0)
    shape = (2 * PROBLEMS, m)
    lengths = (2 * torch.randn(*shape, 1, generator=source, dtype=torch.float64)).exp()
    rows = lengths * torch.randn(*shape, m, generator=source, dtype=torch.float64)
    return rows[:PROBLEMS], rows[PROBLEMS:]


def merged(kind: str, m: int, factor: float = 1) -> Tensor:
    """Updates (k, m) of the first k problems, each of an operator that has seen one call before.

    The first loss is scaled. Operators with a state take no batches, and fewer problems.
    """
    scale = torch.tensor([factor] + [1.0] * (m - 1), dtype=torch.float64)[:, None]
    before, now = (scale * batch for batch in problems(m))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if not isinstance(operator_of(kind, m), StatefulOperator):
            return operator_of(kind, m).calculate_gradient(now)  # type: ignore[no-any-return]
        updates = []
        for pair in list(zip(before, now, strict=True))[:WITH_STATE]:
            operator = operator_of(kind, m)
            updates.append([operator.calculate_gradient(rows) for rows in pair][-1])
        return torch.stack(updates)


def conflicts(kind: str, m: int) -> bool:
    """Whether an update ever has a negative cosine with a gradient."""
    updates = merged(kind, m)
    cosines = torch.cosine_similarity(updates[:, None], problems(m)[1][: len(updates)], -1)
    return bool(cosines.min() < -LIMIT)


def turns(kind: str) -> bool:
    """Whether the update's direction changes when the first gradient is always ten times as long."""
    cosines = torch.cosine_similarity(merged(kind, 4), merged(kind, 4, 10), -1)
    return bool(cosines.min() < 1 - LIMIT)


def row(kind: str) -> list[str]:
    what, paper = WORDS.get(kind) or getattr(methods, kind).words
    two = kind != "Krum" and not conflicts(kind, 2)  # Krum has no answer for two
    operator = operator_of(kind, 4)
    keeps = ["a state"] if isinstance(operator, StatefulOperator) else []
    if "generator" in (given := inspect.signature(type(operator)).parameters):
        shuffled = given["shuffle"].default if "shuffle" in given else True
        keeps.append("random numbers" if shuffled else "with `shuffle=True`, random numbers")
    return [
        kind,
        what if paper == "–" else f"{what} ({paper})",
        ("2 losses only" if conflicts(kind, 4) else "always") if two else "not promised",
        "turns the update" if turns(kind) else "keeps its direction",
        "; ".join(keeps) or "–",
    ]


def markdown(heads: tuple[str, ...], rows: list[list[str]], left: int) -> str:
    """A table; all columns but the first ``left`` to the right."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *rows))


def times(numbers: dict[str, Any], source: str) -> str:
    """Times and errors beside TorchJD's and LibMTL's."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for each in numbers["methods"]:
        rows.setdefault(each["method"], []).append(each)
    sizes = len(rows["ConFIG"])
    listed = " / ".join(str(each["m"]) for each in rows["ConFIG"])
    versions, machine = numbers["versions"], numbers["machine"]
    others = ", ".join(f"{name} {versions[name]}" for name in ("torch", *PEERS))
    head = (
        f"m = {listed} float32 gradients of {rows['ConFIG'][0]['n']:,} elements, in turn in each cell. "
        f"{machine['processor']}, {machine['threads']} thread, {others} ([all figures]({source}))."
    )
    lines = []
    for kind, of_kind in rows.items():
        line = [kind]
        for key in ("us", "merge_us"):
            line.append(" / ".join([figure(each[key]) for each in of_kind] + ["–"] * (sizes - len(of_kind))))
            line += [faster(of_kind, name, key) for name in PEERS]
        line.append(worst(of_kind))
        line += [worst([each["peers"].get(name, {}) for each in of_kind]) for name in PEERS]
        lines.append(line)
    by = [f"× {name}" for name in PEERS.values()]
    heads = ("method", "G → c, µs", *by, "merge, µs", *by, "error", *(f"{name}'s" for name in PEERS.values()))
    return f"{head}\n\n{markdown(heads, lines, 1)}"


def faster(rows: list[dict[str, Any]], name: str, key: str) -> str:
    """How many times, for every m."""
    theirs = [row["peers"].get(name, {}).get(key) for row in rows]
    ratios = [rounded(t / row[key]) if t else "–" for t, row in zip(theirs, rows, strict=True)]
    return " / ".join(ratios) if any(theirs) else "–"


def rounded(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def worst(figures: list[dict[str, Any]]) -> str:
    """The largest error for any m."""
    if any("failure" in each for each in figures):
        return "fails"
    if not any("error" in each for each in figures):
        return "–"
    errors = [each["error"] for each in figures]
    return "nan" if None in errors else f"{max(errors):.0e}"


def documented() -> str:
    """docs/methods.md as it must be."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from readme_table import inserted, newest

    text = DOCUMENT.read_text(encoding="utf-8")
    table = markdown(HEADS, [row(kind) for kind in METHODS.values()], len(HEADS))
    path = newest(RESULTS)
    assert path is not None, f"no JSON file in {RESULTS}"
    source = f"../{path.relative_to(ROOT).as_posix()}"
    measured = times(json.loads(path.read_text(encoding="utf-8")), source)
    return inserted(inserted(text, table, "methods"), measured, "times")


if __name__ == "__main__":
    DOCUMENT.write_text(documented(), encoding="utf-8")
