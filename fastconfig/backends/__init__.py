"""Which backend serves which gradients: ``choose``, ``explain``, ``use_backend``, ``last_backend``."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..gradients import Gradients, GradientsLike, Update
from ..methods.base import Rule
from .base import Backend, BackendUnavailable

if TYPE_CHECKING:
    from ..momentum.step import Plain

__all__ = ["Backend", "BackendUnavailable", "choose", "explain", "last_backend", "load", "use_backend"]

AUTO = "auto"
# name -> (module, class); a backend is imported on first use
_HOMES = {
    "numba": ("fastconfig.backends.numba_cpu", "NumbaBackend"),
    "cuda": ("fastconfig.backends.cuda", "CudaBackend"),
    "triton": ("fastconfig.backends.triton_gpu", "TritonBackend"),
    "pytorch": ("fastconfig.backends.pytorch", "PyTorchBackend"),
}
_log = logging.getLogger("fastconfig")


class Registry:
    """The backends as they turn out to run here.

    Args:
        preference: of a device type, the names of backends in the order in which auto takes them.

    Attributes:
        loaded: by name, a backend or why it cannot be had.
        first: of each device type that has been served, what auto takes first.
        requested: what was asked for by name in the whole process; None until FASTCONFIG_BACKEND is read.
        statement: the use_backend() that asked for it.
        last: what served the last call.
    """

    def __init__(self, **preference: tuple[str, ...]) -> None:
        usual = {"cpu": ("numba", "pytorch"), "cuda": ("cuda", "triton", "pytorch")}
        self.preference: dict[str, tuple[str, ...]] = {**usual, **preference}
        self.loaded: dict[str, Backend | str] = {}
        self.first: tuple[Backend, ...] = ()
        self.requested: str | None = None
        self.statement: use_backend | None = None
        self.last: Backend | None = None
        self._serving: dict[str, list[Backend]] = {}
        self._told: set[tuple[str, str]] = set()

    def candidates(self, device_type: str) -> tuple[str, ...]:
        """Names, in order of preference."""
        return self.preference.get(device_type, ("pytorch",))

    def find(self, name: str) -> Backend | str:
        """The backend of this name, or why it cannot be had."""
        if name not in self.loaded:
            module, kind = _HOMES[name]
            try:
                self.loaded[name] = getattr(importlib.import_module(module), kind)()
            except Exception as error:  # whatever a broken installation raises is the reason
                self.loaded[name] = f"{type(error).__name__}: {error}"
        return self.loaded[name]

    def load(self, name: str) -> Backend:
        """The backend of this name.

        Raises:
            BackendUnavailable: if it cannot be had, with the reason.
        """
        backend = self.find(name)
        if isinstance(backend, str):
            raise BackendUnavailable(f"backend {name!r} cannot run here: {backend}")
        return backend

    def serving(self, device_type: str) -> list[Backend]:
        """What auto may take for a device; says once what it cannot."""
        if device_type not in self._serving:
            found = {name: self.find(name) for name in self.candidates(device_type)}
            for name, backend in found.items():
                if isinstance(backend, str):
                    self._tell_once(name, backend)
            self._serving[device_type] = [b for b in found.values() if not isinstance(b, str)]
            self.first = tuple(serving[0] for serving in self._serving.values() if serving)
        return self._serving[device_type]

    def withdraw(self, name: str, reason: str) -> None:
        """Serve nothing by this backend any more: it turned out not to run here.

        Raises:
            BackendUnavailable: if it was asked for by name.
        """
        self.loaded[name] = reason
        self._serving.clear()
        self.first = ()
        if _name() == name:
            self.load(name)
        self._tell_once(name, reason)

    def _tell_once(self, name: str, reason: str) -> None:
        if (name, reason) not in self._told:
            self._told.add((name, reason))
            _log.warning("backend %r cannot run here and is passed over: %s", name, reason)


registry = Registry()
_block: ContextVar[str | None] = ContextVar("fastconfig.use_backend", default=None)
_new: list[use_backend] = []  # which hold in the whole process, unless a block is entered with them next
_blocks = 0  # that are open, in whichever thread, and those in _new
_lock = Lock()  # of both
_MOMENT = 0.01  # seconds in which another thread enters a block, if it does


def choose(grads: Gradients) -> Backend:
    """The backend that serves ``grads``.

    Raises:
        BackendUnavailable: if one was asked for by name and cannot serve them.
        ValueError: if FASTCONFIG_BACKEND names none.
    """
    if grads.parts:
        from .parts import PartsBackend

        parts = PartsBackend(grads)
        return parts if grads.shards is None else _over_all.__wrapped__(parts)  # which keeps no gradients
    name = _name()
    if name != AUTO:
        backend = registry.load(name)
        reason = backend.unsupported(grads)
        if reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot serve these gradients: {reason}")
    else:
        device = grads.device_type
        for backend in registry.serving(device):
            if backend.unsupported(grads) is None:
                break
        else:
            reasons = "; ".join(f"{name}: {why}" for name, why in explain_auto(device) if why)
            raise BackendUnavailable(f"no backend serves device {device!r} here: {reasons}")
    registry.last = backend
    return backend if grads.shards is None else _over_all(backend)


def short_update(grads: GradientsLike, rule: Rule, ring: int = 0) -> Update | None:
    """Merge short gradients in one call of a backend that has served such gradients; None if not applicable.

    Loads nothing. The two functions below repeat the loop: called through a helper, an update of three short
    vectors takes 6 % longer.

    Args:
        ring: address of the words of a monitor's ring, which takes the step; 0 for none.
    """
    if rule.native is not None:
        for backend in _serving_already():
            if (update := backend.short_update(grads, rule, ring)) is not None:
                registry.last = backend
                return update
    return None


def merge_into(
    rows: list[Sequence[Tensor | None]], parameters: list[Tensor], rule: Rule, ring: int = 0
) -> list[Tensor] | None:
    """Merge short per-parameter gradients into ``.grad``; the tensors written, or None if not applicable."""
    if rule.native is not None:
        for backend in _serving_already():
            if (written := backend.merge_into(rows, parameters, rule, ring)) is not None:
                registry.last = backend
                return written
    return None


def short_step(state: Plain, indexes: Any, grads: Any, rule: Rule, ring: int = 0) -> Tensor | None:
    """Take a momentum step in one call; None if not applicable, and the state is unchanged."""
    if rule.native is not None:
        for backend in _serving_already():
            if (update := backend.short_step(state, indexes, grads, rule, ring)) is not None:
                registry.last = backend
                return update
    return None


def last_backend() -> str | None:
    """Name of the backend that served the last call in this process, of whichever thread; None before any.

    Examples:
        >>> update = fastconfig.ConFIG_update(torch.randn(3, 10))
        >>> name = fastconfig.last_backend()
    """
    return None if registry.last is None else registry.last.name


def _serving_already() -> tuple[Backend, ...]:
    """Whom to ask for a short way: what auto takes first, or what was asked for by name, if it is loaded."""
    if not _blocks and registry.requested == AUTO:
        return registry.first
    name = _asked() or AUTO
    if name == AUTO:
        return registry.first
    backend = registry.loaded.get(name)
    return () if backend is None or isinstance(backend, str) else (backend,)


@cache
def _over_all(backend: Backend) -> Backend:
    from .sharded import ShardedBackend

    return ShardedBackend(backend)


def load(name: str) -> Backend:
    """The backend of this name, imported on first use.

    Raises:
        ValueError: for an unknown name.
        BackendUnavailable: if it cannot run here, with the reason.
    """
    _check_name(name, "backend")
    return registry.load(name)


def explain(device: str | torch.device) -> list[tuple[str, str | None]]:
    """Backends for a device in order of preference, each with the reason why it does not serve, or None.

    The first with None serves it; if there is none, calls raise. A backend asked for by name
    (``use_backend``, FASTCONFIG_BACKEND) is the only one that may. Backends are imported to find out.

    Args:
        device: "cpu", "cuda", "cuda:0", a ``torch.device``, ...

    Raises:
        TypeError, ValueError: for what is no device, or none that this machine has.
        ValueError: if FASTCONFIG_BACKEND names no backend.

    Examples:
        >>> name, why_not = fastconfig.explain("cpu")[0]
    """
    device = _device(device)
    asked = _asked() or _of_the_variable()
    if asked == AUTO:
        return explain_auto(device)
    names = registry.candidates(device.type)
    others = f"{asked!r} was asked for by name"
    return [
        (name, _why_not(name, device) if name == asked else others)
        for name in (names if asked in names else (asked, *names))
    ]


def explain_auto(device: str | torch.device) -> list[tuple[str, str | None]]:
    """:func:`explain` as if none had been asked for by name."""
    device = _device(device)
    return [(name, _why_not(name, device)) for name in registry.candidates(device.type)]


def _why_not(name: str, device: torch.device) -> str | None:
    backend = registry.find(name)
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


class use_backend:  # reads as a statement: use_backend("pytorch")
    """Serve everything by one backend from now on, or what a thread or asyncio task does in a ``with`` block.

    Args:
        name: "numba", "cuda", "triton", "pytorch", or "auto" to choose by device again.

    Raises:
        ValueError: for an unknown name.
        BackendUnavailable: if it cannot run here, with the reason.

    Examples:
        >>> with fastconfig.use_backend("pytorch"):
        ...     update = fastconfig.ConFIG_update(torch.randn(3, 10))
        ...     print(fastconfig.last_backend())
        pytorch
    """

    def __init__(self, name: str) -> None:
        global _blocks
        _check_name(name, "name")
        if name != AUTO:
            registry.load(name)
        self._name = name
        self._thread = get_ident()
        self._outside: str | None = None
        self._before = _block.get()
        if self._before is not None:  # up to the end of the block around it
            _block.set(name)
            return
        with _lock:
            _new.append(self)
            _blocks += 1

    def __enter__(self) -> None:
        global _blocks
        with _lock:
            if self in _new:
                _new.remove(self)
            else:
                _blocks += 1
                if registry.statement is self:  # it has held in the meantime
                    registry.requested, registry.statement = self._outside, None
        _block.set(self._name)

    def __exit__(self, *error: object) -> None:
        global _blocks
        _block.set(self._before)
        with _lock:
            _blocks -= 1


def _asked() -> str | None:
    """What was asked for by name, here or in the whole process; None if nothing was."""
    name = _block.get()
    if name is None:
        if _new:
            _settle()
        name = registry.requested
    return name


def _settle() -> None:
    """Let new statements hold in the whole process.

    Between ``use_backend(...)`` and the block that is entered with it other threads may run: they wait a
    moment. The thread that made it has gone on.
    """
    global _blocks
    end = time.monotonic() + _MOMENT
    for statement in list(_new):
        while statement._thread != get_ident() and statement in _new and time.monotonic() < end:
            time.sleep(_MOMENT / 100)
        with _lock:
            if statement in _new:
                _new.remove(statement)
                _blocks -= 1
                statement._outside = registry.requested
                registry.requested, registry.statement = statement._name, statement


def _name() -> str:
    """What was asked for by name, here or in the whole process; "auto" if nothing was.

    Raises:
        ValueError: if FASTCONFIG_BACKEND names none.
    """
    name = _asked()
    if name is None:
        name = registry.requested = _of_the_variable()
    return name


def _of_the_variable() -> str:
    name = os.environ.get("FASTCONFIG_BACKEND", "").strip() or AUTO  # job scripts leave variables empty
    _check_name(name, "FASTCONFIG_BACKEND")
    return name


def _check_name(name: str, argument: str) -> None:
    if name not in (AUTO, *_HOMES):
        names = ", ".join(repr(n) for n in (AUTO, *_HOMES))
        raise ValueError(f"{argument}: got {name!r}, want one of {names}")
