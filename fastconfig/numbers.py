"""The number rules that every part shares: dtypes served and the cut-off of rank decisions."""

from __future__ import annotations

import torch
from torch import Tensor

CPU = torch.device("cpu")
DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = {dtype: kind for kind, dtype in enumerate(DTYPES)}  # as compiled code counts them

# max(0.1 eps^2, floor): what rounding the rows leaves of an exact (scaled) duplicate, never of N.
_CUTOFF: dict[torch.dtype, float] = {
    torch.float64: 1e-13,
    torch.float32: 1e-10,
    torch.float16: 1e-7,
    torch.bfloat16: 6e-6,
}


def cutoff(dtype: torch.dtype) -> float:
    """Smallest eigenvalue of the normalised Gram matrix, relative to the largest, that counts.

    Args:
        dtype: dtype of the gradients (not of the Gram matrix, which is always float64).

    Raises:
        TypeError: if gradients of this dtype are not served.
    """
    try:
        return _CUTOFF[dtype]
    except KeyError:
        raise TypeError(f"dtype: got {dtype}, want one of {dtype_names()}") from None


def dtype_names(dtypes: tuple[torch.dtype, ...] = DTYPES) -> str:
    """The served dtypes as an error message names them."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device that is not waited for.

    While a stream captures, torch refuses: the graph's replays would all have these numbers.
    """
    if tensor.device.type == "cpu" and device.type == "cuda" and not capturing(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph records what is called on a device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def float64_device(device: torch.device) -> torch.device:
    """Where the m x m stage of gradients on ``device`` lives: there, or on the CPU if it has no float64."""
    return CPU if device.type == "mps" else device
