"""The folder that comes back: all figures in the form of ``fastconfig bench``, and the steps' own files.

Two files, however many steps there are: a machine may give back only a few. Both are written anew whenever a
step has found something.
"""

from __future__ import annotations

import json
import re
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

from gpu.points import write_json

FORMAT = 1  # as fastconfig/bench/run.py counts it
SETTLED = 2.0  # seconds between two writes while a step runs


class Folder:
    """Where results go.

    Args:
        out: the folder that comes back.
        steps: holds NAME.json, NAME.log and whatever else a step writes.
        card: of the files' names, "h100" say.
        command: how the run was started.
    """

    def __init__(self, out: Path, steps: Path, card: str, command: str) -> None:
        self.merged, self.zipped = out / f"gpu-{card}.json", out / f"gpu-{card}-steps.zip"
        self.steps, self.command = steps, command
        self.date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.began = time.monotonic()
        self.ended: dict[str, Any] = {}
        self._seen, self._wrote = -1, 0.0
        for path in (self.merged, self.zipped):
            path.unlink(missing_ok=True)  # or an older run's figures would pass for this one's

    def while_running(self) -> None:
        """Write if a step has written, not too often."""
        newest = max((path.stat().st_mtime_ns for path in self.steps.glob("*.json")), default=-1)
        if newest != self._seen and time.monotonic() - self._wrote > SETTLED:
            self._seen = newest
            self.write()

    def write(self) -> None:
        """Write both files; what goes wrong here is told, and ends nothing."""
        try:
            self._write()
        except Exception:
            traceback.print_exc()

    def _write(self) -> None:
        write_json(self.merged, self.numbers())
        unfinished = self.zipped.with_name(f"{self.zipped.name}.part")
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.steps.iterdir()):
                if path.suffix != ".part":
                    archive.write(path, path.name)
        unfinished.replace(self.zipped)
        self._wrote = time.monotonic()

    def numbers(self) -> dict[str, Any]:
        """All figures so far."""
        found = {path.stem: _json(path) for path in self._step_files()}
        points = {name: part.get("points", {}) for name, part in found.items()}
        ceilings = points.get("ceilings", {})
        origin = {"machine": {}, "versions": {}, "commit": None, **ceilings.get("origin", {})}
        peers = found.get("peers", {})
        return {
            "format": FORMAT,
            "command": self.command,
            "date": self.date,
            "commit": origin["commit"],
            "versions": {**origin["versions"], **peers.get("versions", {})},
            "machine": origin["machine"],
            "options": {"device": origin["machine"].get("device")},
            "peers": peers.get("peers", {}),
            "bandwidth": [point for point in ceilings.values() if "copy_gb_s" in point],
            "settings": settings(points),
            "methods": methods(points),
            "seconds": time.monotonic() - self.began,
            "steps": self.ended,
            **{name: found[name] for name in found if name not in ("ceilings", "ours", "peers", "triton")},
            "test_lines": {path.stem: _json(path) for path in sorted(self.steps.glob("tests-*.json"))},
            "failed": failures(points),
        }

    def _step_files(self) -> list[Path]:
        """Those with points; the tests write others."""
        return [path for path in sorted(self.steps.glob("*.json")) if not path.name.startswith("tests-")]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def settings(points: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every setting the rows of all backends; the peers, and how many times faster ours is, both eager."""
    merged: dict[str, dict[str, Any]] = {}
    for step in ("ours", "triton"):
        for point in points.get(step, {}).values():
            if "setting" not in point:
                continue
            place = merged.setdefault(key(point), {**point, "results": [], "peers": [], "skipped": []})
            place["results"] += point.get("results", [])
            place["skipped"] += point.get("skipped", [])
    for point in points.get("peers", {}).values():
        if "setting" not in point or key(point) not in merged:
            continue
        place = merged[key(point)]
        place["peers"], place["skipped"] = point["peers"], [*place["skipped"], *point["skipped"]]
        row = next((r for r in place["results"] if r["operation"] == point["operation"]), None)
        if row is not None and row["right"]:
            row["eager_us"] = point["eager_us"]
            row["faster_than"] = {p["name"]: p["median_us"] / point["eager_us"] for p in point["peers"]}
    return list(merged.values())


def methods(points: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every method the time of a merge."""
    return [row for point in points.get("ours", {}).values() for row in point.get("methods", ())]


def key(point: dict[str, Any]) -> str:
    return json.dumps(point["setting"], sort_keys=True)


def failures(points: dict[str, dict[str, Any]]) -> list[str]:
    """What went wrong, and what is not right, a line each."""
    lines = [
        f"{step}, {name}: {point['error']}"
        for step, of_step in points.items()
        for name, point in of_step.items()
        if "error" in point
    ]
    for place in settings(points):
        where = "m = {m}, N = {n:,}, {dtype}, {form}".format(**place["setting"])
        for row in place["results"]:
            if not row["right"]:
                lines.append(f"{row['backend']} {row['operation']}, {where}: error {row['error']} is wrong")
    for row in methods(points):
        if not row["right"]:
            where = f"m = {row['m']}, N = {row['n']:,}"
            lines.append(f"{row['backend']} {row['method']}, {where}: error {row['error']} is wrong")
    return lines


def card_of(name: str) -> str:
    """ "h100" of "NVIDIA H100 80GB HBM3"."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return next((word for word in words if word not in ("nvidia", "tesla")), "unknown")
