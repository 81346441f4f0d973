"""``fastconfig run``: run a script or module as ``__main__``, and serve its child processes."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # this package
STARTUP = os.path.join(HERE, "startup")  # has the sitecustomize of child processes
INTERRUPTED = 130  # exit code of what SIGINT ends, as shells have it


class NotRunnable(Exception):
    """The script or module cannot be run; the message says why."""


def run_script(path: str, arguments: Sequence[str]) -> int:
    """``python path arguments``: a script, or a folder or zip file with a ``__main__.py``.

    Returns:
        The exit code: 0, 1 after an exception, or 130 after Ctrl-C; their tracebacks are printed.

    Raises:
        NotRunnable: for a folder without ``__main__.py``.
        SystemExit: the script's own.
    """
    sys.argv = [path, *arguments]
    importer: Any = pkgutil.get_importer(os.path.abspath(path))
    if importer is not None:  # a folder or a zip file
        _first_on_path(path)
        spec = importer.find_spec("__main__")
        if spec is None:
            raise NotRunnable(f"got {path!r}, which has no __main__.py, want a file")
        return _as_main(_main(spec, ""), lambda: spec.loader.get_code("__main__"))
    _first_on_path(os.path.dirname(os.path.realpath(path)))
    file = os.path.abspath(path)
    loader = SourceFileLoader("__main__", file)
    main = ModuleType("__main__")
    vars(main).update(__file__=file, __loader__=loader, __builtins__=sys.modules["builtins"])
    return _as_main(main, lambda: loader.source_to_code(loader.get_data(file), file))


def run_module(name: str, arguments: Sequence[str]) -> int:
    """``python -m name arguments``; result and errors as of :func:`run_script`."""
    sys.argv = ["-m", *arguments]
    _first_on_path(os.getcwd())
    found = name
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            found = f"{name}.__main__"
            spec = importlib.util.find_spec(found)
    except (ImportError, ValueError) as error:
        raise NotRunnable(f"got {name!r}, want a module: {error}") from None
    loader: Any = None if spec is None else spec.loader
    if spec is None or not hasattr(loader, "get_code"):
        raise NotRunnable(f"got {name!r}, want a module, or a package with a __main__.py")
    sys.argv[0] = str(spec.origin)
    return _as_main(_main(spec, found.rpartition(".")[0]), lambda: loader.get_code(found))


def serve_children() -> None:
    """Set PYTHONPATH so that Python child processes serve conflictfree's names, too."""
    if sys.flags.ignore_environment or sys.flags.no_site:
        print(
            "fastconfig run: Python's options -E, -I and -S hide it from child processes: those that are "
            "started by spawn or forkserver, or by a command, run conflictfree itself",
            file=sys.stderr,
        )
    known = os.environ.get("PYTHONPATH")
    if known is None or STARTUP not in known.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, known] if known else [STARTUP])


def _first_on_path(folder: str) -> None:
    """Put a folder first on sys.path, unless Python runs in safe-path mode."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[:1] = [folder]


def _main(spec: ModuleSpec, package: str) -> ModuleType:
    main = ModuleType("__main__")
    vars(main).update(
        __file__=spec.origin,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=package,
        __spec__=spec,
        __builtins__=sys.modules["builtins"],
    )
    return main


def _as_main(main: ModuleType, code: Callable[[], CodeType]) -> int:
    """Execute code as ``__main__``, which stays in place for functions that run at exit."""
    sys.modules["__main__"] = main
    try:
        exec(code(), vars(main))
    except SystemExit:
        raise
    except BaseException as error:
        error.__traceback__ = _of_others(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _of_others(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this file and of Python's import system."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<frozen importlib"):
            break
        trace = trace.tb_next
    return trace
