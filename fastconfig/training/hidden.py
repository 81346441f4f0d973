"""Find parameters that ``torch.autograd.grad`` misses, because a function runs a backward pass of its own.

Reentrant checkpointing does that, and so does any torch.autograd.Function that calls ``backward`` within its
backward method.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .graphs import behind, leaves_of, nodes_of

#: for each parameter its .grad and the version of that
State: TypeAlias = list[tuple[Tensor | None, int]]

REENTRANT = "want torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
_DEPTH = 12  # how deep attributes and containers are searched for a parameter
_MOST = 50_000  # how many objects are searched, the nearest first
_ATOMS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)
_seen: dict[int, weakref.ref[Tensor]] = {}  # parameters whose first graph was searched, by id


def state_of(parameters: Sequence[Tensor]) -> State:
    """The ``.grad`` and their versions: what a hidden backward pass would change."""
    grads = [par.grad for par in parameters]
    return [(g, -1 if g is None or g.is_inference() else g._version) for g in grads]


def check_hidden(
    rows: Sequence[Sequence[bool | None]], losses: Sequence[Tensor], parameters: list[Tensor], state: State
) -> None:
    """Check that no function in the graphs hides a parameter.

    Looks where a parameter has no gradient, and in the first graph that each parameter is seen in.

    Args:
        rows: for each loss, which parameters have no gradient; None for one that does not matter.
        losses: where the passes began.
        parameters: whose gradients were wanted.
        state: :func:`state_of` them before the passes.

    Raises:
        ValueError: if a function hides a parameter, whose gradient would silently be missing.
    """
    known = _seen.get(id(parameters[0]))
    first = known is None or known() is not parameters[0]
    if not first and not any(True in row for row in rows):
        return
    for i, (row, loss) in enumerate(zip(rows, losses, strict=True)):
        if first or True in row:
            functions = [node for node in nodes_of([loss]) if isinstance(node, BackwardCFunction)]
            if functions:
                columns = zip(parameters, *rows, strict=True)
                nowhere = [par for par, *absent in columns if True in absent and False not in absent]
                _check(functions, f"losses[{i}]", parameters, nowhere, state)
    if first:
        key = id(parameters[0])
        _seen[key] = weakref.ref(parameters[0], lambda _: _seen.pop(key, None))


def _check(
    functions: list[Any], name: str, parameters: list[Tensor], nowhere: list[Tensor], state: State
) -> None:
    pairs = zip(parameters, state, state_of(parameters), strict=True)
    written = [par for par, (old, version), now in pairs if now[0] is not old or now[1] != version]
    if written:
        for par, (grad, _) in zip(parameters, state, strict=True):
            par.grad = grad  # what was added to an existing .grad stays
        _refuse(name, written[0], functions[0])
    for function in functions:
        if "Checkpoint" in type(function).__name__:
            # if it were run, torch would have refused, unless all that it computes is frozen
            held = _held(vars(function), parameters)
            held = next(iter(nowhere), None) if held is None else held
        elif nowhere and not _runs(function, parameters):
            held = _held(vars(function), nowhere)
        else:
            held = None
        if held is not None:
            _refuse(name, held, function)


def _refuse(name: str, par: Tensor, function: Any) -> None:
    kind = type(function).__name__.removesuffix("Backward")
    raise ValueError(
        f"{name}: got no gradient of a parameter of shape {tuple(par.shape)}, which {kind} hides: it goes "
        f"backward on its own, unseen by this pass; for checkpoints {REENTRANT}"
    )


def _runs(function: Any, parameters: list[Tensor]) -> bool:
    """Whether a backward pass to these parameters goes through a function."""
    wanted = {id(par) for par in parameters}
    return any(id(leaf) in wanted for leaf in leaves_of(behind([function])))


def _held(start: Any, wanted: Sequence[Tensor]) -> Tensor | None:
    """The first wanted tensor reachable from an object by containers, modules, closures and attributes."""
    tensors = {id(par): par for par in wanted}
    seen: set[int] = set()
    waiting: deque[tuple[Any, int]] = deque([(start, 0)])
    while waiting and len(seen) < _MOST:
        value, depth = waiting.popleft()
        if id(value) in seen or isinstance(value, _ATOMS):
            continue
        seen.add(id(value))
        if id(value) in tensors:
            return tensors[id(value)]
        if isinstance(value, torch.nn.Module):
            waiting += [(par, depth) for par in value.parameters()]
        if depth < _DEPTH and not isinstance(value, Tensor):
            waiting += [(part, depth + 1) for part in _parts_of(value)]
    return None


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [*cells, *(value.__defaults__ or ()), *_globals_of(value.__code__, value.__globals__)]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return []
    attributes = [getattr(value, name, None) for kind in type(value).__mro__ for name in _slots(kind)]
    of_class = [part for part in vars(type(value)).values() if isinstance(part, (torch.nn.Module, Tensor))]
    return [*attributes, *of_class, *getattr(value, "__dict__", {}).values()]


def _globals_of(code: types.CodeType, names: dict[str, Any]) -> list[Any]:
    """Globals that a function's code uses, nested functions and attributes of modules included."""
    found = [names[name] for name in code.co_names if name in names]
    modules = [value for value in found if isinstance(value, types.ModuleType)]
    found += [vars(module)[name] for module in modules for name in code.co_names if name in vars(module)]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _globals_of(constant, names)
    return found


def _slots(kind: type) -> Sequence[str]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
