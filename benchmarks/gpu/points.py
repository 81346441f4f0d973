"""What a step has found so far: a JSON file that is written again before and after every point.

A point that takes its process with it (a kernel that never ends, an error after which CUDA serves no more) is
marked when the step starts again, and passed over.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

AGAIN = 75  # exit status: start this step again


class Machine(NamedTuple):
    """Where a step runs.

    Attributes:
        device: "cuda", or "cpu" in a dry run.
        work: a folder for its files, outside of the checkout.
        wheels: a folder with wheels that were built beforehand.
        until: ``time.time()`` at which it is killed.
    """

    device: str
    work: Path
    wheels: Path
    until: float

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()


class Points:
    """The points of a step.

    Args:
        path: of the file; what it holds is kept.
        why: how the process before this one ended, if there was one.
    """

    def __init__(self, path: Path, why: str = "") -> None:
        self.path = path
        self.found: dict[str, Any] = {}
        if path.exists():
            self.found = json.loads(path.read_text(encoding="utf-8"))
        self.found.setdefault("points", {})
        running = self.found.pop("running", None)
        if running is not None:
            self.found["points"][running] = {"error": why or "its process ended"}
        self._write()

    def run(self, name: str, point: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Take a point, unless there is one of this name; an error is its result.

        Returns:
            The point: what ``point`` returned, or its "error".

        Raises:
            SystemExit: to start again, if the device serves no more.
        """
        points = self.found["points"]
        if name in points:
            return points[name]
        self.found["running"] = name
        self._write()
        began = time.perf_counter()
        try:
            result = point()
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        result["seconds"] = round(time.perf_counter() - began, 3)
        del self.found["running"]
        points[name] = result
        self._write()
        if "error" in result:
            print(f"{name}: {result['error']}", flush=True)
            if device_is_lost():
                sys.exit(AGAIN)
        return result

    def note(self, name: str, value: Any) -> None:
        """Something beside the points."""
        self.found[name] = value
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.found)


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Whoever reads it meanwhile finds a whole file. NaN and Inf, which JSON has not, are written as text."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(finite(found), indent=1, default=str) + "\n", encoding="utf-8")
    unfinished.replace(path)


def finite(value: Any) -> Any:
    """The same without numbers that are none."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def device_is_lost() -> bool:
    """Whether CUDA answers with an error from now on."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False
