"""A network's parameters, and tensors to and from one vector; quick where calls cost more than bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from .gradients import TYPES, are_free

try:
    from . import _C
except ImportError:  # not built: torch's own operations do the same
    _C = None  # type: ignore[assignment]

_SHORT = 1 << 16  # elements of a vector up to which its pieces are copied by one call


def parameters_of(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """``list(network.parameters())``, without its generators where nobody has overridden what they call."""
    kind, plain = type(network), torch.nn.Module
    if (
        _C is not None
        and not torch.compiler.is_compiling()  # it cannot look into compiled calls
        and kind.parameters is plain.parameters
        and kind.named_parameters is plain.named_parameters
        and kind._named_members is plain._named_members
    ):
        found = _C.parameters(network, plain.named_modules)
        if found is not None:
            return found
    return list(network.parameters())


def joined(tensors: list[Tensor]) -> Tensor:
    """All elements of tensors as one vector: a copy, without a graph."""
    count = sum([tensor.numel() for tensor in tensors])
    quick = _C is not None and 0 < count <= _SHORT and not torch.compiler.is_compiling()
    if quick and tensors[0].device.type == "cpu":
        vector = torch.empty(count, dtype=tensors[0].dtype)
        if _C.flatten(vector, tensors, TYPES):
            return vector
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).detach()


def overwritten(tensors: list[Tensor | None], vector: Tensor) -> bool:
    """Whether a short vector was copied to the tensors: all there, of its dtype, together of its length."""
    if _C is None or vector.numel() > _SHORT or torch.compiler.is_compiling():
        return False
    if not are_free(tensors):
        return False
    if not _C.scatter(vector, tensors, TYPES):
        return False
    torch.autograd.graph.increment_version(tensors)  # type: ignore[arg-type]
    return True
