"""No wait for the device, or an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
