"""The options of ``fastconfig bench``; loads nothing that takes time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

DTYPES = ("float32", "float64", "bfloat16", "float16")
FORMS = ("tensor", "vectors", "parameters")
METHODS = "methods"
#: What ``--only`` may name, and the operations behind it.
GROUPS = {
    "update": ("ConFIG_update", "PCGradOperator", "PPCGradOperator", "IMTLGOperator"),
    "gram": ("gram",),
    "mask": ("conflict mask",),
    "projections": ("PCGrad coefficients", "PPCGrad coefficients"),
    "solve": ("ConFIG coefficients", "IMTLG coefficients"),
    "combine": ("combine",),
    "momentum": ("PseudoMomentumOperator",),
    METHODS: (),  # all of fastconfig.aggregation, in a table of their own
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Times every operation beside a memory floor measured in the same run and beside conflictfree, "
        "torchjd and a plain-torch Gram solution, all taking turns; checks each result against the "
        "float64 oracle; prints a table. With --only methods instead: every method from the Gram matrix to "
        "the coefficients and as a whole, beside torchjd and LibMTL."
    )
    parser.add_argument("--m", type=_numbers, metavar="M,M", help="numbers of gradients")
    parser.add_argument("--n", type=_numbers, metavar="N,N", help="elements of a gradient (1000, 1e6)")
    parser.add_argument("--dtype", type=names_of(DTYPES), metavar="D,D", help=", ".join(DTYPES))
    parser.add_argument(
        "--form", type=names_of(FORMS), metavar="F,F", help=f"of the input: {', '.join(FORMS)}"
    )
    parser.add_argument("--only", type=names_of(tuple(GROUPS)), metavar="G,G", help=", ".join(GROUPS))
    parser.add_argument("--backend", metavar="B,B", help="by default those that serve the device")
    parser.add_argument("--threads", type=_number, metavar="T", help="of torch (default: torch's own)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few sizes, in about a minute")
    parser.add_argument("--no-memory", action="store_true", help="leave out the extra peak memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw time over N for each m")


def _number(text: str) -> int:
    try:
        value = float(text)
        whole = int(value)
    except (ValueError, OverflowError):
        value, whole = 0.0, 0
    if whole < 1 or whole != value:
        raise argparse.ArgumentTypeError(f"got {text!r}, want a whole number of at least 1")
    return whole


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_number(part) for part in text.split(",")))


def names_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Argument type: some of these, separated by commas."""

    def some_of(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"got {name!r}, want some of {', '.join(known)}")
        return names

    return some_of
