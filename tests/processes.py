"""Code in a process of its own, and the compiler that makes such code."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# importing torch takes longer than what most such code does: each line is a job for a child that has it
_SERVER = """
import json, os, signal, sys, torch
for line in sys.stdin:
    code, environment, *outputs = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(120)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY), number)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    sys.exit()
"""


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


def with_torch(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """:func:`python` of code that imports torch, in a process that nothing else was imported in."""
    if sys.platform != "linux":
        return python(code, **environment)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("out", "err")]
        for output in outputs:
            output.touch()
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([code, {**os.environ, **environment}, *map(str, outputs)]) + "\n")
        server.stdin.flush()
        ended = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, ended, *(output.read_text() for output in outputs))


@cache
def _server() -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", _SERVER], text=True, **pipes)


def compiler() -> list[str] | None:
    """The C++ compiler, CXX or what is found, as the start of a command; None if there is none."""
    given = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return None if given is None else shlex.split(given)
