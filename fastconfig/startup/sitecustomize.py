"""Has Python processes that ``fastconfig run`` starts serve conflictfree's names; on their PYTHONPATH.

Python imports it first of all, in whatever environment; so it needs nothing but the standard library, gives
way to the sitecustomize that it stands in for, and does its work where conflictfree is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ServedPackage:
    """A finder that has conflictfree found as ever, and accelerated once it is imported."""

    _looking = False

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The package's own spec, of which the loader does more."""
        if name != "conflictfree" or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_serve(module: ModuleType) -> None:
            execute(module)
            serve()

        loader.exec_module = execute_and_serve
        return spec


def serve() -> None:
    """Replace conflictfree's names, or say that they are not replaced."""
    try:
        from fastconfig.acceleration import accelerate
    except ImportError as error:
        warnings.warn(f"this child of `fastconfig run` is served by conflictfree: {error}", stacklevel=2)
        return
    accelerate()


def give_way() -> None:
    """Import the sitecustomize that Python would have found without this one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    this = sys.modules.pop(__name__)
    try:
        importlib.import_module(__name__)
    except ModuleNotFoundError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, this)  # Python's import takes it from there


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, ServedPackage())
    give_way()
