"""``fastconfig plot``: the picture or the page of a run that a monitor has saved, finished or not."""

from __future__ import annotations

import argparse
from pathlib import Path

from .monitor import Monitor


def run(options: argparse.Namespace) -> int:
    """Draw, and print the summary and where the picture is."""
    from rich.console import Console

    try:
        monitor = Monitor.load(options.run)
    except (OSError, ValueError) as error:
        options.fail(f"argument RUN.npz: {error}")
    if monitor.groups:
        if options.group not in monitor.groups:
            known = ", ".join(monitor.groups)
            options.fail(f"argument --group: got {options.group!r}, want one of {known}")
        monitor = monitor.groups[options.group]
    elif options.group is not None:
        options.fail(f"argument --group: got {options.group!r} for a run without groups")
    path: Path = options.out or options.run.with_suffix(".html" if options.html else ".png")
    if options.html and path.suffix.lower() not in (".html", ".htm"):
        options.fail(f"argument --out: got {str(path)!r} beside --html, want a name that ends in .html")
    try:
        monitor.plot(path)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        options.fail(str(error))
    console = Console()
    console.print(monitor.summary())
    console.print(f"wrote {path}", soft_wrap=True, highlight=False)
    return 0
