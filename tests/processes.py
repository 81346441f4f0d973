"""Code in a process of its own, and the compiler that makes such code."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with these environment variables beside the present ones."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def compiler() -> list[str] | None:
    """The C++ compiler, CXX or what is found, as the start of a command; None if there is none."""
    given = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return None if given is None else shlex.split(given)
