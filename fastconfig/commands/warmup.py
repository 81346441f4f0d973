"""``fastconfig warmup``: compile what the first calls would, for an image or before many processes start."""

from __future__ import annotations

import time

import torch

from ..backends import BackendUnavailable, use_backend
from ..grad_operator import ConFIG_update
from ..momentum_operator import PseudoMomentumOperator


def warm_up(dtypes: tuple[str, ...]) -> int:
    """Compile the CPU kernels for these dtypes, updates and momentum, and say where they are kept.

    Several processes may do so at once, on different processors, too: each file holds the code for one.

    Returns:
        0, or 1 if a dtype cannot be served here, or nothing be kept.
    """
    code = 0
    for dtype in dtypes:
        rows = [torch.ones(8, dtype=getattr(torch, dtype), device="cpu") for _ in range(2)]
        start = time.perf_counter()
        try:
            with use_backend("numba"):
                ConFIG_update(rows)
                PseudoMomentumOperator(2).calculate_gradient([0, 1], rows)
        except BackendUnavailable as error:
            print(f"{dtype}: {error}")
            code = 1
        else:
            print(f"{dtype}: ready after {time.perf_counter() - start:.1f} s")
    if code == 0:
        from ..kernels.numba.cache import folder

        try:
            print(f"kept in {folder()}")
        except OSError as error:
            print(f"kept nowhere, set NUMBA_CACHE_DIR: {error}")
            code = 1
    return code
