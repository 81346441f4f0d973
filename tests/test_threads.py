"""The CPU path under threads: the same bits for any number of them, and sound under fork and concurrency."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from processes import python
from torch import Tensor

from fastconfig import ConFIG_update, ops, use_backend
from fastconfig.backends import team

N = 700_001  # above SERIAL_BELOW for three float32 rows, and no multiple of anything


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
    torch.set_num_threads(4)
    assert team.threads_for(team.SERIAL_BELOW - 1) == 1


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
    run = python(code, FASTCONFIG_BACKEND="numba", NUMBA_CACHE_DIR=os.devnull + "/nowhere")
    assert run.stdout.strip() == "tensor([1., 1.])", run.stderr
