# PYTHON_ARGCOMPLETE_OK
"""The command line: ``fastconfig info``, ``demo``, ``bench``, ``plot``, ``warmup`` and ``run``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from . import __version__
from .bench.arguments import DTYPES, add_arguments, names_of
from .commands.script import INTERRUPTED, NotRunnable, run_module, run_script, serve_children
from .methods import METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        The exit code of the subcommand: 0 if all went well, 130 after Ctrl-C.

    Raises:
        SystemExit: with code 2 and a message for arguments that cannot be served.
    """
    parser = argparse.ArgumentParser(
        prog="fastconfig", description="Conflict-free gradient updates, exact and fast."
    )
    parser.add_argument("--version", action="version", version=f"fastconfig {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_info(commands.add_parser("info", help="versions, devices, and which backend serves them"))
    add_demo(commands.add_parser("demo", help="train on Burgers' equation and draw the result"))
    add_bench(commands.add_parser("bench", help="time every operation beside others and the memory floor"))
    add_plot(commands.add_parser("plot", help="draw what a monitor has saved of a run"))
    add_warmup(commands.add_parser("warmup", help="compile what the first calls would, and keep it"))
    add_run(commands.add_parser("run", help="run a script written for conflictfree on this package"))
    complete(parser)
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(arguments)
    options.command = shlex.join(["fastconfig", *arguments])
    serve: Callable[[argparse.Namespace], int] = options.serve
    try:
        return serve(options)
    except KeyboardInterrupt as error:
        kept = f": {error}" if str(error) else ""
        print(f"fastconfig {arguments[0]}: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, if it asks what may come next and argcomplete is there to tell it."""
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)


def add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(serve=info)


def add_warmup(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compiles the CPU kernels that the first update and the first momentum step would compile, and keeps "
        "them in the user's cache folder (or in NUMBA_CACHE_DIR): for container images, and before "
        "many processes start. Several processes may do so at once."
    )
    parser.add_argument(
        "--dtype", type=names_of(DTYPES), default=("float32",), metavar="D,D", help=", ".join(DTYPES)
    )
    parser.set_defaults(serve=warmup)


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a network on Burgers' equation with ConFIG's update and, beside it, with the plain "
        "sum of gradients; prints a table and writes demo.png and demo.json. With --momentum also with "
        "M-ConFIG, which takes one loss a step."
    )
    parser.add_argument("--steps", type=at_least(1), help="training steps", metavar="N")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--seed", type=at_least(0), help="of weights and points", metavar="N")
    parser.add_argument(
        "--out", type=Path, default=Path("fastconfig-demo"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--momentum", action="store_true", help="train with M-ConFIG too: one backward pass a step"
    )
    parser.add_argument(
        "--compare",
        type=names_of(tuple(name for name in METHODS if name not in ("config", "constant"))),
        default=(),
        metavar="M,M",
        help="train with other methods too, such as upgrad,pcgrad,mgda",
    )
    parser.set_defaults(serve=demo, fail=parser.error)


def add_bench(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.set_defaults(serve=bench, fail=parser.error)


def add_plot(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draws the cosines, lengths and coefficients of a run that Monitor.save wrote, finished or running, "
        "and prints what they mean."
    )
    parser.add_argument("run", type=Path, metavar="RUN.npz", help="what Monitor.save wrote")
    parser.add_argument(
        "--html", action="store_true", help="a page with picture and tables instead of a picture"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=".png, .pdf, .svg or .html (default: beside RUN.npz)"
    )
    parser.add_argument("--group", metavar="NAME", help="of a run with groups of parameters, which one")
    parser.set_defaults(serve=plot, fail=parser.error)


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs a script or a module as python does, with conflictfree's functions and classes replaced by "
        "this package's, also in the Python processes that it starts; the script is not edited."
    )
    parser.usage = "fastconfig run [-h] (SCRIPT.py | -m MODULE) ..."
    rest = argparse.REMAINDER
    parser.add_argument(
        "-m", dest="module", nargs=rest, metavar="MODULE", help="a module, then its arguments"
    )
    parser.add_argument("script", nargs="?", metavar="SCRIPT.py")
    parser.add_argument("arguments", nargs=rest, metavar="...", help="of the script")
    parser.set_defaults(serve=run, fail=parser.error)


def at_least(least: int) -> Callable[[str], int]:
    """Argument type: a whole number from ``least`` on."""

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, want a whole number of at least {least}")
        return value

    return whole_number


def demo(options: argparse.Namespace) -> int:
    """``fastconfig demo``."""
    # Known before the training starts: the picture comes last.
    missing = [name for name in ("scipy", "matplotlib") if find_spec(name) is None]
    if missing:
        options.fail(f"needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    from .demo.command import run
    from .demo.training import Settings
    from .environment import find_device

    chosen = {name: getattr(options, name) for name in ("steps", "device", "seed")}
    given = {name: value for name, value in chosen.items() if value is not None}
    settings = Settings(**given, momentum=options.momentum, compare=options.compare)
    try:
        find_device(settings.device)
    except ValueError as error:
        options.fail(f"argument --device: {error}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        options.fail(f"argument --out: got {str(options.out)!r}, want a folder: {error.strerror}")
    run(settings, options.out, options.command)
    return 0


def bench(options: argparse.Namespace) -> int:
    """``fastconfig bench``."""
    from .bench.command import run

    return run(options)


def plot(options: argparse.Namespace) -> int:
    """``fastconfig plot``."""
    from .monitor.command import run

    return run(options)


def run(options: argparse.Namespace) -> int:
    """``fastconfig run``."""
    if options.module is None and options.script is None:
        options.fail("got nothing to run, want SCRIPT.py or -m MODULE")
    if options.module == []:
        options.fail("argument -m: got none, want a module")
    if options.script is not None and not Path(options.script).exists():
        options.fail(f"argument SCRIPT.py: got {options.script!r}, want a file")
    from .acceleration import accelerate

    try:
        acceleration = accelerate()
    except ModuleNotFoundError as error:
        options.fail(f"needs conflictfree, whose names it serves: {error}")
    print(acceleration.summary, file=sys.stderr)
    serve_children()
    code = 0
    try:
        if options.module is None:
            code = run_script(options.script, options.arguments)
        else:
            code = run_module(options.module[0], options.module[1:])
    except NotRunnable as error:
        options.fail(f"argument {'SCRIPT.py' if options.module is None else '-m'}: {error}")
    return code


def info(options: argparse.Namespace) -> int:
    """``fastconfig info``."""
    from .commands.info import show

    show(options.json)
    return 0


def warmup(options: argparse.Namespace) -> int:
    """``fastconfig warmup``."""
    from .commands.warmup import warm_up

    return warm_up(options.dtype)
