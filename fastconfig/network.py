"""Read and write a network's parameters and their ``.grad``; nothing else in the package does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import got
from .gradients import TYPES, Gradients, Update
from .gradients.checks import dense
from .gradients.memory_order import is_dense
from .gradients.pairs import as_real, real_numel, to_complex
from .gradients.rows import scan
from .gradients.shards import is_dtensor, is_fsdp1
from .numbers import DTYPES

try:
    from . import _C
except ImportError:  # not built: torch's own operations do the same
    _C = None  # type: ignore[assignment]

NoneGrad = Literal["zero", "skip"]
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


def checked_network(network: Any) -> torch.nn.Module:
    """Check that it is a network.

    Raises:
        TypeError: if it is none, or FSDP1.
    """
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"network: got {got(network)}, want a torch.nn.Module")
    if is_fsdp1(network):
        raise TypeError("network: got a FullyShardedDataParallel, want FSDP2: fully_shard(network)")
    return network


def plain_leaves(tensors: list[Tensor]) -> list[Tensor] | None:
    """The parameters that require a gradient, each once; None unless all are leaves of torch's own types."""
    return None if _C is None else _C.leaves(tensors, TYPES)


# Vectors


def joined(tensors: list[Tensor]) -> Tensor:
    """All elements of tensors copied to one vector of real numbers, on the first one's device."""
    if _C is not None and not torch.compiler.is_compiling():
        vector = _C.join(tensors, False, True, TYPES, _SHORT)
        if vector is not None:
            return vector
    flat = [as_real(dense(tensor.detach())).reshape(-1) for tensor in tensors]
    return torch.cat([piece.to(flat[0].device) for piece in flat])


def joined_gradients(parameters: list[torch.nn.Parameter], every: bool) -> Tensor | None:
    """Short, plain gradients as one vector; None if not applicable, or if one is missing and ``every``."""
    if _C is None or torch.compiler.is_compiling():
        return None
    return _C.join(parameters, True, every, TYPES, _SHORT)


def pieces_of(
    parameters: Sequence[torch.nn.Parameter], vector: Tensor, argument: str
) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
    """Pairs of each parameter and its part of a vector, in its shape and dtype; checks the length first.

    Raises:
        TypeError, ValueError: if it is no vector, or has another length; the message names ``argument``.
    """
    if not isinstance(vector, Tensor) or vector.layout is not torch.strided or not vector.is_floating_point():
        kind = f"a tensor of {vector.layout}, {vector.dtype}" if isinstance(vector, Tensor) else got(vector)
        raise TypeError(f"{argument}: got {kind}, want a dense tensor (N,) of real numbers")
    sizes = [real_numel(par) for par in parameters]
    if vector.dim() != 1 or len(vector) != sum(sizes):
        raise ValueError(
            f"{argument}: got shape {tuple(vector.shape)}, want ({sum(sizes)},): the elements of the "
            f"{len(parameters)} parameters that take part (none_grad_mode 'skip' leaves out those without "
            "gradient, 'zero' takes all)"
        )
    if vector.is_meta and not all(par.is_meta for par in parameters):
        raise ValueError(f"{argument}: got a tensor on meta, want one with elements")
    pairs = zip(parameters, vector.detach().split(sizes), strict=True)
    return iter([(par, _shaped(piece, par)) for par, piece in pairs])


def _shaped(piece: Tensor, par: Tensor) -> Tensor:
    if par.is_complex():
        return to_complex(piece.reshape(*par.shape, 2).to(par.device, par.dtype.to_real()))
    return piece.view(par.shape).to(par.device, par.dtype)


# .grad


def overwritten(parameters: list[torch.nn.Parameter], every: bool, vector: Tensor) -> bool:
    """Copy a short vector into plain gradients of its dtype; False if not applicable.

    Parameters without a gradient are skipped; if ``every``, nothing is copied then.
    """
    if _C is None or torch.compiler.is_compiling():
        return False
    grads = _C.spread(vector, parameters, every, TYPES, _SHORT)
    if grads is None:
        return False
    torch.autograd.graph.increment_version(grads)
    return True


def room_for(grads: Gradients, parameters: Sequence[Tensor]) -> Update:
    """Tensors for an update: each existing ``.grad`` that can hold its part, else a new tensor.

    Bumps the versions of existing ones, since the caller writes to them.
    """
    there = [par.grad for par in parameters]
    if grads.shards is not None or grads.pairs or all(grad is None for grad in there):
        return grads.new_update()
    if grads.plain and not any(grad is None or grad.requires_grad for grad in there):
        found = scan([there], TYPES)
        if found is not None and _alike(found, grads):
            torch.autograd.graph.increment_version(there)  # type: ignore[arg-type]
            return there
    update = grads.new_update()
    assert isinstance(update, list)
    taken = []
    for p, (par, new) in enumerate(zip(parameters, update, strict=True)):
        grad = par.grad
        if new is None or grad is None or type(grad) not in TYPES or not _writable(grad, par):
            continue
        if grad.dtype is new.dtype and grad.device == new.device and grad.stride() == new.stride():
            update[p] = grad
            taken.append(grad)
    if taken:
        torch.autograd.graph.increment_version(taken)
    return update


def _alike(found: tuple[int, int, Any, int], grads: Gradients) -> bool:
    """Whether scanned tensors have the gradients' shapes, dtype and device."""
    kind, _, shapes, index = found
    wanted = -1 if grads.device_type == "cpu" else grads.device.index
    return shapes == grads.shapes and DTYPES[kind] is grads.dtype and index == wanted


@torch.no_grad()
def write(
    parameters: Sequence[Tensor],
    update: Sequence[Tensor | None],
    *,
    accumulate: bool = False,
    none_grad: NoneGrad = "skip",
) -> None:
    """Write an update to the parameters' ``.grad``, by the rules of torch's own backward pass.

    A new gradient has its parameter's strides if that is dense and non-overlapping, else it is contiguous. An
    existing one is overwritten in place and keeps its layout. Device and dtype are the parameter's. Hooks of
    ``register_post_accumulate_grad_hook`` run once all gradients are written.

    Args:
        parameters: leaves.
        update: one tensor for each parameter, or None for no gradient. A part that was merged straight into a
            ``.grad`` is that tensor itself.
        accumulate: add to existing gradients.
        none_grad: "zero" writes zeros where the update has None; "skip" leaves such a parameter alone.

    Raises:
        ValueError: if a tensor's shape is not its parameter's; nothing is written then.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for p, (par, piece) in enumerate(zip(parameters, update, strict=True)):
        if piece is None:
            if none_grad == "zero" and not (accumulate and par.grad is not None):
                pairs.append((par, torch.zeros_like(par)))
        elif piece.shape != par.shape:
            raise ValueError(f"update[{p}]: got shape {tuple(piece.shape)}, want {tuple(par.shape)}")
        else:
            pairs.append((par, piece.detach() if piece.requires_grad else piece))
    hooked = []
    for par, piece in pairs:
        grad = par.grad
        if grad is None:
            par.grad = piece if _fits(piece, par) else _like(par, piece)
        elif grad is not piece or accumulate:
            _write_to(grad, par, piece, accumulate)
        if par._post_accumulate_grad_hooks:
            hooked.append(par)
    for par in hooked:
        for hook in list((par._post_accumulate_grad_hooks or {}).values()):
            hook(par)


def _write_to(grad: Tensor, par: Tensor, piece: Tensor, accumulate: bool) -> None:
    if _writable(grad, par) and is_dtensor(grad) == is_dtensor(piece):
        target, piece = _local(grad, piece)
        if accumulate:
            target.add_(piece)
        elif not _same_memory(target, piece):
            target.copy_(piece)
        return
    if accumulate:  # sparse, or part of a graph
        piece = piece + grad
    par.grad = piece if _fits(piece, par) else _like(par, piece)


def _like(par: Tensor, piece: Tensor) -> Tensor:
    """A copy with the layout, dtype and device of a gradient of the parameter."""
    return torch.empty_like(par, dtype=_grad_dtype(par)).copy_(piece)


def _fits(piece: Tensor, par: Tensor) -> bool:
    """Whether a tensor can serve as the gradient without a copy: optimizers read memory, not flags."""
    if piece.dtype is not _grad_dtype(par) or piece.device != par.device:
        return False
    if not (piece.is_contiguous() and par.is_contiguous()) and not _keeps_layout(piece, par):
        return False
    return not (piece.is_neg() or piece.is_conj() or piece.is_inference())


def _grad_dtype(par: Tensor) -> torch.dtype:
    """The dtype of a parameter's gradient: its own, unless it sets another (torch 2.10)."""
    return getattr(par, "grad_dtype", None) or par.dtype


def _local(grad: Any, piece: Any) -> tuple[Tensor, Tensor]:
    """This rank's parts of both, if they are spread over the ranks in the same way."""
    if is_dtensor(grad) and grad.placements == piece.placements:
        return grad.to_local(), piece.to_local()
    return grad, piece


def _writable(grad: Tensor, par: Tensor) -> bool:
    """Whether a ``.grad`` can be overwritten in place: dense, without a graph, no overlapping elements."""
    if grad.layout is not torch.strided or grad.requires_grad or grad.is_inference():
        return False
    if grad.dtype is not _grad_dtype(par) or grad.device != par.device or grad.shape != par.shape:
        return False
    return all(stride or size < 2 for stride, size in zip(grad.stride(), grad.shape, strict=True))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (
        a.dtype is b.dtype
        and a.data_ptr() == b.data_ptr() != 0
        and a.stride() == b.stride()
        and a.is_neg() == b.is_neg()
        and a.is_conj() == b.is_conj()
    )


def _keeps_layout(piece: Tensor, par: Tensor) -> bool:
    """torch's layout contract for a new gradient: the strides of a dense parameter, else contiguous."""
    if piece.is_contiguous() and (par.is_contiguous() or not is_dense(par)):
        return True
    strides = zip(piece.stride(), par.stride(), par.shape, strict=True)
    return is_dense(par) and all(size == 1 or a == b for a, b, size in strides)
