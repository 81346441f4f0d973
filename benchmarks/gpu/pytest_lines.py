"""A pytest plugin: outcomes so far in the JSON file $GPU_LINES, of a run that may be killed early."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from gpu.points import write_json

WRITE_EVERY = 1.0  # seconds


class Lines:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {"counts": {}, "failed": {}, "skipped": {}, "running": [], "slowest": {}}
        self.written = 0.0
        self.write()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.found["running"].append(nodeid)
        self.write_now_and_then()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = report.outcome
        if report.when == "teardown":
            if report.nodeid in self.found["running"]:
                self.found["running"].remove(report.nodeid)
            if outcome == "passed":
                return
        elif report.when == "setup" and outcome == "passed":
            return
        counts = self.found["counts"]
        counts[outcome] = counts.get(outcome, 0) + 1
        self.found["slowest"][report.nodeid] = round(report.duration, 3)
        if outcome == "failed":
            self.found["failed"][report.nodeid] = report.longreprtext[-1500:]
        elif outcome == "skipped" and isinstance(report.longrepr, tuple):
            reason = report.longrepr[-1]
            self.found["skipped"][reason] = self.found["skipped"].get(reason, 0) + 1
        self.write_now_and_then()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.found["failed"][report.nodeid] = report.longreprtext[-1500:]

    def pytest_sessionfinish(self) -> None:
        self.write()

    def write_now_and_then(self) -> None:
        if time.monotonic() - self.written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        slowest = sorted(self.found["slowest"].items(), key=lambda item: -item[1])[:20]
        write_json(self.path, {**self.found, "slowest": dict(slowest)})


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("GPU_LINES")
    if path and not hasattr(config, "workerinput"):  # the one that workers report to
        config.pluginmanager.register(Lines(Path(path)), "gpu-lines")
