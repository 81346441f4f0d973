"""Every kernel variant once, on rows at multiples of 16 bytes and at odd addresses, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastconfig import GramOperator, backends, ops, reference, use_backend
from fastconfig.bench.accuracy import Exact
from fastconfig.bench.cases import Inputs, Setting, flat, make_inputs
from fastconfig.grad_operator import ConFIG_update, IMTLGOperator, PCGradOperator, PPCGradOperator
from fastconfig.methods import RULES, native_coefficients
from fastconfig.momentum_operator import PseudoMomentumOperator
from gpu import grouped
from gpu.points import Machine, Points
from gpu.small import heavy

DTYPES = ("float32", "bfloat16", "float64", "float16")
# every number of rows that a kernel is compiled for, and one that is rounded up to it
M = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 24, 32, 33, 48, 64)
SMALL = 8  # rows that one launch, and every block of a second one, can solve
# elements; KEPT is two vectors a thread on 132 multiprocessors, MANY more than one launch takes
ONE_CHUNK, ONE_LAUNCH, KEPT, MANY = 257, 4099, 200_003, 400_003
LAYOUTS: dict[str, Callable[[list[Tensor]], Any]] = {
    "aligned": lambda rows: rows,
    "odd": lambda rows: [torch.cat([row[:1], row])[1:] for row in rows],
    "tensor": torch.stack,
    "parameters": lambda rows: [list(row.split([100, len(row) - 100])) for row in rows],
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "ConFIG_update": ConFIG_update,
    "PCGradOperator": PCGradOperator().calculate_gradient,
    "PPCGradOperator": PPCGradOperator().calculate_gradient,
    "IMTLGOperator": IMTLGOperator().calculate_gradient,
    "gram": ops.gram,
}
HEAVY = (1, 2, 3, 4, 8, 9, 17, 33, 64)  # gradients of methods that iterate, some of which up to 4 are fused
SOLVED = 1e-8  # how far rounding of G moves what is solved for, on such rows
MOMENTUM_BOUND = {"float32": 1e-4, "bfloat16": 3e-2}  # beside a root of what is near zero


def run(points: Points, machine: Machine) -> None:
    backend = "pytorch" if machine.dry else "cuda"
    with use_backend(backend):
        for dtype in DTYPES[:2] if machine.dry else DTYPES:
            for m in (3, 9) if machine.dry else M:
                points.run(f"{dtype}, m = {m}", lambda m=m, dtype=dtype: judged(updates(m, dtype, machine)))
        for dtype in DTYPES[:2] if machine.dry else DTYPES:
            for m in (3,) if machine.dry else (2, 3, 8, 9, 24, 64) if dtype == "float32" else (3, 9):
                name = f"groups, {dtype}, m = {m}"
                points.run(name, lambda m=m, dtype=dtype: judged(grouped.updates(m, dtype, machine)))
        points.run("groups of methods that iterate", lambda: judged(grouped.iterating(machine)))
        points.run("monitor", lambda: grouped.watched(machine))
        for m in (3, 9) if machine.dry else HEAVY:
            points.run(f"methods that iterate, m = {m}", lambda m=m: judged(iterating(m, machine)))
        points.run("momentum of methods that iterate", lambda: iterating_momentum(machine))
        for dtype in MOMENTUM_BOUND:
            for m in (3, 9) if machine.dry else (2, 3, 4, 6, 8, 16, 24, 32, 33, 64):
                name = f"momentum, {dtype}, m = {m}"
                points.run(name, lambda m=m, dtype=dtype: momentum(m, dtype, machine))


def sizes(m: int, machine: Machine) -> tuple[int, ...]:
    if machine.dry:
        return (ONE_CHUNK,)
    return (ONE_CHUNK, ONE_LAUNCH, KEPT, MANY) if m <= SMALL else (ONE_CHUNK, 20_011)


def judged(found: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """The largest of errors that are given as multiples of their bounds.

    Raises:
        RuntimeError: naming those beyond.
    """
    errors = list(found)
    wrong = [f"{what}: {over:.3g} times its bound" for what, over in errors if not over <= 1]
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return {"error_over_bound": max(over for _, over in errors)}


def updates(m: int, dtype: str, machine: Machine) -> Iterator[tuple[str, float]]:
    """Errors over their bounds, of all operations and launches."""
    for n in sizes(m, machine):
        setting = Setting(m, n, dtype)
        grads: Sequence[Tensor] = make_inputs(setting, torch.device("cpu")).segments[0]
        exact = Exact(setting, Inputs(grads, [list(grads)]))
        rows = [row.to(machine.device) for row in grads]
        for layout, give in LAYOUTS.items():
            given = give(rows)
            for launches in launches_of(m, machine):
                for name in CALLS if layout in ("aligned", "odd") else ("ConFIG_update",):
                    result = flat(CALLS[name](given)).cpu()
                    over = exact.error(name, result) / exact.bound(name)
                    yield f"{name}, N = {n}, {layout}, {launches}", over


def iterating(m: int, machine: Machine) -> Iterator[tuple[str, float]]:
    """Errors over their bounds, of updates by methods that iterate: of one problem, and of a batch.

    Beside the host's compiled code on the exact Gram matrix, which tests judge by the papers' formulas.
    """
    setting = Setting(m, ONE_LAUNCH)
    grads: Sequence[Tensor] = make_inputs(setting, torch.device("cpu")).segments[0]
    exact = Exact(setting, Inputs(grads, [list(grads)]))
    rows = [row.to(machine.device) for row in grads]
    for method in heavy():
        rule = RULES[method]()
        c = native_coefficients(exact.gram, rule, setting.torch_dtype)
        wanted = sum(c_i * row.double() for c_i, row in zip(c, grads, strict=True))
        spread = (c.abs() * exact.r.norm(dim=0)).sum() / wanted.norm()
        bound = 8 * torch.finfo(setting.torch_dtype).eps * float(spread) + SOLVED
        operator = GramOperator(rule)
        batch = operator.calculate_gradient(torch.stack([torch.stack(rows)] * 3))
        found = {"a batch": batch[2]}
        for launches in launches_of(m, machine):
            found[f"vectors, {launches}"] = operator.calculate_gradient(rows)
        for form, result in found.items():
            yield f"{method}, {form}", float((result.cpu().double() - wanted).norm() / wanted.norm()) / bound


def iterating_momentum(machine: Machine) -> dict[str, Any]:
    """Two steps by each of them, of three momenta, beside the float64 recursion.

    Raises:
        RuntimeError: naming what is wrong.
    """
    found = {}
    rows = torch.stack(make_inputs(Setting(3, ONE_LAUNCH), torch.device("cpu")).segments[0])
    for method in heavy():
        operator = PseudoMomentumOperator(3, gradient_operator=GramOperator(RULES[method]()))
        exact = reference.Momentum(3, RULES[method].oracle)
        for chosen in ([0, 1, 2], [1]):
            update = operator.calculate_gradient(chosen, rows[chosen].to(machine.device)).cpu()
            wanted = exact.step(chosen, rows[chosen])
        found[method] = float((update.double() - wanted).norm() / wanted.norm())
    wrong = [f"{name}: error {error:.3g}" for name, error in found.items() if not error <= 1e-4]
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return {"relative_error": max(found.values())}


def launches_of(m: int, machine: Machine) -> Iterator[str]:
    """One launch, then two; the CUDA backend is told by its extension."""
    if machine.dry or m > SMALL:
        yield "as planned"
        return
    options = backends.load("cuda")._cuda.options
    try:
        for name, one_launch in (("one launch", True), ("two launches", False)):
            options(one_launch, True)
            yield name
    finally:
        options(True, True)


def momentum(m: int, dtype: str, machine: Machine) -> dict[str, Any]:
    """All momenta, then one, then some, beside the float64 recursion; the state is float32.

    Raises:
        RuntimeError: if the last update is wrong.
    """
    n, odd = 4099, m % 2 == 1
    operator, exact = PseudoMomentumOperator(m), reference.Momentum(m)
    setting = Setting(m, n, dtype)
    for chosen in ([*range(m)], [0], [m - 1, 0]):
        rows = torch.stack(make_inputs(setting, torch.device("cpu")).segments[0])[: len(chosen)]
        rows = rows * (1 + torch.rand(len(chosen), 1)).to(rows.dtype)
        given = [row.to(machine.device) for row in rows]
        update = operator.calculate_gradient(chosen, LAYOUTS["odd"](given) if odd else given).cpu()
        wanted = exact.step(chosen, rows)
    error = float((update.double() - wanted).norm() / wanted.norm())
    if not error <= MOMENTUM_BOUND[dtype]:
        raise RuntimeError(f"error {error:.3g}, want up to {MOMENTUM_BOUND[dtype]}")
    return {"relative_error": error}
