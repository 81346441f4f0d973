"""Which backend serves which gradients: ``choose``, ``explain``, ``use_backend``, FASTCONFIG_BACKEND."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from types import TracebackType

from torch import Tensor

from ..gradients import Gradients, GradientsLike
from ..methods import Rule
from .base import Backend, BackendUnavailable

__all__ = ["Backend", "BackendUnavailable", "choose", "explain", "load", "use_backend"]

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
_log = logging.getLogger("fastconfig")


def choose(grads: Gradients) -> Backend:
    """The backend that serves ``grads``.

    Raises:
        BackendUnavailable: if one was asked for by name and cannot serve them.
        ValueError: if FASTCONFIG_BACKEND names none.
    """
    if grads.parts:
        return _of_parts(grads)
    name = _requested if _requested is not None else _from_environment()
    if name != AUTO:
        backend = load(name)
        reason = backend.unsupported(grads)
        if reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot serve these gradients: {reason}")
        return backend if grads.shards is None else _over_all(backend)
    device = grads.device_type
    for backend in _serving.get(device) or _find_serving(device):
        if backend.unsupported(grads) is None:
            return backend if grads.shards is None else _over_all(backend)
    raise BackendUnavailable(_nothing_serves(device))


def short_update(grads: GradientsLike, rule: Rule) -> Tensor | None:
    """The update by the backend that serves the CPU, if it has a shorter way for these; None otherwise.

    Loads nothing: None also as long as that backend has served nothing.
    """
    backend = _serving_the_cpu()
    return None if backend is None else backend.short_update(grads, rule)


def merge_into(
    rows: list[Sequence[Tensor | None]], parameters: list[Tensor], rule: Rule
) -> list[Tensor] | None:
    """The same of gradients of parameters, to their ``.grad``; what was written to, or None."""
    backend = _serving_the_cpu()
    return None if backend is None else backend.merge_into(rows, parameters, rule)


def _serving_the_cpu() -> Backend | None:
    """The backend that has served the CPU, or was asked for by name and is loaded."""
    if _requested is None or _requested == AUTO:
        serving = _serving.get("cpu")
        return serving[0] if serving else None
    backend = _loaded.get(_requested)
    return None if isinstance(backend, str) else backend


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


def explain(device_type: str) -> list[tuple[str, str | None]]:
    """Backends for a device in order of preference, each with the reason why it cannot run, or None.

    The first with None serves it. A backend is imported to find out.

    Args:
        device_type: "cpu", "cuda", ... as in ``torch.device.type``.
    """
    found = [(name, _load(name)) for name in _candidates(device_type)]
    return [(name, backend if isinstance(backend, str) else None) for name, backend in found]


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
    name = os.environ.get("FASTCONFIG_BACKEND", AUTO)
    _check_name(name, "FASTCONFIG_BACKEND")
    _requested = name
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
    reasons = "; ".join(f"{name}: {why}" for name, why in explain(device_type) if why)
    return f"no backend serves device {device_type!r} here: {reasons}"
