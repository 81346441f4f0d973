"""A network's parameters, and tensors to and from one vector; quick where calls cost more than bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from .gradients import TYPES
from .numbers import DTYPES

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


def plain_leaves(tensors: list[Tensor]) -> list[Tensor] | None:
    """Those that require a gradient, each once, if all are leaves of torch's own types; or None."""
    return None if _C is None else _C.leaves(tensors, TYPES)


def joined(tensors: list[Tensor]) -> Tensor:
    """All elements of tensors as one vector: a copy, without a graph."""
    if _C is not None and not torch.compiler.is_compiling():
        vector = _C.join(tensors, False, True, TYPES, torch.empty, DTYPES, _SHORT)
        if vector is not None:
            return vector
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).detach()


def joined_gradients(parameters: list[torch.nn.Parameter], every: bool) -> Tensor | None:
    """The gradients, if they are short and plain, as one vector; None for a missing one, if ``every``."""
    if _C is None or torch.compiler.is_compiling():
        return None
    return _C.join(parameters, True, every, TYPES, torch.empty, DTYPES, _SHORT)


def overwritten(parameters: list[torch.nn.Parameter], every: bool, vector: Tensor) -> bool:
    """Whether a short vector was copied to the gradients: plain, of its dtype, together of its length.

    Parameters without a gradient are left out; or nothing is copied, if ``every``.
    """
    if _C is None or torch.compiler.is_compiling():
        return False
    grads = _C.spread(vector, parameters, every, TYPES, _SHORT)
    if grads is None:
        return False
    torch.autograd.graph.increment_version(grads)
    return True
