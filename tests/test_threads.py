"""The CPU path under threads: the same bits for any number of them, and sound under fork and concurrency."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import python, with_torch
from torch import Tensor

from fastconfig import ConFIG_update, ops, use_backend
from fastconfig.backends import team

N = 700_001  # above team.ENOUGH for three float32 rows, and no multiple of anything


@pytest.fixture(autouse=True)
def _numba_and_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    with use_backend("numba"):
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("m", [2, 3, 9])
def test_the_same_bits_for_any_number_of_threads(m: int, dtype: torch.dtype) -> None:
    rows = [torch.randn(2 * N).to(dtype) for _ in range(m)]
    grams, updates = [], []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        assert team.threads_for(m * 2 * N * dtype.itemsize) == threads
        grams.append(ops.gram(rows))
        updates.append(ConFIG_update(rows))
    assert torch.isfinite(updates[0]).all()
    for gram, update in zip(grams, updates, strict=True):
        assert torch.equal(gram, grams[0])
        assert torch.equal(update, updates[0])


def test_the_same_bits_in_a_hundred_calls() -> None:
    torch.set_num_threads(2)
    rows = [torch.randn(N) for _ in range(3)]
    first = ConFIG_update(rows)
    assert torch.isfinite(first).all()
    for _ in range(100):
        assert torch.equal(ConFIG_update(rows), first)


def test_small_inputs_stay_on_one_thread() -> None:
    for threads in (1, 2, 3, 4, 8):
        torch.set_num_threads(threads)
        enough = min(max(2, threads) * team.EACH, team.ENOUGH)
        assert team.threads_for(enough - 1) == 1
        assert team.threads_for(enough) == threads


@pytest.mark.parametrize("backwards", [False, True])
def test_every_chunk_is_taken_once_whoever_comes(backwards: bool) -> None:
    """Each thread begins with its own share, and takes what threads that are late or missing have left."""
    update_numba = pytest.importorskip("fastconfig.kernels.numba.update")
    from numba import njit

    take_chunk = update_numba.take_chunk

    @njit("int64(int64, int64)")
    def taken(address: int, own: int) -> int:
        return take_chunk(address, own, backwards)

    for chunks, shares in [(1, 1), (12, 2), (7, 3), (2, 4), (64, 5), (60, update_numba.SHARES)]:
        job = np.zeros(update_numba.WORDS, np.int64)
        job[update_numba.CHUNKS], job[update_numba.SHARED] = chunks, shares

        def take(own: int, job: Any = job) -> int:
            return taken(job.ctypes.data, own)

        firsts = [take(own) for own in range(min(shares, chunks))]
        if shares <= chunks:
            assert firsts == [
                (own + 1) * chunks // shares - 1 if backwards else own * chunks // shares
                for own in range(shares)
            ]
        rest = [take(own) for own in torch.randint(shares, (chunks - len(firsts),)).tolist()]
        assert sorted(firsts + rest) == list(range(chunks))
        assert take(shares - 1) == -1


@pytest.mark.parametrize("backwards", [False, True])
def test_a_share_whose_last_chunk_another_thread_takes_meanwhile(
    backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the counter and the atomic addition; step by step, in Python."""
    update_numba = pytest.importorskip("fastconfig.kernels.numba.update")
    chunks, shares = 6, 2
    words = {update_numba.CHUNKS: chunks, update_numba.SHARED: shares}
    words |= {update_numba.TAKEN: 2, update_numba.TAKEN + 1: 0}
    others = [update_numba.TAKEN]  # where another thread comes first, once

    def fetch_add(address: int, value: int) -> int:
        if address // 8 in others:
            others.remove(address // 8)
            words[address // 8] += 1
        words[address // 8] += value
        return words[address // 8] - value

    monkeypatch.setattr(update_numba, "peek_int", lambda address: words[address // 8])
    monkeypatch.setattr(update_numba, "fetch_add", fetch_add)
    taken = [update_numba.take_chunk.py_func(0, 0, backwards) for _ in range(4)]
    assert not others
    assert taken == ([5, 4, 3, -1] if backwards else [3, 4, 5, -1])


def test_the_counter_that_threads_share_is_atomic() -> None:
    """As it is compiled: a race that shows it may take a million calls."""
    calls_numba = pytest.importorskip("fastconfig.kernels.numba.calls")
    from numba import njit

    fetch_add = calls_numba.fetch_add

    @njit("int64(int64, int64)")
    def add(address: int, value: int) -> int:
        return fetch_add(address, value)

    total = np.array([5], np.int64)
    assert add(total.ctypes.data, 3) == 5
    assert total[0] == 8
    (code,) = add.inspect_llvm().values()
    assert "atomicrmw add" in code


def test_what_threads_run_is_found_on_disk_again(tmp_path: Path) -> None:
    """Numba caches nothing that keeps an address of this process, and says so."""
    pytest.importorskip("fastconfig.kernels.numba.update")
    code = """
import warnings
warnings.simplefilter("error")
from fastconfig.kernels.numba import update as update_numba
update_numba.bodies(0)
"""
    run = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.rglob("*.nbi"))


def test_parameters_and_vectors_give_the_same_bits_across_threads() -> None:
    shapes = [(3, 5), (1000, 1001), (7,), (400, 500), (1,)]
    grads = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    results: list[list[Tensor]] = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(ConFIG_update(grads))  # type: ignore[arg-type]
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_calls_from_several_python_threads_at_once() -> None:
    torch.set_num_threads(2)
    problems = [[torch.randn(n) for _ in range(m)] for m in (2, 3, 9) for n in (1000, 50_001, N)]
    wanted = [ConFIG_update(rows) for rows in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for result, exact in zip(pool.map(ConFIG_update, problems), wanted, strict=True):
                assert torch.equal(result, exact)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes_too() -> None:
    code = f"""
import os, sys, warnings, torch
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads is what is tested
from fastconfig import ConFIG_update
torch.set_num_threads(2)
rows = [torch.randn({N}) for _ in range(3)]
def answer():  # compared as bytes: torch's own parallel operations hang in a forked child
    return ConFIG_update(rows).numpy().tobytes()
before = answer()
child = os.fork()
if child == 0:
    os._exit(0 if answer() == before else 1)
print(os.waitpid(child, 0)[1], answer() == before)
"""
    run = python(code)
    assert run.stdout.split() == ["0", "True"], run.stderr


def test_without_a_folder_for_the_cache_it_works_all_the_same() -> None:
    code = "import torch; from fastconfig import ConFIG_update; print(ConFIG_update(torch.eye(2)))"
    run = with_torch(code, FASTCONFIG_BACKEND="numba", NUMBA_CACHE_DIR=os.devnull + "/nowhere")
    assert run.stdout.strip() == "tensor([1., 1.])", run.stderr
