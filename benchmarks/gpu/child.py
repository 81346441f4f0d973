"""The process of one step: ``python -m gpu.child MODULE:FUNCTION FILE DEVICE WORK WHEELS UNTIL [WHY]``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from gpu.points import Machine, Points


def main(function: str, file: str, device: str, work: str, wheels: str, until: str, why: str = "") -> int:
    """Run a step.

    Returns:
        0, or 1 if one of its points has an error.
    """
    module, _, name = function.partition(":")
    points = Points(Path(file), why)
    machine = Machine(device, Path(work), Path(wheels), float(until))
    getattr(importlib.import_module(module), name)(points, machine)
    return int(any("error" in point for point in points.found["points"].values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
