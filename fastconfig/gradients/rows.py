"""The gradients of a call: m rows seen as flat segments, without a copy; all input checks."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..numbers import DTYPES, cutoff
from .checks import check_dense, check_no_group, dense, kind_of, names_of, refuse, refuse_mixed
from .memory_order import flat_view, new_like_all, new_tensor, new_tensors, one_memory_order
from .pairs import as_complex, as_real, real_rows
from .results import KEPT_FROM, ON_CPU
from .shards import Shards, any_dtensor, local_rows, local_tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

try:
    from .._C import attach, describe
    from .._C import scan as scan

    attach(torch.Tensor.__dlpack_c_exchange_api__)
except (ImportError, AttributeError):  # not built, or torch before 2.10: the checks below do the same, slower
    describe = scan = lambda *_: None

TYPES = (Tensor, torch.nn.Parameter)
_CPU = torch.device("cpu")
_ONE_PART: list[list[int]] = []
_SMALL = KEPT_FROM // 8  # elements that are below KEPT_FROM in any dtype
ParameterRow: TypeAlias = Sequence[Tensor | None]
GradientsLike: TypeAlias = Tensor | Sequence[Tensor] | Sequence[ParameterRow]
#: One vector (N,), a batch of them (B, N), or one tensor a parameter (None where no row had a gradient).
Update: TypeAlias = Tensor | list[Tensor | None]
#: m flat rows of one length (None is zeros), or one tensor (..., m, n) of them.
Segment: TypeAlias = Tensor | list[Tensor] | list[Tensor | None]


class Gradients:
    """m gradients of N elements each, in one of three forms.

    1. ``tensor``: one tensor (m, N), or (B, m, N) for B independent problems, any strides;
    2. ``vectors``: a sequence of m tensors (N,), any stride;
    3. ``parameters``: a sequence of m sequences of tensors, one a parameter, any shape; None is a missing
       gradient and counts as zeros.

    Attributes:
        form: "tensor", "vectors" or "parameters".
        m: number of gradients.
        n: elements of one gradient.
        batch: B, or None where there is no batch dimension.
        dtype, device: those of every tensor in it.
        device_type: ``device.type``.
        rows: the input, as one tensor or as a list; of DTensors this rank's parts.
        pairs: which tensors were complex, and are pairs of real numbers here.
        parts: parameters by dtype and device, if there are several; ``dtype`` is then the one with the
            largest rank cut-off, ``device`` the first one. Empty otherwise.
        shards: how the gradients are spread over processes; None if this process has all of them. All other
            attributes describe this rank's parts.
        plain: whether all tensors are contiguous, on the CPU or a CUDA device, and of torch's own types.
    """

    __slots__ = (
        "_segments",
        "batch",
        "device",
        "device_type",
        "dtype",
        "form",
        "m",
        "n",
        "pairs",
        "parts",
        "plain",
        "rows",
        "shapes",
        "shards",
    )

    n: int
    rows: Tensor | list[Tensor] | list[ParameterRow]
    shapes: list[torch.Size | None]
    batch: int | None
    pairs: tuple[bool, ...]
    parts: list[list[int]]

    def __init__(
        self,
        grads: GradientsLike,
        argument: str | Sequence[str] = "grads",
        group: ProcessGroup | None = None,
    ) -> None:
        """Check and describe ``grads``.

        Args:
            grads: in one of the three forms.
            argument: its name in error messages; or one name for each gradient.
            group: ranks that each have a part of every gradient; DTensors need none.

        Raises:
            TypeError: if one is no tensor, not dense, or of another dtype; the message names it.
            ValueError: for an empty input, or shapes or devices that do not fit each other.
        """
        self._segments: list[Segment] | None = None
        self.plain = False
        self.pairs, self.parts = (), _ONE_PART
        self.shards = None if group is None else Shards(group)
        if isinstance(grads, Tensor):
            self._from_tensor(grads, argument)
        else:
            self._from_sequence(grads, argument)

    def _from_sequence(self, grads: Any, argument: str | Sequence[str]) -> None:
        try:
            rows = list(grads)  # ours, also below: the caller's may change while a kernel reads
        except TypeError:
            refuse(str(argument), f"a {type(grads).__name__}", "a tensor or a sequence of gradients")
        self.batch = None
        self.m = len(rows)
        if rows and isinstance(rows[0], list):
            rows = [tuple(row) if isinstance(row, list) else row for row in rows]
        found = scan(rows, TYPES)
        if found is None and any_dtensor(rows):
            check_no_group(self.shards, argument)
            rows, self.shards = local_rows(rows, names_of(argument, len(rows)))
            found = scan(rows, TYPES)
        if found is not None:
            kind, self.n, shapes, index = found
            self.rows, self.plain = rows, True
            self._found(kind, index)
            if shapes is None:
                self.form = "vectors"
            else:
                self.form, self.shapes = "parameters", shapes
            return
        if self.m == 0:
            raise ValueError(f"{argument}: got no gradient (m = 0), want at least one")
        names = names_of(argument, self.m)
        rows, self.pairs = real_rows([dense(row) for row in rows])
        if isinstance(rows[0], Tensor):
            self._from_vectors(rows, names)
        else:
            self._from_parameters(rows, names)
        self.device_type = self.device.type

    def _found(self, kind: int, index: int) -> None:
        """Properties of all tensors, from the compiled checks."""
        self.dtype = DTYPES[kind]
        if index < 0:
            self.device, self.device_type = _CPU, "cpu"
        else:
            self.device, self.device_type = _cuda(index), "cuda"

    def _from_tensor(self, grads: Tensor, argument: str | Sequence[str]) -> None:
        found = describe(grads, TYPES)
        if found is None and any_dtensor(grads) and grads.dim() in (2, 3):
            check_no_group(self.shards, argument)
            grads, self.shards = local_tensor(grads, str(argument))  # type: ignore[arg-type]
            found = describe(grads, TYPES)
        if found is not None:
            kind, batch, self.m, self.n, index = found
            self.form, self.rows, self.batch = "tensor", grads, None if batch < 0 else batch
            self._found(kind, index)
            return
        shape = grads.shape
        if len(shape) not in (2, 3):
            raise ValueError(f"{argument}: got shape {tuple(shape)}, want (m, N) or (B, m, N)")
        if shape[-2] == 0:
            raise ValueError(f"{argument}: got shape {tuple(shape)} (m = 0), want at least one gradient")
        if grads.is_complex():
            grads, self.pairs = as_real(grads).flatten(-2), (True,)
        check_dense(grads, str(argument))
        self.form, self.rows = "tensor", grads.resolve_neg()  # kernels read memory, not flags
        self.batch = shape[0] if len(shape) == 3 else None
        self.m, self.n = grads.shape[-2:]
        self.dtype, self.device = grads.dtype, grads.device
        self.device_type = self.device.type

    def _from_vectors(self, grads: list[Any], names: Sequence[str]) -> None:
        first = grads[0]
        shape = first.shape
        if len(shape) != 1:
            raise ValueError(f"{names[0]}: got shape {tuple(shape)}, want a vector (N,)")
        check_dense(first, names[0])
        dtype, device = first.dtype, first.device
        for name, row in zip(names, grads, strict=True):
            if not isinstance(row, Tensor):
                refuse(name, kind_of(row), "a tensor (N,) like the others")
            if row.shape != shape:
                raise ValueError(f"{name}: got shape {tuple(row.shape)}, want {tuple(shape)} like {names[0]}")
            if row.dtype is not dtype or row.device != device or row.layout is not torch.strided:
                refuse_mixed(row, first, name, names[0])
        self.form, self.rows = "vectors", [row.resolve_neg() for row in grads]
        self.n = shape[0]
        self.dtype, self.device = dtype, device

    def _from_parameters(self, grads: list[Any], names: Sequence[str]) -> None:
        for i, (name, row) in enumerate(zip(names, grads, strict=True)):
            if not isinstance(row, Sequence) or isinstance(row, str):
                wanted = (
                    "a sequence of tensors, one a parameter" if i else "a tensor or a sequence of tensors"
                )
                refuse(name, kind_of(row), wanted)
            if len(row) != len(grads[0]):
                raise ValueError(f"{name}: got {len(row)} parameters, want {len(grads[0])} like {names[0]}")
        first: Tensor | None = None
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        self.shapes = []
        for p, column in enumerate(zip(*grads, strict=True)):
            like: Tensor | None = None
            for i, tensor in enumerate(column):
                if tensor is None:
                    continue
                name = f"{names[i]}[{p}]"
                if not isinstance(tensor, Tensor):
                    refuse(name, kind_of(tensor), "a tensor or None")
                if like is None:
                    check_dense(tensor, name)
                    like, like_name = tensor, name
                if tensor.shape != like.shape:
                    raise ValueError(
                        f"{name}: got shape {tuple(tensor.shape)}, want {tuple(like.shape)} like parameter "
                        f"{p} of the other gradients"
                    )
                if (tensor.dtype, tensor.device, tensor.layout) != (like.dtype, like.device, torch.strided):
                    refuse_mixed(tensor, like, name, like_name)
            self.shapes.append(None if like is None else like.shape)
            if like is not None:
                first = like if first is None else first
                kinds.setdefault((like.dtype, like.device), []).append(p)
        if first is None and (self.shards is None or self.shards.group is None):
            raise ValueError(
                f"{names[0]} and all others: got None for every parameter, want at least one tensor"
            )
        rows: list[ParameterRow] = [[None if t is None else t.resolve_neg() for t in row] for row in grads]
        self.form, self.rows = "parameters", rows
        self.n = sum(shape.numel() for shape in self.shapes if shape is not None)
        if first is not None:
            self.dtype, self.device = max((dtype for dtype, _ in kinds), key=cutoff), first.device
            self.parts = list(kinds.values()) if len(kinds) > 1 else _ONE_PART
        else:  # this rank has nothing, and takes part in the sums over all
            assert self.shards is not None
            self.dtype, self.device = torch.float32, self.shards.device

    @property
    def segments(self) -> list[Segment]:
        """The columns as flat pieces, in the order of :meth:`split`'s pieces.

        A parameter whose gradients share one dense memory order is seen in that order; only where they
        differ (one channels-last, one not), or have gaps, is a parameter's tensor copied.
        """
        if self._segments is None:
            if self.form == "parameters":
                self._segments = [_flat(column) for column in self._columns()]
            else:
                self._segments = [self.rows]  # type: ignore[list-item]
        return self._segments

    def _columns(self) -> Iterator[list[Tensor | None]]:
        """The m tensors of every parameter that has any."""
        for p, shape in enumerate(self.shapes):
            if shape is not None:
                yield [row[p] for row in self.rows]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(B,), or () where there is no batch dimension."""
        return () if self.batch is None else (self.batch,)

    @property
    def problems(self) -> int:
        """B, or 1 where there is no batch dimension."""
        return 1 if self.batch is None else self.batch

    def new_update(self, *, apart: bool = False) -> Update:
        """An uninitialised result in the form, dtype and device of the gradients.

        Args:
            apart: whether the tensors of parameters must not share memory; else those of a small result do.
        """
        if self.form != "parameters":
            if self.device_type == "cpu" and self.plain and self.n < _SMALL:
                return ON_CPU[self.dtype].new_empty(self.n)
            return new_tensor((*self.batch_shape, self.n), self.dtype, self.device)
        if self.plain:
            like = next(tensor for row in self.rows for tensor in row if tensor is not None)
            return new_tensors(like, self.shapes, apart=apart)
        columns = self._columns()
        return [None if shape is None else new_like_all(next(columns)) for shape in self.shapes]

    def split(self, update: Update) -> list[Tensor]:
        """``update`` as flat views, one for each segment: (n_s,), or (B, N) for a batch."""
        if isinstance(update, Tensor):
            return [update]
        return [flat_view(tensor) for tensor in update if tensor is not None]

    def stacked(self) -> Tensor:
        """One tensor (m, N) or (B, m, N), for models written for conflictfree; a copy if given otherwise.

        Raises:
            TypeError: if this process has only parts of the gradients.
        """
        self.check_whole()
        self.check_one_kind("an operator or model of your own that must see them as one tensor")
        if isinstance(self.rows, Tensor):
            return self.rows.detach()
        if self.form == "vectors":
            return torch.stack([row.detach() for row in self.rows])  # type: ignore[union-attr]
        flat = torch.zeros(self.m, self.n, dtype=self.dtype, device=self.device)
        start = 0
        for column in self._columns():
            size = next(t for t in column if t is not None).numel()
            for row, tensor in zip(flat, column, strict=True):
                if tensor is not None:
                    row[start : start + size] = tensor.detach().reshape(-1)
            start += size
        return flat

    def check_whole(self) -> None:
        """Check that this process has whole gradients.

        Raises:
            TypeError: if it has only parts.
        """
        if self.shards is not None:
            raise TypeError(
                "grads: got gradients spread over processes, and an operator or model of your own that "
                "must see them as a whole; want one of this package's"
            )

    def check_one_kind(self, who: str) -> None:
        """Check that all tensors have one dtype and device.

        Raises:
            TypeError: if they do not.
        """
        if self.parts:
            tensors = [next(t for t in column if t is not None) for column in self._columns()]
            found = dict.fromkeys(f"{str(t.dtype).removeprefix('torch.')} on {t.device}" for t in tensors)
            raise TypeError(f"grads: got {' and '.join(found)} for {who}; want one dtype and device")

    def in_one_dtype(self) -> Gradients:
        """These gradients, or copies in the widest dtype if dtypes differ.

        Raises:
            TypeError: if they are on several devices.
        """
        if not self.parts:
            return self
        tensors = [next(t for t in column if t is not None) for column in self._columns()]
        dtype = functools.reduce(torch.promote_types, [t.dtype for t in tensors])
        rows = [[None if t is None else t.to(dtype) for t in row] for row in self.rows]
        found = Gradients(rows)
        found.pairs, found.shards = self.pairs, self.shards
        found.check_one_kind("an operator with a state")
        return found

    def as_given(self, update: Update) -> Update:
        """An update with complex tensors and DTensors where the gradients had them."""
        if self.pairs:
            update = as_complex(update, self.pairs)
        return update if self.shards is None else self.shards.wrapped(update)

    @property
    def given_rows(self) -> Any:
        """:attr:`rows` as given: complex tensors and DTensors where there were some."""
        if self.shards is None and not self.pairs:
            return self.rows
        return [self.as_given(row) for row in self.rows]  # type: ignore[arg-type]

    def columns(self, places: list[int]) -> Gradients:
        """The gradients of some of the parameters, as this process has them."""
        return Gradients([[row[p] for p in places] for row in self.rows])

    def restored(self, vector: Tensor) -> Update:
        """A vector in the order of :meth:`stacked`'s columns, back in the form of the gradients."""
        if self.form != "parameters":
            return vector
        sizes = [shape.numel() for shape in self.shapes if shape is not None]
        pieces = iter(vector.split(sizes))
        return [None if shape is None else next(pieces).view(shape) for shape in self.shapes]


def _flat(column: list[Tensor | None]) -> list[Tensor | None]:
    if one_memory_order(column):
        return [None if tensor is None else flat_view(tensor) for tensor in column]
    # a row with steps of its own, too: kernels take these where a gradient is one tensor
    return [None if tensor is None else tensor.detach().reshape(-1).contiguous() for tensor in column]


@cache
def _cuda(index: int) -> torch.device:
    return torch.device("cuda", index)
