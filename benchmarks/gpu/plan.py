"""The steps of ``make gpu``: what each does, for how long, and in which order.

A step may run until the seconds of all steps up to it have passed since the start: what one leaves over, the
next ones may use, and the whole never takes longer than the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CLOSING = 5  # seconds for the last files
WHOLE = 540


class Step(NamedTuple):
    """A step.

    Attributes:
        name: of its files and of its part in the JSON.
        seconds: that it may take.
        function: "module:function"; is given the :class:`points.Points` and the machine.
        silence: seconds without a new point after which its process is ended, and started behind that point.
        what: it does.
    """

    name: str
    seconds: int
    function: str
    silence: int
    what: str


STEPS = (
    Step("ceilings", 25, "gpu.ceilings:run", 40, "the machine, and how fast it copies and reads"),
    Step(
        "install", 75, "gpu.install:run", 100, "a wheel that was built beforehand, or else a build; the peers"
    ),
    Step("smoke", 30, "gpu.smoke:run", 20, "every kernel variant, groups, a monitor: against float64"),
    Step("ours", 85, "gpu.times:ours", 25, "CUDA kernels as graph replays, cold and warm L2, with % of copy"),
    Step("host", 20, "gpu.host:run", 20, "microseconds of the host in an eager call"),
    Step("peers", 20, "gpu.times:peers", 25, "other packages, eager, with ours eager beside them"),
    Step("training", 70, "gpu.training:run", 40, "whole training steps, beside conflictfree's loop"),
    Step("tests", 75, "gpu.suite:cuda", 90, "the GPU test files with xdist and JUnit XML"),
    Step("triton", 25, "gpu.times:triton", 30, "Triton's kernels: right, and how fast"),
    Step("triton-tests", 60, "gpu.suite:triton", 90, "the GPU test files on Triton"),
    Step("memcheck", 20, "gpu.tools:memcheck", 60, "a small run under compute-sanitizer"),
    Step("racecheck", 15, "gpu.tools:racecheck", 60, "the same for races in shared memory"),
    Step("ncu", 15, "gpu.tools:counters", 60, "hardware counters of three kernels"),
)


def chosen(names: Sequence[str] | None) -> list[Step]:
    """The steps of these names in the plan's order; all of them for None.

    Raises:
        ValueError: for a name that no step has.
    """
    known = {step.name: step for step in STEPS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"steps: got {name!r}, want some of {', '.join(known)}")
    return [step for step in STEPS if names is None or step.name in names]


def table(steps: Sequence[Step]) -> str:
    """The plan for people."""
    lines, until = [f"{'step':12} {'seconds':>7} {'until':>6}  what"], 0
    for step in steps:
        until += step.seconds
        lines.append(f"{step.name:12} {step.seconds:7} {until:6}  {step.what}")
    return "\n".join([*lines, f"{'(closing)':12} {CLOSING:7} {until + CLOSING:6}  the last files"])
