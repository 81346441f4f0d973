"""``fastconfig bench``: parsed arguments -> a run, the tables, the JSON file and the picture."""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .. import environment
from ..backends import BackendUnavailable
from . import plot
from .arguments import METHODS
from .methods import bench_methods
from .methods_report import print_methods
from .plan import Options, backends
from .report import print_report, wide_console
from .run import bench


def run(arguments: argparse.Namespace) -> int:
    """Serve the command line.

    Returns:
        0, or 1 if a result of this package differed from the oracle.

    Raises:
        SystemExit: with a message for arguments that cannot be served.
        KeyboardInterrupt: after Ctrl-C, once what was measured is printed and written.
    """
    if arguments.plot and find_spec("matplotlib") is None:
        arguments.fail("argument --plot: needs matplotlib, which is missing: pip install matplotlib")
    options = Options(
        m=arguments.m,
        n=arguments.n,
        dtype=arguments.dtype,
        form=arguments.form,
        only=arguments.only,
        backend=tuple(arguments.backend.split(",")) if arguments.backend else None,
        device=arguments.device,
        quick=arguments.quick,
        memory=not arguments.no_memory,
    )
    alone = METHODS in (options.only or ())
    if alone and options.only != (METHODS,):
        arguments.fail(f"argument --only: {METHODS!r} goes alone")
    if arguments.plot and options.only and "update" not in options.only:
        arguments.fail("argument --plot: draws the whole update, which --only leaves out")
    try:
        backends(options, environment.find_device(options.device).type)
    except (ValueError, BackendUnavailable) as error:
        arguments.fail(str(error))
    for name in ("json", "plot"):
        _check_file(arguments, name)
    console = wide_console()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(arguments.threads or threads)
        if alone:
            numbers = bench_methods(options, arguments.command, console)
        else:
            numbers = bench(options, arguments.command, console, partial(_save_file, arguments.json))
    finally:
        torch.set_num_threads(threads)
    (print_methods if alone else print_report)(numbers, console)
    if arguments.json:
        arguments.json.write_text(_text(numbers), encoding="utf-8")
        console.print(f"wrote {arguments.json}", soft_wrap=True, highlight=False)
    if arguments.plot and (plot.drawable(numbers) or "interrupted" not in numbers):
        plot.draw(numbers, arguments.plot)
        console.print(f"wrote {arguments.plot}", soft_wrap=True, highlight=False)
    if "interrupted" in numbers:
        raise KeyboardInterrupt(numbers["interrupted"])
    if alone:
        return 0
    rows = [row for of_setting in numbers["settings"] for row in of_setting.get("results", ())]
    return 0 if all(row["right"] for row in rows) else 1


def _save_file(path: Path | None, numbers: dict[str, Any]) -> None:
    """The figures so far, for whoever ends the run before its end; not to a pipe or terminal."""
    if path is not None and (path.is_file() or not path.exists()):
        path.write_text(_text(numbers), encoding="utf-8")


def _text(numbers: dict[str, Any]) -> str:
    return json.dumps(numbers, indent=1, allow_nan=False) + "\n"


def _check_file(arguments: argparse.Namespace, name: str) -> None:
    """Make the folder of a file that is written at the end, so that a long run is not in vain."""
    path: Path | None = getattr(arguments, name)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        arguments.fail(f"argument --{name}: got {str(path)!r}, want a file to write: {error.strerror}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        arguments.fail(f"argument --{name}: got {str(path)!r}, want a file to write")
