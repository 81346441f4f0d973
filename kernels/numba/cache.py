"""Compiled once, then kept: entry points for C, and the folder of the user's where their code lies.

``NUMBA_CACHE_DIR`` is honoured as for any other function of Numba's; without it the code lies in the user's
cache folder, under ``fastconfig``. Where Numba keeps other packages' functions does not change.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import types
from numba.core import caching, config
from numba.core.ccallback import CFunc

from .ir import LANES
from .typed import typed

KINDS = ("float32", "float64", "bfloat16", "float16")
_TYPES = {"int": types.int64, "float": types.float64}
_log = logging.getLogger("fastconfig")
_told = {""}


def folder() -> Path:
    """Where compiled code is kept.

    Raises:
        OSError: for a user without a home folder, such as an unknown one in a container.
    """
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR)
    name = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    usual = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        base = Path(os.environ.get(name) or Path.home() / usual)
    except RuntimeError as error:
        raise OSError(str(error)) from None
    return base / "fastconfig"


@cache
def _variant() -> str:
    """What the compiled code depends on: these sources, Numba, LLVM, and the processor.

    It is a part of every file's name: of the processes that fill a folder at once, on whichever machines
    share it, two write the same file only if they write the same code.
    """
    cpu = config.CPU_NAME or llvm.get_host_cpu_name()
    features = config.CPU_FEATURES or llvm.get_host_cpu_features().flatten()
    machine = (numba.__version__, llvmlite.__version__, cpu, features, LANES, config.OPT)
    digest = hashlib.sha256(repr(machine).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Folder(caching._CacheLocator):
    """Says that code lies in :func:`folder`, whichever file the function is from."""

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return _variant()

    def get_disambiguator(self) -> str:
        return _variant()

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Any:
        return cls()


class _Impl(caching.CompileResultCacheImpl):
    _locator_classes: list[Any] = [_Folder]  # noqa: RUF012


class _Cache(caching.FunctionCache):
    """Numba's cache of a function, in :class:`_Folder`; a folder that cannot be used is as good as none."""

    _impl_class = _Impl
    what = ""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # a file that is damaged, or from elsewhere
            found = None
        if found is None and self.what not in _told:
            _told.add(self.what)
            _log.info("compiling %s, which takes seconds, once: it is kept in %s", self.what, folder())
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _log.info("compiled code cannot be kept in %s: %s", folder(), error)


def compiled(function: Any, kind: int | None = None) -> int:
    """Address of a typed function as C would call it; from the cache on disk where it is there.

    Args:
        function: of :func:`typed`; its parameters are int64 or double.
        kind: of elements, its last parameter; None for a function without one.
    """
    source = function.py_func
    bound = () if kind is None else (kind,)
    parameters = list(inspect.signature(source).parameters.values())
    parameters = parameters[: len(parameters) - len(bound)]
    names = ", ".join(parameter.name for parameter in parameters)
    code = compile(f"lambda {names}: entry_point({names})", __file__, "eval")
    body = eval(code, {"entry_point": typed(source, bound), "__name__": __name__})
    variant = "any" if kind is None else KINDS[kind]
    body.__name__ = source.__name__
    body.__qualname__ = f"{source.__name__}-{variant}"
    body.__module__ = __name__
    signature = types.void(*[_TYPES[parameter.annotation] for parameter in parameters])
    made = CFunc(body, (signature.args, signature.return_type), {}, {})
    try:
        made._cache = _Cache(body)
    except OSError as error:
        _log.info("compiled code cannot be kept: %s", error)
    else:
        if kind is not None:
            operation = source.__module__.rpartition(".")[2]
            made._cache.what = f"the {operation} of {variant} on the CPU"
    made.compile()
    address: Any = made.address
    return int(address)
