"""What is timed: the gradients of a setting, and every operation of this package on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..backends import load
from ..grad_operator import ConFIG_update, GramOperator, IMTLGOperator, PCGradOperator, PPCGradOperator
from ..gradients import Gradients, GradientsLike
from ..methods import METHODS, RULES, Rule, make_rule
from .momentum import MOMENTUM, Steps, ours

# the public calls of the methods that are timed at every size; all others of this package: methods.py
CALLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "config": ("ConFIG_update", ConFIG_update),
    "pcgrad": ("PCGradOperator", PCGradOperator().calculate_gradient),
    "ppcgrad": ("PPCGradOperator", PPCGradOperator().calculate_gradient),
    "imtlg": ("IMTLGOperator", IMTLGOperator().calculate_gradient),
}


def timed() -> dict[str, type[Rule]]:
    """The rules of CALLS, and those that a user added to RULES, which GramOperator calls."""
    return {name: rule for name, rule in RULES.items() if name in CALLS or name not in METHODS}


def updates() -> dict[str, str]:
    """Of every operation that is an update, its method."""
    return {CALLS[name][0] if name in CALLS else rule.__name__: name for name, rule in timed().items()}


def stages() -> dict[str, str]:
    """Of every operation from G to coefficients, its method."""
    return {f"{rule.__name__} coefficients": name for name, rule in timed().items()}


def passes() -> tuple[str, ...]:
    """Operations that read the gradients; the others see G alone."""
    return ("gram", "combine", *updates(), MOMENTUM)


@dataclass(frozen=True)
class Setting:
    """One input: m gradients of n elements of a dtype, in one of the three input forms."""

    m: int
    n: int
    dtype: str = "float32"
    form: str = "vectors"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def row_bytes(self) -> int:
        return self.n * self.torch_dtype.itemsize

    def __str__(self) -> str:
        return f"m = {self.m}, N = {self.n:,}, {self.dtype}, {self.form}"


@dataclass(frozen=True)
class Inputs:
    """The gradients in the form asked for, and as flat segments of m rows each."""

    grads: GradientsLike
    segments: list[list[Tensor]]


def traffic(operation: str, setting: Setting) -> tuple[int, int] | None:
    """Bytes that an operation must read, and write: two passes for an update; None for the m x m stage.

    A step of momentum reads m momenta and one gradient and writes a momentum; then it reads m momenta and two
    vectors, and writes these two and the update. Its state is float32 at least.
    """
    m, row = setting.m, setting.row_bytes
    match operation:
        case "gram":
            return m * row, 0
        case "combine":
            return m * row, row
        case "PseudoMomentumOperator":
            state = max(row, 4 * setting.n)
            return (2 * m + 2) * state + row, 3 * state + row
        case _ if operation in updates():
            return 2 * m * row, row
    return None


def make_inputs(setting: Setting, device: torch.device) -> Inputs:
    """Gradients of which each conflicts with the first and with its neighbour, norms over two decades."""
    random = torch.Generator(device).manual_seed(setting.m)
    m, n, dtype = setting.m, setting.n, setting.torch_dtype
    matrix = torch.empty(m, n, dtype=dtype, device=device) if setting.form == "tensor" else None
    rows: list[Tensor] = []
    first = before = torch.zeros(0, device=device)
    for i in range(m):
        normal = torch.randn(n, generator=random, device=device)
        row = normal.clone()
        if i:
            row.sub_(first, alpha=0.3 + 0.4 * i / m).sub_(before, alpha=0.2)
        else:
            first = normal
        before = normal
        row = row.mul_(10 ** (2 * i / max(m - 1, 1) - 1)).to(dtype)
        rows.append(row if matrix is None else matrix[i].copy_(row))
    if setting.form != "parameters":
        return Inputs(rows if matrix is None else matrix, [rows])
    shapes = layer_shapes(n)
    sizes = [math.prod(shape) for shape in shapes]
    parameters = [
        [piece.clone().view(shape) for piece, shape in zip(row.split(sizes), shapes, strict=True)]
        for row in rows
    ]
    return Inputs(parameters, [[t.view(-1) for t in column] for column in zip(*parameters, strict=True)])


def layer_shapes(n: int) -> list[tuple[int, ...]]:
    """Parameters of eight square layers with biases, and what is left of n elements as one more vector."""
    width = (math.isqrt(1 + n // 2) - 1) // 2
    layers = [(width, width), (width,)] * 8 if width else []
    rest = n - 8 * (width * width + width)
    return [*layers, (rest,)] if rest else list(layers)


def flat(result: Any) -> Tensor:
    """An update in any form as one vector."""
    if isinstance(result, Tensor):
        return result
    return torch.cat([tensor.reshape(-1) for tensor in result if tensor is not None])


def our_calls(
    setting: Setting, inputs: Inputs, backend: str, gram: Tensor, c: Tensor
) -> dict[str, Callable[[], Any]]:
    """Every operation as a call without arguments, to be made while ``backend`` is in use.

    Args:
        setting: of the inputs.
        inputs: the gradients.
        backend: whose step from G to coefficients is called; the public calls follow ``use_backend``.
        gram: (m, m) float64, given to the m x m stage.
        c: (m,) float64, given to combine.
    """
    grads = inputs.grads
    rows = Gradients(grads)
    server = load(backend)

    def coefficients(method: str) -> Callable[[], Tensor]:
        rule = make_rule(method, setting.m, gram.device)
        return lambda: server.coefficients(gram, rule, rows)

    def update(method: str) -> Callable[[], Any]:
        if method in CALLS:
            return partial(CALLS[method][1], grads)
        return partial(GramOperator(RULES[method]()).calculate_gradient, grads)

    return {
        "gram": lambda: ops.gram(grads),
        "conflict mask": lambda: ops.conflict_mask(gram),
        **{name: coefficients(method) for name, method in stages().items()},
        "combine": lambda: ops.combine(grads, c),
        **{name: update(method) for name, method in updates().items()},
        MOMENTUM: Steps(ours, grads, flat=False),
    }
