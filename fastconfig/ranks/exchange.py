"""Average the gradients of DistributedDataParallel's ranks, merge them in parts, gather the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from ..gradients import Gradients, Update
from ..gradients.checks import dense
from ..gradients.memory_order import new_tensor
from ..gradients.pairs import as_real, real_numel, to_complex
from ..gradients.shards import Place, Shards
from .collectives import Pending, begin_any, gather_parts, scatter_sum, summed


class _Flat:
    """All parameters of one dtype and device as one vector; every rank has a part of it.

    Attributes:
        places: indexes of these parameters in the exchange.
        parameters: the parameters.
        n: real numbers in the vector.
        step: elements of a part, the last ones' padded.
    """

    def __init__(self, places: list[int], parameters: list[Tensor], group: ProcessGroup) -> None:
        self.places, self.parameters = places, parameters
        self.dtype, self.device = _kind(parameters[0])
        self._sizes = [real_numel(par) for par in parameters]
        self._ranks = dist.get_world_size(group)
        self.n = sum(self._sizes)
        self.step = -(-self.n // self._ranks)
        self.begin = dist.get_rank(group) * self.step
        self.count = max(0, min(self.step, self.n - self.begin))
        self.place = Place(_mesh(group, self.device.type), (Shard(0),), torch.Size([self.n]), (1,))

    def empty(self, elements: int) -> Tensor:
        return new_tensor((elements,), self.dtype, self.device)

    def whole(self) -> Tensor:
        return self.empty(self.step * self._ranks)

    def filled(self, row: Sequence[Tensor | None]) -> Tensor:
        """A loss's gradients divided by the number of ranks, so that half precision can hold their sum."""
        flat = self.whole()
        begin = 0
        for p, size in zip(self.places, self._sizes, strict=True):
            target = flat[begin : begin + size]
            begin += size
            gradient = row[p]
            if gradient is None:
                target.zero_()
            else:
                real = as_real(dense(gradient).detach())
                torch.mul(real, 1 / self._ranks, out=target.view(real.shape))
        flat[begin:].zero_()
        return flat

    def own_pieces(self, part: Tensor) -> list[tuple[int, Tensor]]:
        """What of each parameter this rank's part has, flat; without those that lie in others' parts."""
        found = []
        begin = -self.begin
        for p, size in zip(self.places, self._sizes, strict=True):
            first, last = max(begin, 0), min(begin + size, self.count)
            if first < last:
                found.append((p, part[first:last]))
            begin += size
        return found

    def pieces(self, flat: Tensor) -> list[tuple[int, Tensor]]:
        """Views in the shapes of the parameters, with their indexes."""
        pieces = zip(self.places, self.parameters, flat[: self.n].split(self._sizes), strict=True)
        return [(p, _shaped(piece, par)) for p, par, piece in pieces]


class Exchange:
    """Averages gradients over the ranks: each rank gets its part of every loss's flat vector.

    Args:
        parameters: the parameters of the gradients.
        group: the ranks.

    Attributes:
        parameters: as given.
        everywhere: after :meth:`merged`: which parameters have a gradient from every loss, on some rank.
    """

    def __init__(self, parameters: list[Tensor], group: ProcessGroup) -> None:
        self.parameters, self._group = parameters, group
        kinds: dict[Any, list[int]] = {}
        for p, par in enumerate(parameters):
            kinds.setdefault(_kind(par), []).append(p)
        self._flats = [_Flat(places, [parameters[p] for p in places], group) for places in kinds.values()]
        self._rows: list[list[Tensor]] = []
        self._connected: list[Tensor] = []
        self._pending: list[Pending] = []  # the last loss's
        self.everywhere: list[bool] = []

    def like(self) -> Any:
        """An uninitialised gradient in the form that operators get here: DTensors."""
        return self._given([flat.place.wrapped(flat.empty(flat.count)) for flat in self._flats])

    def _given(self, parts: list[Any]) -> Any:
        return parts[0] if len(parts) == 1 else parts

    def send(self, row: Sequence[Tensor | None], name: str) -> None:
        """Start to average one loss's gradients."""
        self._wait()  # one flat gradient at a time
        self._connected.append(_flags(row))
        parts = []
        for flat in self._flats:
            part = flat.empty(flat.step)
            parts.append(part[: flat.count])
            self._pending.append(scatter_sum(part, flat.filled(row), self._group, f"the gradient of {name}"))
        self._rows.append(parts)

    def _wait(self) -> None:
        for pending in self._pending:
            pending.wait()
        self._pending.clear()

    def averages(self) -> Gradients:
        """This rank's parts of the averaged gradients of all losses."""
        self._wait()
        rows = Gradients([self._given(parts) for parts in self._rows])
        rows.shards = Shards(places=tuple(flat.place for flat in self._flats))
        return rows

    def _by_parameter(self, parts: list[Tensor]) -> list[Tensor | None]:
        """Parts of the flat vectors, one piece for each parameter; None where this rank has none."""
        found: list[Tensor | None] = [None] * len(self.parameters)
        for flat, part in zip(self._flats, parts, strict=True):
            for p, piece in flat.own_pieces(part):
                found[p] = piece
        return found

    def merged(
        self, merge: Callable[[Gradients, Update], Update], by_parameter: bool = False
    ) -> list[Tensor | None]:
        """The update in the parameters' shapes, on all ranks; None where no rank had a gradient.

        Args:
            merge: gives the update of this rank's parts of the gradients, if it can in the memory given.
            by_parameter: whether it is given pieces of parameters instead, and always writes to that memory.
        """
        connected = torch.stack(self._connected)
        somewhere = connected.to(self.parameters[0].device, copy=True)
        flags = begin_any(somewhere, self._group, "which parameters have a gradient")
        self._wait()
        wholes = [flat.whole() for flat in self._flats]
        pairs = list(zip(self._flats, wholes, strict=True))
        mine = [whole[flat.begin : flat.begin + flat.count] for flat, whole in pairs]
        if by_parameter:
            rows = Gradients([self._by_parameter(parts) for parts in self._rows], group=self._group)
            merge(rows, self._by_parameter(mine))
        else:
            update: Any = merge(self.averages(), self._given(mine))
            for part, target in zip(update if isinstance(update, list) else [update], mine, strict=True):
                if part.to_local().data_ptr() != target.data_ptr():  # a momentum operator has its own
                    target.copy_(part.to_local())
        found: list[Tensor | None] = [None] * len(self.parameters)
        for flat, whole in pairs:
            whole[flat.begin + flat.count : flat.begin + flat.step].zero_()
            gather_parts(whole, self._group, "the update")
        flags.wait()
        # a rank that has them all need not wait for the device to tell
        known = (connected if connected.all() else somewhere).bool().cpu()
        self.everywhere = known.all(0).tolist()
        anywhere = known.any(0).tolist()
        for flat, whole in pairs:
            for p, piece in flat.pieces(whole):
                found[p] = piece if anywhere[p] else None
        return found

    def averaged(self, row: Sequence[Tensor | None], name: str) -> list[Tensor | None]:
        """One gradient for each parameter, averaged, on all ranks; None where no rank has one."""
        somewhere = _flags(row).to(self.parameters[0].device)
        flags = begin_any(somewhere, self._group, "which parameters have a gradient")
        found: list[Tensor | None] = [None] * len(self.parameters)
        wholes = [flat.filled(row) for flat in self._flats]
        for whole in wholes:
            summed(whole, self._group, f"the gradient of {name}")
        flags.wait()
        anywhere = somewhere.tolist()
        for flat, whole in zip(self._flats, wholes, strict=True):
            for p, piece in flat.pieces(whole):
                found[p] = piece if anywhere[p] else None
        return found


def united(found: list[list[Tensor]], parameters: list[Tensor], group: ProcessGroup) -> list[list[Tensor]]:
    """Unite lists of parameters over the ranks: each list gets what any rank has found."""
    ids = [{id(par) for par in some} for some in found]
    owned = [[id(par) in some for par in parameters] for some in ids]
    flags = torch.tensor(owned, dtype=torch.uint8, device="cpu")
    anywhere = flags.to(parameters[0].device)
    begin_any(anywhere, group, "which parameters are whose").wait()
    return [[par for par, there in zip(parameters, row, strict=True) if there] for row in anywhere.tolist()]


def _shaped(piece: Tensor, par: Tensor) -> Tensor:
    if par.is_complex():
        return to_complex(piece.view(*par.shape, 2))
    return piece.view(par.shape)


def _flags(row: Sequence[Tensor | None]) -> Tensor:
    return torch.tensor([gradient is not None for gradient in row], dtype=torch.uint8, device="cpu")


def _kind(par: Tensor) -> tuple[torch.dtype, torch.device]:
    return as_real(par.detach()).dtype, par.device


@lru_cache(maxsize=16)
def _mesh(group: ProcessGroup, device_type: str) -> DeviceMesh:
    return DeviceMesh.from_group(group, device_type)
