"""Who else answers the same questions: conflictfree, torchjd, and a Gram solution in plain torch."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ..gradients import GradientsLike
from .momentum import MOMENTUM, Maker, PlainMomentum, Steps

PLAIN = "plain torch"
Merge = Callable[[Any], Any]


@dataclass
class Peer:
    """A package and what it offers.

    Attributes:
        name: as tables show it.
        version: of the package.
        missing: why it takes no part, or None.
        merges: operation -> function of the gradients in any form.
        unordered: operations whose answer depends on a random order, so that it cannot be compared.
        momentum: a new M-ConFIG operator, if there is one.
    """

    name: str
    version: str | None = None
    missing: str | None = None
    merges: dict[str, Merge] = field(default_factory=dict)
    unordered: tuple[str, ...] = ()
    momentum: Maker | None = None

    def calls(self, grads: GradientsLike) -> dict[str, Callable[[], Any]]:
        """Every operation on these gradients as a call without arguments."""
        found: dict[str, Callable[[], Any]] = {
            name: partial(merge, grads) for name, merge in self.merges.items()
        }
        return found if self.momentum is None else found | {MOMENTUM: Steps(self.momentum, grads, flat=True)}


def find_peers() -> list[Peer]:
    """All peers, those that are not installed with the reason."""
    plain = Peer(PLAIN, torch.__version__, None, {name: _flat_form(f) for name, f in _PLAIN.items()})
    plain.momentum = partial(PlainMomentum, merge=_config)
    return [plain, find_peer("torchjd", _torchjd), find_peer("conflictfree", _conflictfree)]


def find_peer(name: str, fill: Callable[[Peer], Any]) -> Peer:
    """The package of this name, filled; with the reason if it is missing or broken."""
    peer = Peer(name)
    try:
        peer.version = metadata.version(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their own code, on first compilation
            fill(peer)
    except Exception as error:  # whatever a broken installation raises is the reason
        absent = isinstance(error, metadata.PackageNotFoundError)
        peer.missing = "not installed" if absent else f"{type(error).__name__}: {error}"
    return peer


def _conflictfree(peer: Peer) -> None:
    module = importlib.import_module("conflictfree.grad_operator")
    pcgrad, imtlg = module.PCGradOperator(), module.IMTLGOperator()
    peer.merges = {
        "ConFIG_update": _row_form(module.ConFIG_update),
        "PCGradOperator": _row_form(pcgrad.calculate_gradient),
        "IMTLGOperator": _row_form(imtlg.calculate_gradient),
    }
    momentum = importlib.import_module("conflictfree.momentum_operator")
    peer.momentum = lambda m: momentum.PseudoMomentumOperator(m).calculate_gradient


def _torchjd(peer: Peer) -> None:
    module = importlib.import_module("torchjd.aggregation")
    peer.merges = {
        "ConFIG_update": _flat_form(module.ConFIG()),
        "PCGradOperator": _flat_form(module.PCGrad()),
        "IMTLGOperator": _flat_form(module.IMTLG()),
    }
    peer.unordered = ("PCGradOperator",)


def _rows(grads: GradientsLike) -> Any:
    """What a package for vectors is given: per-parameter gradients are flattened first."""
    if isinstance(grads, Tensor) or isinstance(grads[0], Tensor):
        return grads
    return [torch.cat([tensor.reshape(-1) for tensor in row if tensor is not None]) for row in grads]


def _restored(grads: GradientsLike, vector: Tensor) -> Any:
    if isinstance(grads, Tensor) or isinstance(grads[0], Tensor) or vector.dim() != 1:
        return vector
    shapes = [tensor.shape for tensor in grads[0] if tensor is not None]
    pieces = vector.split([shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _row_form(merge: Merge) -> Merge:
    return lambda grads: _restored(grads, merge(_rows(grads)))


def _flat_form(merge: Merge) -> Merge:
    """For a function of an (m, N) tensor: what is not one tensor is stacked."""

    def of_any_form(grads: GradientsLike) -> Any:
        rows = _rows(grads)
        return _restored(grads, merge(rows if isinstance(rows, Tensor) else torch.stack(rows)))

    return of_any_form


def _gram(a: Tensor) -> Tensor:
    gram = a @ a.T
    return gram.float() if gram.dtype.itemsize == 2 else gram  # solvers know no half precision


def _config(a: Tensor) -> Tensor:
    gram = _gram(a)
    norms = gram.diagonal().sqrt()
    x = torch.linalg.solve(gram / (norms[:, None] * norms), torch.ones_like(norms))
    c = x / norms
    projected = gram @ c
    return (c * (projected.sum() / (c @ projected))).to(a.dtype) @ a


def _imtlg(a: Tensor) -> Tensor:
    gram = _gram(a)
    norms = gram.diagonal().sqrt()
    v = torch.linalg.solve(gram / (norms[:, None] * norms), torch.ones_like(norms)) / norms
    return (v / v.sum()).to(a.dtype) @ a


def _pcgrad(a: Tensor) -> Tensor:
    gram = _gram(a).tolist()  # loops over numbers are faster than over tensors of one element
    m = len(gram)
    total = [0.0] * m
    for i in range(m):
        b = [float(i == j) for j in range(m)]
        for j in range(m):
            along = sum(x * y for x, y in zip(b, gram[j], strict=True))
            if i != j and along < 0:
                b[j] -= along / gram[j][j]
        total = [x + y for x, y in zip(total, b, strict=True)]
    return torch.tensor(total, dtype=a.dtype, device=a.device) @ a


def _ppcgrad(a: Tensor) -> Tensor:
    gram = _gram(a)
    return (1 - gram.clamp(max=0).sum(0) / gram.diagonal()).to(a.dtype) @ a


_PLAIN: dict[str, Merge] = {
    "ConFIG_update": _config,
    "PCGradOperator": _pcgrad,
    "PPCGradOperator": _ppcgrad,
    "IMTLGOperator": _imtlg,
    "gram": lambda a: a @ a.T,
}
