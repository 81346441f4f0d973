"""Gradients that are spread over processes: where the parts lie, and over which groups sums run.

DTensors know it. For plain tensors ``process_group=`` says it: each rank has a part of every gradient, and
all parts together are the gradient.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..showing import Shown

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


class Grouped(Shown):
    """Base of objects that may hold a process group: copies share it, and cannot be pickled with it.

    Attributes:
        process_group: ranks that each have a part of every gradient; None if a process has whole gradients,
            and for DTensors.
    """

    process_group: ProcessGroup | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if self.process_group is None:
            return reduced
        make, arguments, state, *rest = reduced
        return _with_group, (_Held(self.process_group), make, arguments), state, *rest


class _Held:
    """A process group inside an object that is being copied."""

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
    """Mesh, placements and shape of a DTensor: all that is needed to rebuild one from this rank's part.

    Attributes:
        batched: whether it is (B, N), so that parts along the first dimension are separate problems.
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
        """Whether both are sharded in the same way."""
        return (self.mesh, self.placements, self.shape) == (other.mesh, other.placements, other.shape)

    def groups(self) -> Groups:
        """The groups of all mesh dimensions along which the tensor is sharded; replicas count once."""
        return tuple(
            self.mesh.get_group(dimension)
            for dimension, placement in enumerate(self.placements)
            if not (placement.is_replicate() or (self.batched and placement.is_shard(0)))
        )

    def wrapped(self, local: Tensor) -> Tensor:
        """This rank's part as a DTensor; a view."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(local, self.mesh, self.placements, shape=self.shape, stride=self.stride)


@dataclass(frozen=True)
class Shards:
    """How gradients are spread over processes: a group, or a place for every parameter.

    Attributes:
        group: the ranks that hold the parts of plain tensors.
        places: the places of DTensors; None for a parameter without gradient.
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
        """The parameters (of those present) by the groups that they are summed over."""
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
        """The groups of all dimensions of the mesh with the most dimensions; none if that has only one."""
        mesh = max(
            (place.mesh for place in self.places if place is not None), key=lambda m: m.ndim, default=None
        )
        return [] if mesh is None or mesh.ndim == 1 else mesh.get_all_groups()

    def all_groups(self) -> list[ProcessGroup]:
        """The groups of all mesh dimensions: their ranks may each have losses of their own."""
        if self.group is not None:
            return [self.group]
        place = next((place for place in self.places if place is not None), None)
        if place is None or place.batched:  # whose problems have losses of their own
            return [] if place is None else [*place.groups()]
        return self.replica_groups() or [place.mesh.get_group()]

    @torch.no_grad()
    def wrapped(self, update: Any) -> Any:
        """A result with DTensors where the gradients were DTensors."""
        if not self.places:
            return update
        if isinstance(update, Tensor):
            return self.wrapped([update])[0]
        pairs = zip(update, self.places, strict=True)
        return [None if piece is None or place is None else place.wrapped(piece) for piece, place in pairs]

    @property
    def rank(self) -> tuple[int, int] | None:
        """(rank, size) in the group; None for DTensors."""
        if self.group is None:
            return None
        import torch.distributed as dist

        return dist.get_rank(self.group), dist.get_world_size(self.group)

    def joined(self, other: Shards) -> Shards:
        """These shards with the places that only the other one knows.

        Raises:
            ValueError: if only one has a group, or a parameter is sharded in two ways.
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
        """The device for the sums of a rank without any gradient."""
        import torch.distributed as dist

        if "nccl" in dist.get_backend(self.group):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")


def joined_shards(known: Shards | None, coming: Shards | None) -> Shards | None:
    """A state's shards, completed by those of new gradients.

    Raises:
        ValueError: if they do not fit each other.
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
    """This rank's parts of a row of a state, and their shards; None for plain tensors."""
    places = tuple(Place.of(tensor) if is_dtensor(tensor) else None for tensor in row)
    if not any(places):
        return list(row), None
    pairs = zip(row, places, strict=True)
    return [tensor if place is None else local_part(tensor) for tensor, place in pairs], Shards(places=places)


def is_dtensor(value: object) -> bool:
    """Whether it is a DTensor; imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_fsdp1(module: object) -> bool:
    """Whether a module is a FullyShardedDataParallel."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def any_dtensor(rows: Any) -> bool:
    """Whether there is a DTensor in a tensor, a sequence of tensors, or a sequence of such."""
    if "torch.distributed.tensor" not in sys.modules:
        return False
    if isinstance(rows, Tensor):
        return is_dtensor(rows)
    return any(any_dtensor(row) for row in rows if isinstance(row, (Tensor, list, tuple)))


def has_fsdp2() -> bool:
    """Whether this process has ever called FSDP2's ``fully_shard``."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and bool(module.FSDPModule.__subclasses__())


def is_whole_copy(parameter: Tensor) -> bool:
    """Whether it is a whole, temporary copy that FSDP2 has made of a parameter."""
    if not has_fsdp2():
        return False
    names = ("_unsharded_param", "unsharded_param")
    holders = [vars(value) if hasattr(value, "__dict__") else value for value in gc.get_referrers(parameter)]
    return any(value.get(name) is parameter for value in holders if isinstance(value, dict) for name in names)


def reshard(model: torch.nn.Module) -> None:
    """Make FSDP2's modules expose their sharded parameters again.

    Between forward and backward pass the root's ``parameters()`` are whole, plain copies by default, and the
    gradients of these belong to this rank alone.
    """
    if not has_fsdp2():
        return
    kind = sys.modules["torch.distributed.fsdp"].FSDPModule
    for part in model.modules():
        if isinstance(part, kind):
            part.reshard()


def local_part(tensor: DTensor) -> Tensor:
    """This rank's part, without a graph; ``no_grad`` saves two thirds of the time."""
    local: Any = tensor.to_local()
    return local.wait() if hasattr(local, "wait") else local.detach()  # it may be still under way


@torch.no_grad()
def local_tensor(grads: DTensor, argument: str) -> tuple[Tensor, Shards]:
    """This rank's part of (m, N) or (B, m, N), and the shards of the update (N,) or (B, N).

    Raises:
        ValueError: if it is sharded along the gradients, or a partial sum.
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
    """This rank's parts of m vectors or m sequences of per-parameter tensors, and their shards.

    Raises:
        ValueError: if only some are DTensors, gradients are sharded in different ways, or one is a partial
            sum.
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
    """The common place of a parameter's gradients."""
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
    """Every group once, in the same order on all ranks."""
    return list(dict.fromkeys(group for groups in signatures for group in groups))
