"""Which backend serves which gradients: ``choose``, ``explain``, ``use_backend``, ``last_backend``."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..gradients import Gradients, GradientsLike, Update
from ..methods import Rule
from .base import Backend, BackendUnavailable

if TYPE_CHECKING:
    from ..momentum.step import Plain

__all__ = ["Backend", "BackendUnavailable", "choose", "explain", "last_backend", "load", "use_backend"]

AUTO = "auto"
# name -> (module, class); a backend is imported on first use
_REGISTRY = {
    "numba": ("fastconfig.backends.numba_cpu", "NumbaBackend"),
    "cuda": ("fastconfig.backends.cuda", "CudaBackend"),
    "triton": ("fastconfig.backends.triton_gpu", "TritonBackend"),
    "pytorch": ("fastconfig.backends.pytorch", "PyTorchBackend"),
}
# in order of preference; any other device: pytorch
_PREFERENCE = {"cpu": ("numba", "pytorch"), "cuda": ("cuda", "triton", "pytorch")}

_loaded: dict[str, Backend | str] = {}  # a backend, or why it cannot be had
_told: set[tuple[str, str]] = set()  # backends and reasons that were logged
_serving: dict[str, list[Backend]] = {}  # device type -> what auto may take
_requested: str | None = None  # None until first asked: then FASTCONFIG_BACKEND or auto
_last: Backend | None = None  # what served the last call of this process
_log = logging.getLogger("fastconfig")


def choose(grads: Gradients) -> Backend:
    """The backend that serves ``grads``.

    Raises:
        BackendUnavailable: if one was asked for by name and cannot serve them.
        ValueError: if FASTCONFIG_BACKEND names none.
    """
    global _last
    if grads.parts:
        return _of_parts(grads)
    name = _requested if _requested is not None else _from_environment()
    if name != AUTO:
        backend = load(name)
        reason = backend.unsupported(grads)
        if reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot serve these gradients: {reason}")
        _last = backend
        return backend if grads.shards is None else _over_all(backend)
    device = grads.device_type
    for backend in _serving.get(device) or _find_serving(device):
        if backend.unsupported(grads) is None:
            _last = backend
            return backend if grads.shards is None else _over_all(backend)
    raise BackendUnavailable(_nothing_serves(device))


def short_update(grads: GradientsLike, rule: Rule) -> Update | None:
    """The update by a backend that serves already, if it has a shorter way for these; None otherwise.

    Loads nothing: None also as long as no backend has served gradients of their kind.
    """
    global _last
    if rule.native is None:
        return None
    for backends in _serving.values() if _requested is None or _requested == AUTO else _asked_for():
        if backends and (update := backends[0].short_update(grads, rule)) is not None:
            _last = backends[0]
            return update
    return None


def merge_into(
    rows: list[Sequence[Tensor | None]], parameters: list[Tensor], rule: Rule
) -> list[Tensor] | None:
    """The same of gradients of parameters, to their ``.grad``; what was written to, or None."""
    global _last
    if rule.native is None:
        return None
    for backends in _serving.values() if _requested is None or _requested == AUTO else _asked_for():
        if backends and (written := backends[0].merge_into(rows, parameters, rule)) is not None:
            _last = backends[0]
            return written
    return None


def short_step(state: Plain, indexes: Any, grads: Any, rule: Rule) -> Tensor | None:
    """The same of a momentum step; the update, or None and the state as before."""
    global _last
    if rule.native is None:
        return None
    for backends in _serving.values() if _requested is None or _requested == AUTO else _asked_for():
        if backends and (update := backends[0].short_step(state, indexes, grads, rule)) is not None:
            _last = backends[0]
            return update
    return None


def last_backend() -> str | None:
    """Name of the backend that served the last call in this process, of whichever thread; None before any."""
    return None if _last is None else _last.name


def serves_instead(backend: Backend) -> None:
    """Note that this one serves the call, in place of the one that was chosen."""
    global _last
    _last = backend


def _asked_for() -> tuple[tuple[Backend], ...]:
    """What was asked for by name, if it is loaded."""
    backend = _loaded.get(_requested)  # type: ignore[arg-type]
    return () if backend is None or isinstance(backend, str) else ((backend,),)


def _over_all(backend: Backend) -> Backend:
    from .sharded import ShardedBackend

    return ShardedBackend(backend)


def _of_parts(grads: Gradients) -> Backend:
    from .parts import PartsBackend

    return PartsBackend(grads) if grads.shards is None else _over_all(PartsBackend(grads))


def withdraw(name: str, reason: str) -> None:
    """Serve nothing by this backend any more: it turned out not to run here.

    Raises:
        BackendUnavailable: if it was asked for by name.
    """
    _loaded[name] = reason
    _serving.clear()
    if _requested == name:
        raise BackendUnavailable(f"backend {name!r} cannot run here: {reason}")
    _tell_once(name, reason)


def _tell_once(name: str, reason: str) -> None:
    if (name, reason) not in _told:
        _told.add((name, reason))
        _log.warning("backend %r cannot run here and is passed over: %s", name, reason)


def load(name: str) -> Backend:
    """The backend of this name, imported on first use.

    Raises:
        ValueError: for an unknown name.
        BackendUnavailable: if it cannot run here, with the reason.
    """
    _check_name(name, "backend")
    backend = _load(name)
    if isinstance(backend, str):
        raise BackendUnavailable(f"backend {name!r} cannot run here: {backend}")
    return backend


def explain(device: str | torch.device) -> list[tuple[str, str | None]]:
    """Backends for a device in order of preference, each with the reason why it does not serve, or None.

    The first with None serves it; if there is none, calls raise. A backend asked for by name
    (``use_backend``, FASTCONFIG_BACKEND) is the only one that may. Backends are imported to find out.

    Args:
        device: "cpu", "cuda", "cuda:0", a ``torch.device``, ...

    Raises:
        TypeError, ValueError: for what is no device, or none that this machine has.
        ValueError: if FASTCONFIG_BACKEND names no backend.
    """
    device = _device(device)
    asked = requested()
    if asked == AUTO:
        return explain_auto(device)
    names = _candidates(device.type)
    others = f"{asked!r} was asked for by name"
    return [
        (name, _why_not(name, device) if name == asked else others)
        for name in (names if asked in names else (asked, *names))
    ]


def explain_auto(device: str | torch.device) -> list[tuple[str, str | None]]:
    """:func:`explain` as if none had been asked for by name."""
    device = _device(device)
    return [(name, _why_not(name, device)) for name in _candidates(device.type)]


def _why_not(name: str, device: torch.device) -> str | None:
    backend = _load(name)
    return backend if isinstance(backend, str) else backend.unsupported_device(device)


def _device(device: str | torch.device) -> torch.device:
    wanted = "want 'cpu', 'cuda', 'cuda:0', ... or a torch.device"
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: got {device!r}, {wanted}")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: got {device!r}, {wanted}") from None
    count = torch.cuda.device_count() if found.type == "cuda" and torch.cuda.is_available() else None
    if count is not None and (found.index or 0) >= count:
        raise ValueError(f"device: got {str(device)!r}, but PyTorch sees {count} CUDA devices here; {wanted}")
    return found


def requested() -> str:
    """The backend that was asked for by name; "auto" if none was.

    Raises:
        ValueError: if FASTCONFIG_BACKEND names none.
    """
    return _requested if _requested is not None else _of_the_variable()


class use_backend:  # reads as a statement: use_backend("pytorch")
    """Serve everything by one backend from now on, or within a ``with`` block.

    Args:
        name: "numba", "cuda", "triton", "pytorch", or "auto" to choose by device again.

    Raises:
        ValueError: for an unknown name.
        BackendUnavailable: if it cannot run here, with the reason.
    """

    def __init__(self, name: str) -> None:
        global _requested
        _check_name(name, "name")
        if name != AUTO:
            load(name)
        self._before = _requested
        _requested = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _requested
        _requested = self._before


def _from_environment() -> str:
    global _requested
    _requested = _of_the_variable()
    return _requested


def _of_the_variable() -> str:
    name = os.environ.get("FASTCONFIG_BACKEND", "").strip() or AUTO  # job scripts leave variables empty
    _check_name(name, "FASTCONFIG_BACKEND")
    return name


def _check_name(name: str, argument: str) -> None:
    if name not in (AUTO, *_REGISTRY):
        names = ", ".join(repr(n) for n in (AUTO, *_REGISTRY))
        raise ValueError(f"{argument}: got {name!r}, want one of {names}")


def _candidates(device_type: str) -> tuple[str, ...]:
    return _PREFERENCE.get(device_type, ("pytorch",))


def _find_serving(device_type: str) -> list[Backend]:
    """Load what auto may take for a device, and say once what it cannot."""
    serving = []
    for name in _candidates(device_type):
        backend = _load(name)
        if isinstance(backend, str):
            _tell_once(name, backend)
        else:
            serving.append(backend)
    _serving[device_type] = serving
    return serving


def _load(name: str) -> Backend | str:
    if name not in _loaded:
        module, kind = _REGISTRY[name]
        try:
            _loaded[name] = getattr(importlib.import_module(module), kind)()
        except Exception as error:  # whatever a broken installation raises is the reason
            _loaded[name] = f"{type(error).__name__}: {error}"
    return _loaded[name]


def _nothing_serves(device_type: str) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in explain_auto(device_type) if why)
    return f"no backend serves device {device_type!r} here: {reasons}"
