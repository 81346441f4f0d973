"""Gradients of several dtypes or devices: G is the sum over parts of one kind, each combined by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients import Gradients, Update
from ..methods.base import Rule
from . import choose  # which makes this one
from .base import Backend


class PartsBackend(Backend):
    """The backends that serve the parts; coefficients by the first one's."""

    def __init__(self, grads: Gradients) -> None:
        self._grads = grads
        found = [(places, grads.columns(places)) for places in grads.parts]
        self._parts: list[tuple[list[int], Gradients, Backend]] = [
            (places, part, choose(part)) for places, part in found
        ]
        self.name = "+".join(dict.fromkeys(backend.name for _, _, backend in self._parts))

    def unsupported(self, grads: Gradients) -> str | None:
        return None  # each part has been asked

    @torch.no_grad()
    def gram(self, grads: Gradients) -> Tensor:
        if grads is not self._grads:  # some of the parameters, of a sum over processes
            return choose(grads).gram(grads)
        total: Tensor | None = None
        for _, part, backend in self._parts:
            gram = backend.gram(part)
            if total is not None and gram.is_meta != total.is_meta:
                raise ValueError("grads: got tensors on meta and on other devices, want all on meta or none")
            total = gram if total is None else total + gram.to(total.device)
        assert total is not None
        return total

    def coefficients(
        self, gram: Tensor, rule: Rule, grads: Gradients, losses: Tensor | None = None
    ) -> Tensor:
        return self._parts[0][2].coefficients(gram, rule, grads, losses)

    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        assert isinstance(out, list)
        for places, part, backend in self._parts:
            backend.combine(part, c.to(part.device), [out[p] for p in places])
