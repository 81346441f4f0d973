"""Refuse torch.func, torch.jit.trace and make_fx, which do not see what compiled kernels do."""

from __future__ import annotations

import torch

_FUNC = {  # by the name of torch.func's transform
    "Vmap": ("vmap", "the batch as one tensor (B, m, N)"),
    "Grad": ("grad, vjp or jacrev", "the call outside of it: an update has no derivative"),
    "Jvp": ("jvp or jacfwd", "the call outside of it: an update has no derivative"),
    "Functionalize": ("functionalize", "torch.compile"),
}
_PROXIES = torch._C._TorchDispatchModeKey.PROXY


def refuse_transforms(argument: str) -> None:
    """Raise a RuntimeError inside a transform or tracer, which would get a wrong answer.

    Args:
        argument: what the message calls the tensors.
    """
    level = torch._C._functorch.peek_interpreter_stack()
    if level is not None:
        kind = level.key().name
        name, wanted = _FUNC.get(kind, (kind, "the call outside of it"))
        raise RuntimeError(f"{argument}: got tensors within torch.func's {name}, want {wanted}")
    if torch._C._is_tracing():
        _refuse(argument, "torch.jit.trace")
    if torch._C._len_torch_dispatch_stack() and torch._C._get_dispatch_mode(_PROXIES) is not None:
        _refuse(argument, "make_fx")


def _refuse(argument: str, recorder: str) -> None:
    raise RuntimeError(
        f"{argument}: got tensors within {recorder}, which does not record what compiled kernels do, want "
        "torch.compile, or the call outside of what is traced"
    )
