"""Times -> the figures of a row; a speed-up only for a result that is right."""

from __future__ import annotations

import math
import statistics
from typing import Any

from .cases import Setting, traffic
from .floor import Floor
from .timing import Contestant


def peer_figures(contestant: Contestant, error: float | None, bound: float) -> dict[str, Any]:
    """Of somebody else's operation.

    Args:
        contestant: measured.
        error: of its result, relative; None where it cannot be compared.
        bound: up to which a result is right.
    """
    return {
        "name": contestant.name,
        **_figures(contestant),
        "right": None if error is None else error <= bound,
        "error": finite(error),
        "bound": bound,
    }


def our_figures(
    contestant: Contestant,
    setting: Setting,
    error: float,
    bound: float,
    floor: Floor,
    theirs: list[dict[str, Any]],
    eager: Contestant | None = None,
) -> dict[str, Any]:
    """Of this package's operation, beside the floor and the peers that do the same.

    Args:
        contestant: measured.
        setting: what it was measured on.
        error: of its result, relative.
        bound: up to which a result is right.
        floor: of the same setting.
        theirs: :func:`peer_figures` of the same setting.
        eager: the same operation call by call, which stands beside peers that are called so.
    """
    median = 1e6 * contestant.median
    bytes_moved = traffic(contestant.operation, setting)
    moved = None if bytes_moved is None else sum(bytes_moved)
    least = floor.of(contestant.operation, setting)
    right = error <= bound
    beside = median if eager is None else 1e6 * eager.median
    return {
        "name": contestant.name,
        "backend": contestant.backend,
        **_figures(contestant),
        **({} if eager is None else {"eager_us": beside}),
        "right": right,
        "error": finite(error),
        "bound": bound,
        "moved_bytes": moved,
        "gb_s": None if moved is None else moved / median / 1e3,
        "floor_us": least,
        "time_over_floor": None if least is None else median / least,
        "percent_of_floor": None if least is None else 100 * least / median,
        "faster_than": {
            row["name"]: row["median_us"] / beside
            for row in theirs
            if right and row["operation"] == contestant.operation
        },
    }


def _figures(contestant: Contestant) -> dict[str, Any]:
    return {
        "operation": contestant.operation,
        "median_us": 1e6 * contestant.median,
        "p20_us": 1e6 * contestant.quantile(0.2),
        "p80_us": 1e6 * contestant.quantile(0.8),
        **({"warm_us": 1e6 * statistics.median(contestant.warm)} if contestant.warm else {}),
        "samples": len(contestant.samples),
        "calls_per_sample": contestant.calls,
        "note": contestant.note,
    }


def finite(value: float | None) -> float | None:
    """As JSON has it: None for NaN and Inf."""
    return value if value is not None and math.isfinite(value) else None
