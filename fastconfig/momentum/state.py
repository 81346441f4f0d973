"""The state of the momentum operators; all input checks.

A row is a list of tensors, one for each parameter, or one vector. All tensors of a parameter share one dense
memory order, that of its first gradient. A row has None for a parameter that its loss has never reached; it
counts as zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..gradients import Gradients, Update
from ..gradients.memory_order import flat_view, in_order_of, like_in, zeros_in_order
from ..gradients.part import part_of
from ..gradients.shards import Shards, joined_shards, local_state
from .clock import Clock
from .step import Plain, Step

if TYPE_CHECKING:
    from ..methods.groups import Group


class Momenta:
    """m momenta of N elements, and further vectors of that length.

    Args:
        m: number of gradients.
        dtype: float32 or float64; None takes the first gradients', float32 for half precision.
        clock: counts the gradients.
        names: names of the further vectors.

    Attributes:
        form: "vector" or "parameters", that of the first gradient; None before it.
        rows: m rows of one tensor for each parameter.
        others: the further vectors by name, one tensor for each parameter.
        shards: how the gradients are spread over processes; the rows are this rank's parts.
        pairs: which parameters are pairs of real numbers, of complex gradients.
    """

    def __init__(self, m: int, dtype: torch.dtype | None, clock: Clock, names: Sequence[str]) -> None:
        self.m = m
        self.dtype = self._wanted = dtype
        self.clock = clock
        self.form: str | None = None
        self.device = torch.device("cpu")
        self.shards: Shards | None = None
        self.pairs: tuple[bool, ...] = ()
        self.rows: list[list[Tensor | None]] = [[] for _ in range(m)]
        self.others: dict[str, list[Tensor | None]] = {name: [] for name in names}
        self._to_move = True  # the next gradient says to which device
        self._gram: Tensor | None = None
        self._lent: list[int] | None = None  # where tensors lie that others have as well; None if nobody has
        self._forget()

    def step(self, grads: list[list[Tensor | None]], chosen: Sequence[int], dtype: torch.dtype) -> Step:
        """The step for the gradients of :meth:`take`; for operators with "second" and "fake"."""
        if self._lent is not None:
            self._look_where_they_lie()
        # the caller changes the momenta, and must provide their new products
        known, self._gram = self._gram, None
        second, fake = self.flat("second"), self.flat("fake")
        return Step(self.gradients, second, fake, tuple(chosen), grads, dtype, self.clock, self.kept, known)

    @property
    def plain(self) -> Plain | None:
        """The state for one compiled call: complete, plain vectors, counted by the host; else None."""
        if self._vectors is None or self._gram is None or self.shards is not None or self.pairs:
            return None
        return self._vectors, self._gram, self.clock

    def keep(self, step: Step) -> None:
        """Keep what the next step can reuse."""
        self._gram = step.gram

    def _forget(self) -> None:
        """Drop what was derived from the tensors, because some are new."""
        #: a tensor of every parameter, for its shape and memory order; None where none is known
        self.columns = next(iter(self.others.values()))
        self._gradients: Gradients | None = None
        self._flat: dict[str, list[Tensor]] = {}
        self._length = -1  # of plain vectors that are known to fit
        self._vectors: list[Any] | None = None  # these, all of the state
        self.kept: dict[str, Any] = {}  # by backends, as long as all tensors stay where they are

    def _look_where_they_lie(self) -> None:
        """Notice tensors whose memory has moved: sending one to another process moves it to shared memory."""
        rows = (*self.rows, *self.others.values())
        now = [tensor.data_ptr() for row in rows for tensor in row if tensor is not None]
        if now != self._lent:
            self._lent, self.kept = now, {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to these tensors only, since a copy has others."""
        self._lent = []
        gone: dict[str, Any] = {"_gradients": None, "_flat": {}, "_length": -1, "_vectors": None}
        return vars(self) | gone | {"kept": {}, "_lent": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        rows = (*self.rows, *self.others.values())
        for row in rows:  # of another process, which goes on with it: no two may write the same memory
            row[:] = [_own(tensor) for tensor in row]
        self._gram = None if self._gram is None else _own(self._gram.cpu())
        self._forget()
        # read onto another device: the next gradient says which, as after load_state_dict
        self._to_move |= any(t is not None and t.device != self.device for row in rows for t in row)

    def check(self, grads: Gradients) -> None:
        """Check that gradients fit the state; nothing is changed.

        Raises:
            ValueError: if they do not.
        """
        if self.form is not None and not self._is_settled(grads):
            self._check(grads, *_form_and_shapes(grads))
            self._with(grads.shards)

    def take(self, grads: Gradients, chosen: Sequence[int]) -> list[list[Tensor | None]]:
        """Make room for gradients that fit, and count them; returns the k flat gradients of each segment."""
        if self._is_settled(grads):
            self.clock.tick(chosen)
            return [[row.detach() for row in grads.rows]]  # type: ignore[union-attr]
        given = self._ready_for(grads, list(grads.rows), chosen)
        self.clock.tick(chosen)
        if grads.form == "vectors" and grads.plain and all(row[0] is not None for row in self.rows):
            self._length = grads.n
            if self.clock.on_host:
                self._vectors = [row[0] for row in (*self.rows, *self.others.values())]
        columns = zip(given, self.columns, strict=True)
        return [
            [_flat(row, column, len(given) == 1) for row in tensors]
            for tensors, column in columns
            if column is not None
        ]

    def allocate(self, like: Gradients) -> None:
        """Allocate all momenta in the form of a gradient that fits, as zeros."""
        self._ready_for(like, list(like.rows) * self.m, range(self.m))

    def _ready_for(self, grads: Gradients, rows: list[Any], chosen: Sequence[int]) -> list[Sequence[Any]]:
        """Allocate missing tensors of rows in the form of ``grads``, parameter by parameter."""
        form, shapes = _form_and_shapes(grads)
        if self.form is None:
            self._begin(form, len(shapes))
        self.shards = self._with(grads.shards)
        if grads.pairs:
            known = self.pairs or (False,) * len(grads.pairs)
            self.pairs = tuple(a or b for a, b in zip(known, grads.pairs, strict=True))
        if self._to_move:
            self._move(grads.device)
        given: list[Sequence[Any]] = list(zip(*rows, strict=True)) if form == "parameters" else [rows]
        for p, (shape, tensors) in enumerate(zip(shapes, given, strict=True)):
            if shape is not None:
                if self.dtype is None:
                    self.dtype = torch.promote_types(grads.dtype, torch.float32)
                self._make_room(p, tensors, chosen)
        return given

    def _with(self, shards: Shards | None) -> Shards | None:
        """The known shards, completed by those of new gradients."""
        if self.shards is shards or (self._to_move and self.shards is None):
            return shards
        return joined_shards(self.shards, shards)

    def _is_settled(self, grads: Gradients) -> bool:
        """Whether the state is complete, and these are plain vectors like earlier ones."""
        known = grads.n == self._length and grads.form == "vectors" and grads.plain
        known = known and grads.shards is None and self.shards is None
        return known and grads.device == self.device and not self._to_move

    def _check(self, grads: Gradients, form: str, shapes: Sequence[torch.Size | None]) -> None:
        if form != self.form:
            forms = {"vector": "flat vectors", "parameters": "sequences of per-parameter tensors"}
            raise ValueError(f"grads: got {forms[form]}, want {forms[str(self.form)]} as before")
        if grads.device != self.device and not self._to_move:
            raise ValueError(f"grads: got device {grads.device}, want {self.device}, the state's")
        if len(shapes) != len(self.columns):
            raise ValueError(f"grads: got {len(shapes)} parameters, want {len(self.columns)}, the state's")
        for p, (shape, column) in enumerate(zip(shapes, self.columns, strict=True)):
            if shape is not None and column is not None and shape != column.shape:
                what = "" if form == "vector" else f" for parameter {p}"
                raise ValueError(
                    f"grads: got shape {tuple(shape)}{what}, want {tuple(column.shape)}, the state's"
                )

    def _begin(self, form: str, parameters: int) -> None:
        self.form = form
        self.rows = [[None] * parameters for _ in range(self.m)]
        self.others = {name: [None] * parameters for name in self.others}
        self._forget()

    def _move(self, device: torch.device) -> None:
        """Move a new or loaded state to the gradients' device, in its own dtype."""
        self._to_move = False
        self.device = device
        rows = (*self.rows, *self.others.values())
        if any(tensor is not None and tensor.dtype is not self.dtype for row in rows for tensor in row):
            self._gram = None
        for row in rows:
            row[:] = [None if tensor is None else tensor.to(device, self.dtype) for tensor in row]
        self.clock.move(device)
        self._forget()

    def _make_room(self, p: int, given: Sequence[Tensor | None], chosen: Sequence[int]) -> None:
        missing = [row for row in self.others.values() if row[p] is None]
        missing += [
            self.rows[i]
            for i, tensor in zip(chosen, given, strict=True)
            if tensor is not None and self.rows[i][p] is None
        ]
        if self.form == "vector" and self.rows[0][p] is None:
            missing += [row for i, row in enumerate(self.rows) if i not in chosen]
        if not missing:
            return
        like = self.columns[p]
        if like is None:
            like = next(tensor for tensor in given if tensor is not None)
        for row in missing:
            if row[p] is None:
                row[p] = zeros_in_order(like, self.dtype)
        self._forget()

    @property
    def gradients(self) -> Gradients:
        """The momenta as m gradients."""
        if self._gradients is None:
            self._gradients = self.as_gradients(self.rows)
        return self._gradients

    def as_gradients(self, rows: Sequence[list[Tensor | None]]) -> Gradients:
        """Rows of one tensor for each parameter, as gradients in the state's form."""
        listed: Any = rows if self.form == "parameters" else [row[0] for row in rows]
        found = Gradients(listed, group=None if self.shards is None else self.shards.group)
        found.shards, found.pairs = self.shards, self.pairs
        return found

    def parts(
        self, groups: Iterable[Group], grads: Gradients | None = None
    ) -> Iterator[tuple[Group, Gradients, list[int]]]:
        """Each group with its momenta, or its part of ``grads``, and the numbers of their segments."""
        grads = self.gradients if grads is None else grads
        present = [p for p, column in enumerate(self.columns) if column is not None]
        segments = {p: s for s, p in enumerate(present)}
        for group in groups:
            mine = [segments[p] for p in group.places if p in segments]
            if mine:
                yield group, part_of(grads, group.places), mine

    def flat(self, name: str) -> list[Tensor]:
        """A further vector as flat tensors, one for each segment."""
        if name not in self._flat:
            self._flat[name] = [flat_view(tensor) for tensor in self.others[name] if tensor is not None]
        return self._flat[name]

    def flat_row(self, i: int) -> list[Tensor | None]:
        """A momentum as flat tensors, one for each segment."""
        known = [tensor for tensor, like in zip(self.rows[i], self.columns, strict=True) if like is not None]
        return [None if tensor is None else flat_view(tensor) for tensor in known]

    def new_update(self, dtype: torch.dtype, *, zeros: bool = False) -> Update:
        """A result in the form of the gradients: uninitialised, or zeros."""
        update = [None if column is None else like_in(column, dtype) for column in self.columns]
        if zeros:
            for tensor in update:
                if tensor is not None:
                    tensor.zero_()
        if self.form == "parameters":
            return update
        assert update[0] is not None
        return update[0]

    def ordered(self, update: Update) -> Update:
        """An update in the memory order of the state; copied only if its own differs."""
        if isinstance(update, Tensor):
            return update.contiguous()
        pairs = zip(update, self.columns, strict=True)
        return [
            None if piece is None or column is None else in_order_of(piece, column) for piece, column in pairs
        ]

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, numbers and the state's own tensors. Waits for the device."""
        self.clock.read()
        self._lent = []
        shards = self.shards or Shards()
        return {
            "form": self.form,
            "counts": list(self.clock.counts),
            "updates": self.clock.updates,
            "momenta": [shards.wrapped(list(row)) for row in self.rows],
            "gram": self._gram,
            "rank": shards.rank,
            "pairs": list(self.pairs),
            **{name: shards.wrapped(list(row)) for name, row in self.others.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state that :meth:`check_state` has accepted."""
        # integers of its own: tensors would be counted up in place
        self.clock.counts, self.clock.updates = [int(n) for n in state["counts"]], int(state["updates"])
        self.clock.set_steps(None)
        self.form = state["form"]
        self.rows = [_copies(local_state(row)[0]) for row in state["momenta"]]
        self.others = {name: _copies(local_state(state[name])[0]) for name in self.others}
        found = local_state(state[next(iter(self.others))])[1]
        self.shards = self.shards if found is None else found
        self.pairs = tuple(state.get("pairs", ()))
        gram = state.get("gram")
        self._gram = None if gram is None else gram.detach().cpu().clone()
        self._to_move = True
        self._forget()
        loaded = next((tensor.dtype for tensor in self.columns if tensor is not None), None)
        self.dtype = self._wanted
        if self.dtype is None and loaded is not None:
            self.dtype = torch.promote_types(loaded, torch.float32)

    def check_state(self, state: dict[str, Any], shards: Shards | None) -> None:
        """Check that a state fits, for gradients spread by ``shards``; nothing is changed.

        Raises:
            ValueError: if it does not.
        """
        names = ("form", "counts", "updates", "momenta", *self.others)
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"state: got no {', '.join(missing)}, want what state_dict() of this class gave")
        for name in ("counts", "momenta"):
            if len(state[name]) != self.m:
                raise ValueError(f"state: got {len(state[name])} {name}, want {self.m}: num_vectors")
        rank = None if shards is None else shards.rank
        if state.get("rank") != rank and state["form"] is not None:
            raise ValueError(
                f"state: got that of (rank, ranks) {state.get('rank')}, want {rank}: without DTensors a rank "
                "can go on from its own only"
            )
        rows = {name: local_state(state[name])[0] for name in self.others}
        gram = state.get("gram")
        if gram is not None and (gram.shape != (self.m, self.m) or gram.dtype is not torch.float64):
            got = f"{tuple(gram.shape)} {gram.dtype}"
            raise ValueError(f"state: got {got} for gram, want {(self.m, self.m)} torch.float64")
        shapes = _shapes(next(iter(rows.values())))
        rows |= {f"momenta[{i}]": local_state(row)[0] for i, row in enumerate(state["momenta"])}
        for name, row in rows.items():
            if not _fit(_shapes(row), shapes):
                raise ValueError(f"state: got shapes {_shapes(row)} for {name}, want {shapes}")
            dtype = next((t.dtype for t in row if t is not None and not t.is_floating_point()), None)
            if dtype is not None:
                raise ValueError(f"state: got {dtype} for {name}, want torch.float32 or torch.float64")
        wanted = _shapes(self.columns)
        if self.form is not None and state["form"] is not None:
            if state["form"] != self.form:
                raise ValueError(f"state: got form {state['form']!r}, want {self.form!r}")
            if not _fit(shapes, wanted):
                raise ValueError(f"state: got shapes {shapes}, want {wanted}")


_Shapes: TypeAlias = list[tuple[int, ...] | None]


def _form_and_shapes(grads: Gradients) -> tuple[str, list[torch.Size | None]]:
    if grads.form == "parameters":
        return "parameters", grads.shapes
    return "vector", [torch.Size([grads.n])]


def _shapes(row: Sequence[Tensor | None]) -> _Shapes:
    return [None if tensor is None else tuple(tensor.shape) for tensor in row]


def _fit(shapes: _Shapes, wanted: _Shapes) -> bool:
    """Whether both are the same, where both are known."""
    return len(shapes) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(shapes, wanted, strict=True)
    )


def _own(tensor: Tensor | None) -> Tensor | None:
    """A tensor, copied if other processes may have the same memory; a GPU's cannot be asked."""
    shared = tensor is not None and tensor.device.type == "cpu" and tensor.is_shared()
    return tensor.clone() if tensor is not None and shared else tensor


def _copies(row: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.detach().clone() for tensor in row]


def _flat(tensor: Tensor | None, column: Tensor, alone: bool) -> Tensor | None:
    """A gradient as a flat tensor in the memory order of the state; of any step if a vector is ``alone``."""
    if tensor is None:
        return None
    if tensor.dim() == 1:
        return tensor.detach() if alone else tensor.detach().contiguous()
    return flat_view(in_order_of(tensor, column))
