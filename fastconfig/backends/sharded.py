"""Gradients spread over processes: G is a sum over their parts, and each rank combines its own part."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients import Gradients, Update
from ..gradients.shards import Groups, in_order
from ..methods.base import Rule
from ..momentum.step import Step
from ..numbers import float64_device
from ..ranks.collectives import agreed, summed
from . import choose  # which makes these
from .base import Backend


@torch.no_grad()
def grams_of(parts: list[Gradients]) -> list[Tensor]:
    """The Gram matrices of several gradients that are spread over processes, on all of them.

    In one all-reduce, where all are summed over one and the same process group.
    """
    backends = [choose(part) for part in parts]
    over = {groups for part in parts for groups in _columns(part)}
    together = next(iter(over)) if len(over) == 1 else ()
    if len(together) != 1 or any(part.shards is not None and part.shards.replica_groups() for part in parts):
        return [backend.gram(part) for backend, part in zip(backends, parts, strict=True)]
    own = [backend.own_gram(part) for backend, part in zip(backends, parts, strict=True)]  # type: ignore[attr-defined]
    grams = torch.stack([gram.to(own[0].device) for gram in own])
    summed(grams, together[0], "the Gram matrices")
    return [total.to(gram.device) for total, gram in zip(grams, own, strict=True)]


def _columns(grads: Gradients) -> dict[Groups, list[int]]:
    """Which parameters are summed over which process groups."""
    assert grads.shards is not None
    present = [shape is not None for shape in grads.shapes] if grads.form == "parameters" else [True]
    return grads.shards.columns(present)


class ShardedBackend(Backend):
    """Another backend on each rank's part, with one all-reduce of m x m float64 numbers a process group.

    All ranks have the same bits of G then, and so of the coefficients; on a mesh of several dimensions by a
    broadcast of G along the others.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name

    def unsupported(self, grads: Gradients) -> str | None:
        return self._backend.unsupported(grads)

    @torch.no_grad()
    def gram(self, grads: Gradients) -> Tensor:
        assert grads.shards is not None
        grams = self._grams(grads)
        order = in_order(grams)
        for group in order:
            parts = [gram for groups, gram in grams.items() if group in groups]
            if len(parts) == 1:
                summed(parts[0], group, "the Gram matrix")
                continue
            together = torch.stack(parts)  # one collective a group
            summed(together, group, "the Gram matrices")
            for part, total in zip(parts, together, strict=True):
                part.copy_(total)
        gram = torch.stack(list(grams.values())).sum(0) if len(grams) > 1 else next(iter(grams.values()))
        # other groups may have added up in another order: replicas must not drift apart
        alike = order[-1:] if len(grams) == 1 else []
        for group in grads.shards.replica_groups():
            if group not in alike:
                agreed(gram, group, "the Gram matrix")
        return gram

    def _grams(self, grads: Gradients) -> dict[Groups, Tensor]:
        """This rank's parts of the Gram matrix, by the groups that they are summed over."""
        columns = _columns(grads)
        if len(columns) == 1:
            return {groups: self.own_gram(grads) for groups in columns}
        return {groups: self.own_gram(grads.columns(places)) for groups, places in columns.items()}

    def own_gram(self, grads: Gradients) -> Tensor:
        """This rank's part of the Gram matrix."""
        if grads.n:
            return self._backend.gram(grads)
        work = float64_device(grads.device)
        return torch.zeros(*grads.batch_shape, grads.m, grads.m, dtype=torch.float64, device=work)

    def coefficients(
        self, gram: Tensor, rule: Rule, grads: Gradients, losses: Tensor | None = None
    ) -> Tensor:
        return self._backend.coefficients(gram, rule, grads, losses)

    def combine(self, grads: Gradients, c: Tensor, out: Update) -> None:
        if grads.n:
            self._backend.combine(grads, c, out)

    def accumulate(self, step: Step) -> None:
        if step.momenta.n:
            self._backend.accumulate(step)
        else:
            super().accumulate(step)

    def rescale(self, step: Step, merged: Update, out: Update) -> None:
        if step.momenta.n:
            self._backend.rescale(step, merged, out)
