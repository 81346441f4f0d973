"""Gradients of some of the parameters, as they are among all."""

from __future__ import annotations

from .rows import Gradients


def part_of(grads: Gradients, places: list[int]) -> Gradients:
    """Some of the parameters by themselves, spread over processes as all are."""
    group = None if grads.shards is None else grads.shards.group
    found = Gradients([[row[p] for p in places] for row in grads.rows], group=group)
    found.pairs = tuple(grads.pairs[p] for p in places) if grads.pairs else ()
    if grads.shards is not None:
        found.shards = grads.shards.part(places)
    if all(shape is None for shape in found.shapes):  # a rank without any has the cut-off of the others
        found.dtype, found.device, found.device_type = grads.dtype, grads.device, grads.device_type
    return found
