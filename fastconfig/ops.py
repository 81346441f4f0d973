"""The three steps one by one: gram, coefficients, combine; and the conflict mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import methods
from .backends import choose
from .checks import as_order, as_tensor, check_gram, check_group, check_rcond, losses_beside, whole
from .gradients import Gradients, GradientsLike, Update
from .merging import combined
from .methods.base import coefficients_of
from .numbers import DTYPES, dtype_names, float64_device

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["coefficients", "combine", "conflict_mask", "gram"]


def gram(grads: GradientsLike, *, process_group: ProcessGroup | None = None) -> Tensor:
    """G = A A^T, the inner products of the gradients, accumulated in float64.

    Args:
        grads: m gradients of N elements in any of the three forms (tensor (m, N) or (B, m, N), vectors,
            per-parameter tensors); never modified.
        process_group: for plain tensors that are spread over ranks: each passes its part. DTensors need none.

    Returns:
        (m, m) or (B, m, m) float64 on the device of the gradients.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
    """
    check_group(process_group)
    return gram_of(Gradients(grads, group=process_group))


def gram_of(grads: Gradients) -> Tensor:
    """:func:`gram` of checked gradients."""
    return choose(grads).gram(grads)


def conflict_mask(gram: Tensor) -> Tensor:
    """Which pairs of gradients conflict: G < 0 (Yu et al. 2020, definition 1).

    Args:
        gram: (..., m, m).

    Returns:
        (..., m, m) bool; the diagonal is False.
    """
    _check_gram(gram)
    return gram < 0


def coefficients(
    gram: Tensor,
    method: str = "config",
    *,
    weights: Any = None,
    length: str = "projection",
    track_id: int = 0,
    order: Any = None,
    reduction: str = "sum",
    rcond: float | None = None,
    dtype: torch.dtype = torch.float32,
    losses: Any = None,
    **settings: Any,
) -> Tensor:
    """Coefficients c of the merged gradient sum_i c_i g_i, from the Gram matrix alone.

    Args:
        gram: (m, m) or (B, m, m) float64.
        method: "config", "pcgrad", "ppcgrad", "imtlg", or another name in :data:`fastconfig.methods.RULES`.
        weights: (m,) or (B, m) direction weights of ConFIG, a tensor or nested lists; ones by default.
        length: length model of ConFIG: "projection", "minimum", "maximum", "harmonic", "arithmetic",
            "geometric", "specific", or "none" for the direction pinv(units) w as it is.
        track_id: gradient that length "specific" tracks, -m..m-1.
        order: (m, m) or (B, m, m) integers for PCGrad, a tensor or nested lists: row i is the order in which
            gradient i is projected against the others; 0..m-1 by default.
        reduction: "sum" or "mean" over the projected gradients, for PCGrad and PPCGrad.
        rcond: cut-off on the eigenvalues of the normalised Gram matrix, relative to the largest.
        dtype: dtype of the gradients, which sets rcond's default.
        losses: (m,) or (B, m) numbers, for methods that use them.
        **settings: settings of another method's class, such as ``n_byzantine`` of Krum.

    Returns:
        (m,) or (B, m) float64; all NaN where a diagonal entry of G is NaN or Inf.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
    """
    _check_gram(gram)
    if dtype not in DTYPES:
        raise TypeError(f"dtype: got {dtype!r}, want one of {dtype_names()}")
    batch = gram.shape[0] if gram.dim() == 3 else None
    rule = methods.make_rule(
        method,
        gram.shape[-1],
        gram.device,
        batch=batch,
        weights=None
        if weights is None
        else as_tensor("weights", weights, "(m,) or (B, m) real numbers", torch.float64),
        length=length,
        track_id=whole("track_id", track_id),
        order=None if order is None else as_order(order),
        reduction=reduction,
        rcond=check_rcond(rcond),
        **settings,
    )
    return coefficients_of(rule, gram, dtype, None if losses is None else losses_beside(losses, gram))


def combine(grads: GradientsLike, c: Any) -> Update:
    """sum_i c_i g_i, summed in float64 and rounded once.

    Args:
        grads: as in :func:`gram`.
        c: (m,) or (B, m) real numbers, a tensor or nested lists.

    Returns:
        In the form, dtype and device of the gradients.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
    """
    rows = Gradients(grads)
    shape = (rows.m,) if rows.batch is None else (rows.batch, rows.m)
    c = as_tensor("c", c, f"{shape} real numbers", torch.float64)
    if tuple(c.shape) != shape:
        raise ValueError(f"c: got shape {tuple(c.shape)}, want {shape}")
    return combined(rows, c.detach().to(float64_device(rows.device), torch.float64))


def _check_gram(gram: Tensor) -> None:
    check_gram(gram)
    if gram.dtype != torch.float64:
        raise TypeError(f"gram: got dtype {gram.dtype}, want torch.float64")
