"""No wait for the device, or an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: a look at a value; an index of unknown size; and what CUDA does by libraries that no graph captures
REFUSED = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::cholesky_solve",
    "aten::_cholesky_solve_helper",
    "aten::_linalg_solve_ex",
    "aten::linalg_lu_factor_ex",
    "aten::linalg_lstsq",
    "aten::_linalg_eigh",
    "aten::_linalg_svd",
    "aten::linalg_qr",
}


@contextmanager
def none() -> Iterator[None]:
    """Whatever within waits for a CUDA device raises."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        # told once in a process, by whichever call is the first
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Watched(TorchDispatchMode):
    """Refuses such operations, and those that take a tensor from one device to another."""

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = function._schema.name
        masked = name == "aten::index" and any(i is not None and i.dtype is torch.bool for i in given[1])
        if name in REFUSED or masked:
            raise AssertionError(f"{name} waits for the device, or keeps a graph from being captured")
        result = function(*given, **(named or {}))
        if name in ("aten::_to_copy", "aten::copy_"):
            devices = {value.device for value in (*given, result) if isinstance(value, Tensor)}
            assert len(devices) == 1, f"{name} between {devices}"
        return result
