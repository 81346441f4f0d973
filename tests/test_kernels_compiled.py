"""How kernels/numba become machine code: their Python is translated, and the result kept on disk."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconfig

typed_numba = pytest.importorskip("fastconfig.kernels.numba.typed")
from fastconfig.kernels.numba import cache as cache_numba  # noqa: E402
from fastconfig.kernels.numba.typed import Const, typed  # noqa: E402
from fastconfig.kernels.numba.vectors import peek_int, poke_int  # noqa: E402

SIZES = (4, 8, 2)


@typed
def gcd(a: int, b: int) -> int:
    while True:
        if b == 0:
            return a
        a, b = b, a % b


@typed
def first_multiple(limit: int, of: int) -> int:
    found = -1
    for k in range(1, limit, 2):
        if k % of == 0 and k // of > 1:
            found = k
            break
    return found


@typed
def arithmetic(x: int, y: int, at: int, which: Const) -> int:
    size = SIZES[which]
    total = x // y + x % y * size
    total -= min(x, y) * max(x, -y)
    if not x < y or (y != 0 and x // y > 2):
        total += SIZES[x % 3]
    elif x == y:
        total = 0
    else:
        total += 1 if x > 0 and y > 0 else -1
    half = x / 2
    if half >= 1.5 or np.isnan(half):
        total += 1000
    broken = x > y
    broken |= y > 5
    poke_int(at, peek_int(at) + total)
    return total + gcd(7, 21) * (first_multiple(20, 3) if broken else first_multiple(0, 3))


def compiled(function: Any, constant: int) -> Callable[[int, int, int], int]:
    from numba import njit

    @njit("int64(int64, int64, int64)")
    def call(x: int, y: int, at: int) -> int:
        return function(x, y, at, constant)  # type: ignore[no-any-return]

    return call  # type: ignore[no-any-return]


@pytest.mark.parametrize("which", [0, 2])
def test_compiled_functions_answer_as_python_does(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call = compiled(arithmetic, which)
    memory = np.zeros(1, np.int64)
    cases = [(x, y) for x in range(-7, 8) for y in (-5, -2, -1, 1, 2, 3, 7)]
    answers = [call(x, y, memory.ctypes.data) for x, y in cases]

    words = {0: 0}
    monkeypatch.setitem(globals(), "peek_int", lambda at: words[at])
    monkeypatch.setitem(globals(), "poke_int", lambda at, value: words.update({at: value}))
    for name in ("gcd", "first_multiple"):
        monkeypatch.setitem(globals(), name, globals()[name].py_func)
    assert answers == [arithmetic.py_func(x, y, 0, which) for x, y in cases]
    assert memory[0] == words[0]


@typed
def unknown(x: int, y: int, at: int, which: Const) -> int:
    return sum([x, y])


def test_what_cannot_be_translated_names_its_line() -> None:
    with pytest.raises(Exception, match=r"line \d+: \[x, y\]"):
        compiled(unknown, 0)


SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
import torch, fastconfig
print(fastconfig.ConFIG_update(torch.eye(2)).tolist())
"""


def start(folder: Path, **variables: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "LOCALAPPDATA")}
    environment |= {"XDG_CACHE_HOME": str(folder), "FASTCONFIG_BACKEND": "numba", **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=pipe, stderr=pipe, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert out.strip() == "[1.0, 1.0]", err
    return err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_code_is_kept_in_the_users_folder_by_processes_that_fill_it_at_once(tmp_path: Path) -> None:
    said = [finish(process) for process in [start(tmp_path) for _ in range(2)]]
    assert all(text.count("compiling") == 1 for text in said), said
    assert all(
        f"of float32 on the CPU, which takes seconds, once: it is kept in {tmp_path / 'fastconfig'}" in text
        for text in said
    ), said
    code = list((tmp_path / "fastconfig").glob("*.nbc"))
    assert len(code) == 3
    assert finish(start(tmp_path)) == ""  # found
    for file in code:
        file.write_bytes(file.read_bytes()[:100])
    assert "compiling" in finish(start(tmp_path))  # what is damaged is compiled again
    assert finish(start(tmp_path)) == ""
    given = tmp_path / "numba"
    assert f"kept in {given}" in finish(start(tmp_path, NUMBA_CACHE_DIR=str(given)))


def test_other_packages_functions_stay_where_numba_keeps_them() -> None:
    from numba.core import caching

    cache_numba.compiled(gcd_into)
    assert cache_numba._Folder not in caching.CacheImpl._locator_classes
    package = Path(fastconfig.__file__).parent
    assert not [*package.rglob("*.nbi"), *package.rglob("*.nbc")]


@typed
def gcd_into(at: int, a: int, b: int) -> None:
    poke_int(at, gcd(a, b))


def test_an_entry_point_is_called_by_its_address() -> None:
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(cache_numba.compiled(gcd_into))
    memory = np.zeros(1, np.int64)
    call(memory.ctypes.data, 12, 18)
    assert memory[0] == 6


def test_a_user_without_a_home_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache_numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(cache_numba.Path, "home", homeless)
    assert cache_numba.compiled(gcd_into)
