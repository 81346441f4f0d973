"""What every test shares: a fresh seed, printed where a test fails, NaN in new memory, and both backends."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from poisoned import poison

import fastconfig

if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
poison()
torch.set_num_threads(1)  # test processes run side by side
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and the processes that they start


@pytest.fixture(autouse=True)
def seed() -> int:
    """A seed of the system's for torch, NumPy and tests/emulator; FASTCONFIG_TEST_SEED repeats a run."""
    given = os.environ.get("FASTCONFIG_TEST_SEED")
    value = int.from_bytes(os.urandom(4), "little") if given is None else int(given)
    print(f"FASTCONFIG_TEST_SEED={value}")
    torch.manual_seed(value)
    os.environ["FASTCONFIG_EMULATOR_SEED"] = str(value)
    np.random.seed(value)  # noqa: NPY002  # RandomSliceSelector draws from the global generator
    return value


@pytest.fixture(params=["numba", "pytorch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything in the test is served by this backend."""
    with fastconfig.use_backend(request.param):
        yield request.param
