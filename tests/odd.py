"""Gradients of any form, shape, memory, dtype and device, right or wrong, for tests that draw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fastconfig import BackendUnavailable, reference
from fastconfig.numbers import DTYPES, cutoff

COMPLEX = (torch.complex64, torch.complex128)
NAMED = (TypeError, ValueError, BackendUnavailable)
LENGTHS = (0, 1, 2, 3, 7, 16, 33, 130, 1031)
SHAPES = ((), (1,), (7,), (3, 5), (0,), (2, 3, 4), (40,), (1100,))
COUNTS = (1, 2, 3, 4, 5, 9, 17)


class Subclass(Tensor):
    """A user's."""


#: views of a fresh tensor with other memory behind them; values may be others, the shape is the same
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda t: t,
    "odd address": lambda t: torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[-t.numel() :].view(t.shape),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() else t,
    "expanded": lambda t: t[:1].expand(t.shape) if t.dim() else t,
    "negative": lambda t: torch.complex(t, t).conj().imag if t.dtype in DTYPES[:2] else t,
    "conjugate": lambda t: t.conj(),
    "parameter": lambda t: torch.nn.Parameter(t),
    "in a graph": lambda t: t.clone().requires_grad_() * 1,
    "subclass": lambda t: t.as_subclass(Subclass),
}


def new(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Normal numbers, in memory of some kind."""
    if layout == "inference":
        with torch.inference_mode():
            return torch.randn(shape).to(dtype)
    return LAYOUTS[layout](torch.randn(shape, dtype=torch.complex64 if dtype.is_complex else None).to(dtype))


@dataclass
class Given:
    """Gradients in one of the forms, what they say in float64, and whose rank decisions count."""

    grads: Any
    rows: Tensor  # (B, m, N)
    dtypes: list[torch.dtype]

    @property
    def rcond(self) -> float:
        return max(map(cutoff, self.dtypes))

    def flat(self, update: Any) -> Tensor:
        """An update in the form of the gradients as (B, N)."""
        if isinstance(update, Tensor):
            return real(update).reshape(len(self.rows), self.rows.shape[2])
        return torch.cat([real(t).reshape(-1) for t in update if t is not None])[None]


def real(tensor: Tensor) -> Tensor:
    """A copy in float64 on its own memory; pairs where it is complex."""
    tensor = tensor.detach().clone().as_subclass(Tensor).resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor).reshape(*tensor.shape[:-1], -1 if tensor.numel() else 0)
    return tensor.double()


layouts = st.sampled_from([*LAYOUTS, "inference"])
dtypes = st.sampled_from([*DTYPES, *DTYPES, *COMPLEX])


@st.composite
def gradients(draw: st.DrawFn) -> Given:
    """Some that are served, with zero, repeated and opposed ones among them."""
    torch.manual_seed(draw(st.integers(0, 1 << 30)))
    form = draw(st.sampled_from(["tensor", "batch", "vectors", "parameters"]))
    m, n, dtype = draw(st.sampled_from(COUNTS)), draw(st.sampled_from(LENGTHS)), draw(dtypes)
    if form == "tensor":
        grads = new((m, n), dtype, draw(layouts))
        return Given(grads, real(grads)[None], [as_real_dtype(dtype)])
    if form == "batch":
        least = 1 if dtype.is_complex else 0  # a batch of no complex ones is not served
        grads = new((draw(st.integers(least, 3)), m, n), dtype, draw(layouts))
        return Given(grads, real(grads), [as_real_dtype(dtype)])
    if form == "vectors":
        grads = [new((n,), dtype, draw(layouts)) for _ in range(m)]
        for i in range(1, m):
            match draw(st.sampled_from(["own"] * 5 + ["same", "zeros", "opposed"])):
                case "same":
                    grads[i] = grads[i - 1]
                case "zeros":
                    grads[i] = torch.zeros_like(grads[i])
                case "opposed":
                    grads[i] = -2 * grads[i - 1].detach()
        kind = draw(st.sampled_from([list, tuple]))
        return Given(kind(grads), torch.stack([real(row) for row in grads])[None], [as_real_dtype(dtype)])
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    of = [draw(dtypes) for _ in shapes] if draw(st.booleans()) else [dtype] * len(shapes)
    grid = [
        [
            None if draw(st.integers(0, 5)) == 0 else new(shape, kind, draw(layouts))
            for shape, kind in zip(shapes, of, strict=True)
        ]
        for _ in range(m)
    ]
    if all(t is None for t in grid[0]):
        grid[0][0] = new(shapes[0], of[0], "plain")
    had = [any(row[p] is not None for row in grid) for p in range(len(shapes))]
    rows = torch.stack(
        [
            torch.cat(
                [
                    real(torch.zeros(shape, dtype=kind) if t is None else t).reshape(-1)
                    for t, shape, kind, there in zip(row, shapes, of, had, strict=True)
                    if there
                ]
            )
            for row in grid
        ]
    )
    used = [as_real_dtype(kind) for kind, there in zip(of, had, strict=True) if there]
    return Given(grid, rows[None], used)


def as_real_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of the parts of a complex number."""
    return torch.empty(0, dtype=dtype).real.dtype if dtype.is_complex else dtype


#: what no gradient, loss or vector is
JUNK: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "number": lambda: 3.0,
    "text": lambda: "gradient",
    "array": lambda: np.ones(3),
    "empty list": list,
    "numbers": lambda: [1.0, 2.0],
    "nested": lambda: [[[torch.ones(3)]]],
    "iterator": lambda: iter([torch.ones(3)]),
    "generator": lambda: (torch.ones(3) for _ in range(2)),
    "dict": lambda: {0: torch.ones(3)},
    "set": lambda: {1, 2},
    "scalar": lambda: torch.ones(()),
    "matrix": lambda: torch.ones(2, 3),
    "four dimensions": lambda: torch.ones(1, 2, 3, 4),
    "no rows": lambda: torch.ones(0, 3),
    "integers": lambda: torch.ones(3, dtype=torch.int64),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "half complex": lambda: torch.ones(3, dtype=torch.complex64).to(torch.complex32),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(3, device="meta"),
    "meta matrix": lambda: torch.ones(2, 3, device="meta"),
    "sparse": lambda: torch.ones(3).to_sparse(),
    "sparse matrix": lambda: torch.ones(2, 3).to_sparse_csr(),
    "nan": lambda: torch.full((3,), torch.nan),
    "infinite": lambda: torch.full((3,), -torch.inf),
    "long": lambda: torch.ones(100),
    "module": lambda: torch.nn.Linear(2, 2),
    "class": lambda: Tensor,
}
junk = st.sampled_from([*JUNK]).map(lambda name: JUNK[name]())


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """Gradients with something in them, or instead of them, that should not be there."""
    given, other = draw(gradients()).grads, draw(junk)
    if isinstance(given, Tensor) or draw(st.integers(0, 3)) == 0:
        forms = [other, [other], [other, other], [[other]], [[other, None], [None, other]]]
        return draw(st.sampled_from(forms))
    rows = [list(row) if isinstance(row, list) else row for row in given]
    i = draw(st.integers(0, len(rows) - 1))
    if isinstance(rows[i], list) and draw(st.booleans()):
        rows[i][draw(st.integers(0, len(rows[i]) - 1))] = other
    else:
        rows[i] = other
    return rows


def outcome(call: Callable[[], Any], errors: tuple[type[Exception], ...] = NAMED) -> Any:
    """What it returns, or the error that it raises if that is one of these; others go on."""
    try:
        return call()
    except errors as error:
        return error


def judge(given: Given, method: str, update: Any) -> None:
    """Compare with the paper's formula where the answer does not hang on the last bits of the input."""
    formulas: dict[str, Callable[[Tensor], Tensor]] = {
        "config": lambda rows: reference.config(rows, rcond=given.rcond),
        "imtlg": lambda rows: reference.imtlg(rows, rcond=given.rcond),
        "pcgrad": reference.pcgrad,
        "ppcgrad": reference.ppcgrad,
    }
    eps = max(torch.finfo(dtype).eps for dtype in given.dtypes)
    for rows, result in zip(given.rows, given.flat(update), strict=True):
        assert result.shape == rows.shape[1:]
        assert torch.isfinite(result).all()
        norms = rows.norm(dim=1)
        units = rows[norms > 0] / norms[norms > 0, None]
        values = torch.linalg.svdvals(units) ** 2 if units.numel() else torch.ones(1)
        kept = values[values > given.rcond * values.max()]
        if ((values > given.rcond / 1e2) & (values < 1e5 * given.rcond)).any() or kept.min() < 1e-4:
            continue  # a rank that rounding decides, or coefficients that it moves
        exact, size = formulas[method](rows), norms.sum()
        if exact.norm() > 100 * size:
            continue  # IMTL-G without a solution nearby
        # each coefficient |c_i| |g_i| is at most |exact| / kept, and its terms are rounded to the dtype
        reach = 8 * eps * len(rows) * max(float(exact.norm() / kept.min()), float(size))
        assert (result - exact).norm() <= reach + 1e-7 * size, (method, result, exact)
