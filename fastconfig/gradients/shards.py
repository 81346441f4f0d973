"""Gradients of which every process holds a part: where the parts lie, and the sums over processes.

A DTensor says it itself; tensors without such knowledge are given with ``process_group=``: they are this
rank's part of every gradient, and the parts of all ranks together are the gradient.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

_NO_PICKLE = (
    "process_group: got a group of this process, which another one cannot take over, want state_dict() to be "
    "saved, or a copy made with process_group=None"
)
#: the process groups whose members hold different parts of a tensor
Groups: TypeAlias = "tuple[ProcessGroup, ...]"


class Grouped:
    """What may hold a process group: a copy keeps the very group, and cannot be pickled with it.

    Attributes:
        process_group: ranks of which each gives its part of every gradient; None where a process has them as
            a whole, and for DTensors, which say it themselves.
    """

    process_group: ProcessGroup | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if self.process_group is None:
            return reduced
        make, arguments, state, *rest = reduced
        return _with_group, (_Held(self.process_group), make, arguments), state, *rest


class _Held:
    """A process group among what is copied."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held:
        memo[id(self.group)] = self.group  # also where the state of what is copied has it
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(_NO_PICKLE)


def _with_group(held: _Held, make: Any, arguments: Any) -> Any:
    return make(*arguments)


@dataclass(frozen=True)
class Place:
    """Where the parts of a DTensor lie: all that makes one of this rank's part.

    Attributes:
        batched: whether it is (B, N), so that parts along the first dimension are problems of their own.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]
    batched: bool = False

    @classmethod
    def of(cls, tensor: DTensor) -> Place:
        return cls(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())

    def like(self, other: Place) -> bool:
        """Whether both are cut in the same way."""
        return (self.mesh, self.placements, self.shape) == (other.mesh, other.placements, other.shape)

    def groups(self) -> Groups:
        """Of every dimension of the mesh that the tensor is cut along; replicas are counted once."""
        return tuple(
            self.mesh.get_group(dimension)
            for dimension, placement in enumerate(self.placements)
            if not (placement.is_replicate() or (self.batched and placement.is_shard(0)))
        )

    def wrapped(self, local: Tensor) -> Tensor:
        """A DTensor of this rank's part; a view."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(local, self.mesh, self.placements, shape=self.shape, stride=self.stride)


@dataclass(frozen=True)
class Shards:
    """How gradients are spread: by a group, or by the place of every parameter (of the only tensor).

    Attributes:
        group: whose ranks hold the parts, of gradients that don't say so themselves.
        places: of DTensors; None for a parameter without gradient.
    """

    group: ProcessGroup | None = None
    places: tuple[Place | None, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Shards:
        return self  # nothing of it ever changes, and a copied mesh would be another one

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.group is not None:
            raise TypeError(_NO_PICKLE)
        return super().__reduce_ex__(protocol)

    def columns(self, present: Sequence[bool]) -> dict[Groups, list[int]]:
        """Which parameters, of those present, are summed over which groups."""
        if self.group is not None:
            return {(self.group,): [p for p, there in enumerate(present) if there]}
        found: dict[Groups, list[int]] = {}
        for p, place in enumerate(self.places):
            if place is not None and present[p]:
                found.setdefault(place.groups(), []).append(p)
        return found

    def part(self, places: list[int]) -> Shards:
        """How some of the parameters are spread."""
        return Shards(self.group, tuple(self.places[p] for p in places) if self.places else ())

    def replica_groups(self) -> list[ProcessGroup]:
        """Of every dimension of the mesh that has most of them; none of one with a single dimension."""
        mesh = max(
            (place.mesh for place in self.places if place is not None), key=lambda m: m.ndim, default=None
        )
        return [] if mesh is None or mesh.ndim == 1 else mesh.get_all_groups()

    def all_groups(self) -> list[ProcessGroup]:
        """Whose ranks take part, and may each have losses of their own: of every dimension of the mesh."""
        if self.group is not None:
            return [self.group]
        place = next((place for place in self.places if place is not None), None)
        if place is None or place.batched:  # whose problems have losses of their own
            return [] if place is None else [*place.groups()]
        return self.replica_groups() or [place.mesh.get_group()]

    @torch.no_grad()
    def wrapped(self, update: Any) -> Any:
        """A result, or a list of a tensor a parameter, as the gradients came: DTensors where they were."""
        if not self.places:
            return update
        if isinstance(update, Tensor):
            return self.wrapped([update])[0]
        pairs = zip(update, self.places, strict=True)
        return [None if piece is None or place is None else place.wrapped(piece) for piece, place in pairs]

    @property
    def rank(self) -> tuple[int, int] | None:
        """Whose parts these are: the rank in the group and its size; None where the tensors say it."""
        if self.group is None:
            return None
        import torch.distributed as dist

        return dist.get_rank(self.group), dist.get_world_size(self.group)

    def joined(self, other: Shards) -> Shards:
        """With the places that only the other knows.

        Raises:
            ValueError: if one has a group and the other has not, or a parameter is cut in another way.
        """
        if self.group is not other.group:
            raise ValueError("grads: got gradients over another process group than before, want the state's")
        if len(self.places) != len(other.places):
            raise ValueError(
                f"grads: got {len(other.places)} parameters, want {len(self.places)}, the state's"
            )
        pairs = list(zip(self.places, other.places, strict=True))
        for p, (mine, theirs) in enumerate(pairs):
            if mine is not None and theirs is not None and not mine.like(theirs):
                raise ValueError(
                    f"grads: got {theirs.placements} of {tuple(theirs.shape)} for parameter {p}, "
                    f"want {mine.placements} of {tuple(mine.shape)}, the state's"
                )
        return Shards(self.group, tuple(mine or theirs for mine, theirs in pairs))

    @property
    def device(self) -> torch.device:
        """Where sums of a rank without any gradient are made."""
        import torch.distributed as dist

        if "nccl" in dist.get_backend(self.group):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def joined_shards(known: Shards | None, coming: Shards | None) -> Shards | None:
    """What is known of a state's shards after gradients that came.

    Raises:
        ValueError: if they do not fit.
    """
    if known is None or coming is None:
        if known is not coming:
            got, wanted = ("parts", "whole ones") if known is None else ("whole ones", "parts")
            raise ValueError(
                f"grads: got {got} of what is spread over processes, want {wanted}, as the state has"
            )
        return None
    return known.joined(coming)


@torch.no_grad()
def local_state(row: Sequence[Any]) -> tuple[list[Any], Shards | None]:
    """This rank's parts of a row of a state, and how they lie; None where they say nothing of it."""
    places = tuple(Place.of(tensor) if is_dtensor(tensor) else None for tensor in row)
    if not any(places):
        return list(row), None
    pairs = zip(row, places, strict=True)
    return [tensor if place is None else local_part(tensor) for tensor, place in pairs], Shards(places=places)


def is_dtensor(value: object) -> bool:
    """Whether it is a DTensor; without importing them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_fsdp1(module: object) -> bool:
    """Whether a module is a FullyShardedDataParallel."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def any_dtensor(rows: Any) -> bool:
    """Whether a tensor, a sequence of tensors, or a sequence of such, has DTensors in it."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    if isinstance(rows, Tensor):
        return is_dtensor(rows)
    return any(any_dtensor(row) for row in rows if isinstance(row, (Tensor, list, tuple)))


def has_fsdp2() -> bool:
    """Whether this process has ever sharded a module by FSDP2."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and bool(module.FSDPModule.__subclasses__())


def is_whole_copy(parameter: Tensor) -> bool:
    """Whether FSDP2 has made it for the passes between two gatherings."""
    if not has_fsdp2():
        return False
    names = ("_unsharded_param", "unsharded_param")
    holders = [vars(value) if hasattr(value, "__dict__") else value for value in gc.get_referrers(parameter)]
    return any(value.get(name) is parameter for value in holders if isinstance(value, dict) for name in names)


def reshard(model: torch.nn.Module) -> None:
    """Let FSDP2's modules show their sharded parameters.

    Between forward and backward pass the root's ``parameters()`` are whole, plain copies by default, whose
    gradients are this rank's own.
    """
    if not has_fsdp2():
        return
    kind = sys.modules["torch.distributed.fsdp"].FSDPModule
    for part in model.modules():
        if isinstance(part, kind):
            part.reshard()


def local_part(tensor: DTensor) -> Tensor:
    """This rank's part, without a graph; within ``no_grad``, which spares two thirds of the time."""
    local: Any = tensor.to_local()
    return local.wait() if hasattr(local, "wait") else local.detach()  # it may be still under way


@torch.no_grad()
def local_tensor(grads: DTensor, argument: str) -> tuple[Tensor, Shards]:
    """This rank's part of (m, N) or (B, m, N), and how the update (N,) or (B, N) lies.

    Raises:
        ValueError: for one that is cut between gradients, or a partial sum.
    """
    from torch.distributed.tensor import Shard

    _check_whole_sums(grads, argument)
    rows = grads.dim() - 2
    placements: list[Placement] = []
    for placement in grads.placements:
        if isinstance(placement, Shard) and placement.dim % grads.dim() == rows:
            raise ValueError(
                f"{argument}: got {grads.placements}, the m gradients on different ranks; "
                f"want their elements cut, Shard({rows + 1})"
            )
        if isinstance(placement, Shard) and placement.dim % grads.dim() > rows:
            placement = Shard(rows)
        placements.append(placement)
    shape = torch.Size([*grads.shape[:rows], grads.shape[-1]])
    stride = (grads.shape[-1], 1)[-len(shape) :]
    place = Place(grads.device_mesh, tuple(placements), shape, stride, batched=rows == 1)
    return local_part(grads), Shards(places=(place,))


@torch.no_grad()
def local_rows(rows: Sequence[Any], names: Sequence[str]) -> tuple[list[Any], Shards]:
    """This rank's parts of m vectors, or of m sequences of per-parameter tensors, and how they lie.

    Raises:
        ValueError: where some are DTensors and others not, gradients are cut in different ways, or one is a
            partial sum.
    """
    if isinstance(rows[0], Tensor):
        place = _place_of(list(zip(names, rows, strict=True)))
        return [local_part(row) for row in rows], Shards(places=(place,))
    places = tuple(
        _place_of([(f"{names[i]}[{p}]", tensor) for i, tensor in enumerate(column) if tensor is not None])
        for p, column in enumerate(zip(*rows, strict=True))
    )
    local = [tuple(None if tensor is None else local_part(tensor) for tensor in row) for row in rows]
    return local, Shards(places=places)


def _place_of(column: list[tuple[str, Any]]) -> Place | None:
    """The one place of a parameter's gradients."""
    first: Place | None = None
    for name, tensor in column:
        if not is_dtensor(tensor):
            raise ValueError(
                f"{name}: got a {type(tensor).__name__} beside DTensors, want a DTensor too: one that "
                "all ranks have alike is DTensor.from_local(grad, mesh, [Replicate()])"
            )
        _check_whole_sums(tensor, name)
        place = Place.of(tensor)
        first = first or place
        if not place.like(first):
            raise ValueError(
                f"{name}: got {place.placements} of {tuple(place.shape)}, want {first.placements} of "
                f"{tuple(first.shape)} like {column[0][0]}: call .redistribute() first"
            )
    return first


def _check_whole_sums(tensor: DTensor, name: str) -> None:
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError(
            f"{name}: got {tuple(tensor.placements)}, a sum that is not finished; want it reduced: call "
            ".redistribute() to Shard or Replicate placements first"
        )


def in_order(signatures: Iterable[Groups]) -> list[ProcessGroup]:
    """Every group once, in one order on all ranks."""
    return list(dict.fromkeys(group for groups in signatures for group in groups))
