"""Vectors from networks and back; small vector functions; slice selectors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Tuple, Union  # noqa: UP035  # also taken from here by star import
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from .gradients import TYPES
from .network import checked_network, joined, joined_gradients, overwritten, parameters_of, pieces_of, write

__all__ = [
    "Literal",
    "OrderedSliceSelector",
    "RandomSliceSelector",
    "Sequence",
    "Tuple",
    "Union",
    "apply_gradient_vector",
    "apply_gradient_vector_para_based",
    "apply_para_vector",
    "estimate_conflict",
    "get_cos_similarity",
    "get_gradient_vector",
    "get_para_vector",
    "has_zero",
    "np",
    "torch",
    "transfer_coef_double",
    "unit_vector",
]


@torch.no_grad()
def get_para_vector(network: torch.nn.Module) -> Tensor:
    """All parameters of the network as one vector, in the order of ``network.parameters()``.

    Returns:
        (P,) a copy: it keeps its values while training goes on. A complex parameter counts as pairs of real
        numbers.
    """
    return joined(parameters_of(checked_network(network)))  # type: ignore[arg-type]


def get_gradient_vector(
    network: torch.nn.Module, none_grad_mode: Literal["raise", "zero", "skip"] = "skip"
) -> Tensor:
    """All gradients of the network as one vector, in the order of ``network.parameters()``.

    Args:
        network: the network after ``backward()``.
        none_grad_mode: what to do with a parameter without gradient (frozen, or not used by this loss):
            "skip" leaves it out, "zero" takes zeros, "raise" raises. If losses reach different parts of the
            network use "zero", so that all vectors have the same length.

    Returns:
        (N,) a copy: clearing ``.grad`` does not change it. A complex gradient counts as pairs of real
        numbers, a sparse one with its zeros.

    Raises:
        RuntimeError: with "raise" if a gradient is missing; with "skip" if all are.
        TypeError: if it is no torch.nn.Module.
        ValueError: for another mode.

    Warns:
        UserWarning: if "skip" leaves out other parameters than in the network's last vector of this length.

    Examples:
        >>> vector = fastconfig.get_gradient_vector(network)
    """
    _check_mode("none_grad_mode", none_grad_mode, ("raise", "zero", "skip"))
    parameters = parameters_of(checked_network(network))
    vector = joined_gradients(parameters, True)
    if vector is not None:
        return vector
    grads = [par.grad for par in parameters]
    if any(grad is None for grad in grads):
        if none_grad_mode == "raise":
            name = next(name for name, par in network.named_parameters() if par.grad is None)
            raise RuntimeError(f"None gradient detected: parameter {name!r} has none")
        if none_grad_mode == "skip":
            _check_alike(network, parameters)
            if (vector := joined_gradients(parameters, False)) is not None:
                return vector
        else:
            grads = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
        grads = [grad for grad in grads if grad is not None]
    if not grads:
        raise RuntimeError("no parameter of the network has a gradient: call backward() first")
    return joined(grads)  # type: ignore[arg-type]


_left_out: WeakKeyDictionary[torch.nn.Module, dict[int, list[bool]]] = WeakKeyDictionary()


def _check_alike(network: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Warns of vectors of one length whose elements belong to different parameters."""
    missing = [par.grad is None for par in parameters]
    length = sum(par.numel() for par, none in zip(parameters, missing, strict=True) if not none)
    if _left_out.setdefault(network, {}).setdefault(length, missing) == missing:
        return
    _left_out[network][length] = missing
    warnings.warn(
        "none_grad_mode='skip' left out other parameters than in an earlier vector of the same length: their "
        "elements do not belong together. If the losses reach different parts of the network, use 'zero' "
        "here and in apply_gradient_vector",
        stacklevel=3,
    )


def apply_gradient_vector(
    network: torch.nn.Module,
    grad_vec: Tensor,
    none_grad_mode: Literal["zero", "skip"] = "skip",
    zero_grad_mode: Literal["skip", "pad_zero", "pad_value"] = "pad_value",
) -> None:
    """Set the network's ``.grad`` from a vector.

    Existing gradients are overwritten in place. A new one is a view of the vector if its parameter is
    contiguous.

    Args:
        network: the network; with "skip" its parameters still need the ``.grad`` of a backward pass, which
            show what the vector leaves out.
        grad_vec: (N,).
        none_grad_mode: the mode given to :func:`get_gradient_vector`.
        zero_grad_mode: with none_grad_mode "zero": what a parameter without ``.grad`` gets. "pad_value": its
            part of the vector; "pad_zero" (or "padding"): zeros; "skip": nothing.

    Raises:
        TypeError: if an argument is no torch.nn.Module, or no tensor.
        ValueError: for another mode, or if the vector's length does not fit; nothing is written then.

    Examples:
        >>> fastconfig.apply_gradient_vector(network, fastconfig.get_gradient_vector(network))
    """
    _check_mode("none_grad_mode", none_grad_mode, ("zero", "skip"))
    _check_mode("zero_grad_mode", zero_grad_mode, ("skip", "pad_zero", "padding", "pad_value"))
    parameters = parameters_of(checked_network(network))
    if overwritten(parameters, none_grad_mode == "zero", grad_vec):
        return
    if none_grad_mode == "skip":
        parameters = [par for par in parameters if par.grad is not None]
    pairs = list(pieces_of(parameters, _apart(grad_vec, parameters), "grad_vec"))
    if zero_grad_mode == "skip":
        pairs = [(par, piece) for par, piece in pairs if par.grad is not None]
    elif zero_grad_mode != "pad_value":
        pairs = [(par, torch.zeros_like(piece) if par.grad is None else piece) for par, piece in pairs]
    write([par for par, _ in pairs], [piece for _, piece in pairs])


def _apart(vector: Tensor, parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """The vector, or a copy if it shares memory with the gradients that it will be written to."""
    if type(vector) not in TYPES or vector.layout is not torch.strided:
        return vector  # has no memory to share, or is refused later
    grads = [par.grad for par in parameters if type(par.grad) in TYPES]
    memory = vector.untyped_storage().data_ptr()
    shared = [g.layout is torch.strided and g.untyped_storage().data_ptr() == memory for g in grads]  # type: ignore[union-attr]
    return vector.clone() if any(shared) else vector


@torch.no_grad()
def apply_gradient_vector_para_based(network: torch.nn.Module, grad_vec: Tensor) -> None:
    """Set the ``.grad`` of every parameter from a vector over all of them.

    Args:
        network: the network; its parameters need no gradient yet.
        grad_vec: (P,) as from :func:`get_gradient_vector` with none_grad_mode "zero".

    Raises:
        ValueError: if the vector's length is not the number of the network's parameters.
    """
    parameters = parameters_of(checked_network(network))
    pairs = pieces_of(parameters, _apart(grad_vec, parameters), "grad_vec")
    write(parameters, [piece for _, piece in pairs])


@torch.no_grad()
def apply_para_vector(network: torch.nn.Module, para_vec: Tensor) -> None:
    """Copy a vector into the network's parameters.

    Args:
        network: the network.
        para_vec: (P,) as from :func:`get_para_vector`; it is copied.

    Raises:
        ValueError: if the vector's length is not the number of the network's parameters.
    """
    for par, piece in pieces_of(parameters_of(checked_network(network)), para_vec, "para_vec"):
        par.copy_(piece)


def write_gradient(
    network: torch.nn.Module,
    update: Tensor | Sequence[Tensor | None],
    none_grad_mode: Literal["zero", "skip"],
    zero_grad_mode: Literal["skip", "pad_zero", "pad_value"],
) -> None:
    """Write a merged gradient, a vector or per-parameter tensors, to ``.grad``; None leaves one alone.

    Raises:
        ValueError: if it does not fit the network; nothing is written then.
    """
    if isinstance(update, Tensor):
        apply_gradient_vector(network, update, none_grad_mode, zero_grad_mode)
        return
    parameters = parameters_of(checked_network(network))
    fits = len(update) == len(parameters) and all(
        piece is None or piece.shape == par.shape for par, piece in zip(parameters, update, strict=True)
    )
    if not fits:
        shapes = [None if piece is None else tuple(piece.shape) for piece in update]
        wanted = [tuple(par.shape) for par in parameters]
        raise ValueError(f"grads: got tensors of shapes {shapes}, want {wanted}, the network's")
    write(parameters, update)


def _check_mode(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{argument}: got {value!r}, want one of {names}")


def get_cos_similarity(vector1: Tensor, vector2: Tensor) -> Tensor:
    """Cosine of the angle between two vectors (N,), from float64 products; zero if one of them is zero.

    Returns:
        0-d tensor in the dtype of the vectors.
    """
    from .gradients import Gradients
    from .ops import gram_of

    products = gram_of(Gradients([vector1, vector2], ("vector1", "vector2")))
    squared = products[0, 0].sqrt() * products[1, 1].sqrt()
    return torch.where(squared == 0, squared, products[0, 1] / squared).to(vector1.dtype)


def unit_vector(vector: Tensor, warn_zero: bool = False) -> Tensor:
    """The vector at length one; a zero vector stays zero.

    Args:
        vector: any shape, any norm that float64 can square.
        warn_zero: warn about a zero vector (waits for the device).
    """
    wide = torch.float32 if vector.device.type == "mps" else torch.float64
    vector = vector.detach()
    norm = torch.linalg.vector_norm(vector, dtype=wide)
    if warn_zero and norm == 0:
        warnings.warn("Detected zero vector when doing normalization.", stacklevel=2)
    # divide in float64, since the norm may not fit the vector's dtype
    return torch.where(norm == 0, 0, vector.to(wide) / norm).to(vector.dtype)


@torch.no_grad()
def transfer_coef_double(
    weights: Tensor,
    unit_vec_1: Tensor,
    unit_vec_2: Tensor,
    or_unit_vec_1: Tensor,
    or_unit_vec_2: Tensor,
) -> tuple[Tensor, Tensor]:
    """Coefficients (c_1, c_2) so that c_1 o_1 + c_2 o_2 projects on v_1 and v_2 as w_1 to w_2.

    Args:
        weights: (2,) direction weights w.
        unit_vec_1, unit_vec_2: (N,) unit gradients v.
        or_unit_vec_1, or_unit_vec_2: (N,) unit vectors o_1 orthogonal to v_1, and o_2 to v_2.

    Returns:
        Two 0-d tensors; c_2 is one, unless c_1 would be infinite: then (1, 0).

    Raises:
        ValueError: if there are not two weights.
    """
    if len(weights) != 2:
        raise ValueError(f"weights: got {len(weights)}, want 2")
    first = weights[1] * torch.dot(or_unit_vec_2, unit_vec_1)
    second = weights[0] * torch.dot(or_unit_vec_1, unit_vec_2)
    finite = second != 0
    return torch.where(finite, first / second, 1), finite.to(first.dtype)


def estimate_conflict(gradients: Tensor) -> Tensor:
    """Cosine of every gradient with the plain sum of all; negative where the sum makes a loss worse.

    Args:
        gradients: (m, N), or a sequence of m vectors.

    Returns:
        (m,) in the dtype of the gradients; zero for a zero gradient, and if the sum is zero.
    """
    from .gradients import Gradients
    from .ops import gram_of

    products = gram_of(Gradients(gradients, "gradients"))
    norms = products.diagonal().sqrt()
    with_sum = products.sum(1)
    squared = with_sum.sum()
    resolved = squared > 4 * torch.finfo(torch.float64).eps * norms.sum().square()
    lengths = norms * squared.clamp(min=0).sqrt()
    cosines = torch.where((norms == 0) | ~resolved, 0, with_sum / lengths)
    broken = ~norms.isfinite().all()
    return torch.where(broken, torch.nan, cosines).to(gradients[0].dtype)


def has_zero(lists: Sequence[Any]) -> bool:
    """Whether any element is zero."""
    return any(element == 0 for element in lists)


class OrderedSliceSelector:
    """Selects elements of a sequence in turn, again and again.

    Use it to choose the losses of a step for a momentum operator.
    """

    def __init__(self) -> None:
        self.start_index = 0

    def select(self, n: int, source_sequence: Sequence[Any]) -> tuple[list[int], Any]:
        """Take the next n elements.

        Args:
            n: how many, at most ``len(source_sequence)``.
            source_sequence: the sequence.

        Returns:
            Their indexes; and the elements as a list, or the element itself for n = 1.

        Raises:
            ValueError: if n is larger than the sequence.
        """
        size = len(source_sequence)
        _check_count(n, size)
        indexes = [(self.start_index + k) % size for k in range(n)]
        self.start_index = (self.start_index + n) % size
        return indexes, _selected(indexes, source_sequence)


class RandomSliceSelector:
    """Selects elements of a sequence at random, with NumPy's global generator."""

    def select(self, n: int, source_sequence: Sequence[Any]) -> tuple[list[int], Any]:
        """Choose n different elements.

        Args:
            n: how many, at most ``len(source_sequence)``.
            source_sequence: the sequence.

        Returns:
            Their indexes; and the elements as a list, or the element itself for n = 1.

        Raises:
            ValueError: if n is larger than the sequence.
        """
        _check_count(n, len(source_sequence))
        chosen = np.random.choice(len(source_sequence), n, replace=False)  # noqa: NPY002  # as seeded
        indexes = [int(i) for i in chosen]
        return indexes, _selected(indexes, source_sequence)


def _check_count(n: int, size: int) -> None:
    if not 0 < n <= size:
        raise ValueError(f"n: got {n}, want 1..{size}, the length of source_sequence")


def _selected(indexes: list[int], source: Sequence[Any]) -> Any:
    return source[indexes[0]] if len(indexes) == 1 else [source[i] for i in indexes]
