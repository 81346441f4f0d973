"""Large results take the memory that earlier ones have left, and never memory that is still in use."""

from __future__ import annotations

import gc
import os
import sys
import threading

import pytest
import torch

from fastconfig import ConFIG_update
from fastconfig.gradients import results
from fastconfig.gradients.results import KEPT_FROM, MOST_KEPT, new_result

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch.empty serves")

N = KEPT_FROM // 4  # float32 elements of the smallest result that is kept


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_blocks", [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_new_memory_holds_nan_in_tests(dtype: torch.dtype) -> None:
    for _ in range(2):  # new, and left by the one before
        result = new_result((KEPT_FROM // dtype.itemsize,), dtype)
        assert result.isnan().all()
        result.zero_()
        del result
    like = torch.empty(3, 4, dtype=dtype)
    for tensor in (like, torch.empty_like(like), torch.empty_strided((2, 3), (1, 2), dtype=dtype)):
        assert tensor.isnan().all()


def test_a_result_that_is_dropped_leaves_its_memory() -> None:
    first = new_result((N,), torch.float32)
    address = first.data_ptr()
    second = new_result((N,), torch.float32)
    assert second.data_ptr() != address
    del first
    assert new_result((N,), torch.float32).data_ptr() == address


@pytest.mark.parametrize(
    "view", [lambda t: t[5:], lambda t: t.view(2, -1).T, lambda t: t.numpy(), lambda t: t.detach()]
)
def test_a_view_keeps_the_memory(view: object) -> None:
    tensor = new_result((N,), torch.float32)
    address = tensor.data_ptr()
    rest = view(tensor)  # type: ignore[operator]
    del tensor
    gc.collect()
    assert new_result((N,), torch.float32).data_ptr() != address
    del rest
    assert new_result((N,), torch.float32).data_ptr() == address


def test_shapes_and_dtypes() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for shape in ((0,), (3,), (3, KEPT_FROM), ()):
            tensor = new_result(shape, dtype)
            assert tensor.shape == shape
            assert tensor.dtype == dtype
            assert tensor.is_contiguous()
            assert tensor.data_ptr() % 64 == 0


def test_what_is_kept_is_bounded() -> None:
    size = MOST_KEPT // 16
    held = [new_result((size,), torch.float32) for _ in range(8)]
    for k, tensor in enumerate(held):
        tensor.fill_(k)
    del tensor
    assert sum(map(len, results._blocks)) <= MOST_KEPT
    # memory that is no longer kept lives as long as its tensor
    assert all(bool((tensor == k).all()) for k, tensor in enumerate(held))
    new_result((MOST_KEPT // 4 + 1,), torch.float32)
    assert sum(map(len, results._blocks)) <= MOST_KEPT


def test_a_training_loop_takes_two_blocks_in_turn() -> None:
    rows = [torch.randn(N) for _ in range(2)]
    addresses = set()
    for _ in range(6):
        update = ConFIG_update(rows)
        addresses.add(update.data_ptr())
    assert len(addresses) == 2
    assert torch.isfinite(update).all()


def test_threads_never_share_a_result() -> None:
    wrong = []

    def work(k: int) -> None:
        for _ in range(60):
            tensor = new_result((N,), torch.float32)
            tensor.fill_(k)
            wrong.append(not bool((tensor == k).all()))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 240
    assert not any(wrong)


def test_a_forked_child_writes_to_memory_of_its_own() -> None:
    tensor = new_result((N,), torch.float32)
    tensor.fill_(1)
    child = os.fork()
    if child == 0:
        tensor.numpy()[:] = 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert bool((tensor == 1).all())
