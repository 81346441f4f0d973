"""The monitor that an operator tells of every step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..checks import got, whole
from . import figures
from .given import at_least_1, checked_names, in_groups, numbers_of, tensor_of
from .ring import DeviceRing, FloatArray, HostRing, split, width

if TYPE_CHECKING:
    from .loggers import Logger
    from .summary import Summary

_VERSION = 1  # of the files


class Monitor:
    """Keeps the Gram matrix, the coefficients and the losses of an operator's steps.

        operator = fastconfig.ConFIGOperator()
        operator.monitor = Monitor(["residual", "initial", "boundary"])

    A step is one merge. It is kept in memory that lies ready, on the gradients' device: nothing waits for
    that, in a CUDA graph either, after one step before its capture. What asks for figures does wait.

    The gradients of a momentum operator are its bias-corrected momenta. Losses are those that the operator
    was given: of several processes each keeps its own, where the method does not average them itself.

    Args:
        names: of the losses, in their order; ``loss_0``, ``loss_1``, ... by default.
        every: keep every so many steps only.
        keep: so many steps are kept, the last ones: at most ``8 keep (m + 1)^2`` bytes.

    Attributes:
        names, every, keep: as given; names are None until the first step, if they were not given.
        groups: of an operator with ``groups``, by name, a monitor for each; that of the operator itself keeps
            no steps then.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """

    def __init__(self, names: Iterable[str] | None = None, *, every: int = 1, keep: int = 100_000) -> None:
        self.names = None if names is None else checked_names(names)
        self.every, self.keep = at_least_1("every", every), at_least_1("keep", keep)
        self._step = 0
        self._host: HostRing | None = None
        self._device: DeviceRing | None = None
        self.groups: dict[str, Monitor] = {}
        self._sent: dict[int, tuple[Any, int]] = {}
        #: of the ring that compiled code writes to; 0 where steps come by :meth:`record` alone
        self.address = 0

    @property
    def step(self) -> int:
        """The number of the next step, counted from 0; can be set, to that of a run which goes on, say."""
        self.fetch()
        own = self._step if self._host is None else self._host.step
        return max([own, *(monitor.step for monitor in self.groups.values())])

    @step.setter
    def step(self, step: int) -> None:
        if whole("step", step) < 0:
            raise ValueError(f"step: got {step}, want at least 0")
        self.fetch()
        self._step = int(step)
        if self._host is not None:
            self._host.step = self._step
        if self._device is not None:
            self._device.set_step(self._step)
        for monitor in self.groups.values():
            monitor.step = step

    def record(self, gram: Tensor, c: Tensor, losses: Any = None) -> None:
        """Keep a step; operators call this.

        Args:
            gram: (m, m) float64, the products of the gradients.
            c: (m,) float64 coefficients, on its device.
            losses: m numbers, if they are known.

        Raises:
            ValueError: for another number of gradients than before, or of names; or for a batch of problems.
        """
        if gram.is_meta:
            return
        host = self._ready(gram)
        if gram.device.type == "cpu":
            if self._device is not None:
                self._leave_device()
            self.address = host.address
            host.record(gram.detach(), c.detach(), numbers_of(losses, host.m))
            return
        device = self._device
        if device is None or device.device != gram.device:
            if device is not None:
                self._leave_device()
            device = self._device = DeviceRing(host.m, self.every, self.keep, gram.device, host.step)
            self.address = 0
        device.record(gram, c, None if losses is None else tensor_of(losses, host.m, gram.device))
        device.fetch_block(host)

    def group(self, name: str) -> Monitor:
        """The monitor of a group of parameters, made when it is first asked for; operators call this."""
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = Monitor(self.names, every=self.every, keep=self.keep)
            found._step = self._step
        return found

    def check(self, m: int, batch: Sequence[int] = ()) -> None:
        """Whether steps of m gradients can be kept.

        Raises:
            ValueError: for another number of gradients than before, or of names; or for a batch of problems.
        """
        if batch:
            raise ValueError(
                f"monitor: got {batch[0]} problems in a batch (B, m, N), want gradients of one problem"
            )
        if self._host is not None and self._host.m != m:
            raise ValueError(f"monitor: got {m} gradients, want {self._host.m} as in the steps before")
        if self.names is not None and len(self.names) != m:
            raise ValueError(f"monitor: got {m} gradients for {len(self.names)} names, want one a name")

    def pass_step(self) -> None:
        """Count a step that merges nothing; operators call this."""
        for monitor in self.groups.values():
            monitor.pass_step()
        if self._device is not None:
            self._device.pass_step()
        elif self._host is not None:
            self._host.step += 1
        else:
            self._step += 1

    def add_losses(self, losses: Any) -> None:
        """The losses of the step that compiled code has just kept; operators call this."""
        host = self._host
        assert host is not None
        numbers = numbers_of(losses, host.m)
        if numbers is not None:
            host.add_losses(host.step - 1, numbers)

    def fetch(self) -> None:
        """Bring what is on a device to the host; waits for it.

        Needed in between only where a CUDA graph is replayed more often than the device's ring has room for,
        8 MiB: the host does not see the replays.
        """
        if self._device is not None and self._host is not None:
            self._device.fetch(self._host)
        for monitor in self.groups.values():
            monitor.fetch()

    def __len__(self) -> int:
        """How many steps are kept."""
        self.fetch()
        return 0 if self._host is None else min(self._host.stored, self.keep)

    def history(self, *, frame: bool = False) -> Any:
        """The figures of the kept steps, oldest first.

        Args:
            frame: a pandas DataFrame with a column a number and the steps for an index.

        Returns:
            A dict of NumPy arrays, n steps long: "step" (n,); "losses", "norms" and "coefficients" (n, m);
            "cosines" (n, pairs) in the order of :func:`pairs`; "conflict_rate" (n,), the share of pairs with
            a negative cosine; "alignment" (n,), 2 1^T C 1 / m^2 - 1, which is 1 where all gradients agree;
            "update_cosines" (n, m) of the update with each gradient; "norm_ratio" (n,), the longest
            gradient's norm over the shortest's; "update_norm" (n,); "update_ratio" (n,), the update's length
            over that of the plain sum. NaN where a figure has no meaning: a cosine with a zero gradient, all
            figures of gradients that are not finite.

        Raises:
            ValueError: of an operator with groups: each of ``groups`` has a history.
            ModuleNotFoundError: for ``frame`` without pandas.
        """
        if self.groups and self._host is None:
            raise ValueError(f"monitor: got steps of groups, want one of groups[name]: {list(self.groups)}")
        found = figures.of(*self._kept())
        return figures.frame(found, self._labels()) if frame else found

    def last(self) -> dict[str, float]:
        """The figures of the last step that was kept, by names such as "cosine/residual,initial".

        Empty before there is one. Those of groups have their names before them, "first.weight/...". Waits for
        the device.
        """
        self.fetch()
        found: dict[str, float] = {}
        if self._host is not None and self._host.stored:
            found = self._flat(self._host.rows(self._host.stored - 1))[0]
        return found | in_groups({name: monitor.last() for name, monitor in self.groups.items()})

    def summary(self) -> Summary:
        """Which pairs conflict and how often, whose gradient dominates, and what that means; ``print`` it."""
        from .summary import summarize

        self.fetch()
        whole = None if self.groups and self._host is None else self.history()
        return summarize(whole, self._labels(), {name: m.summary() for name, m in self.groups.items()})

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw all figures over the steps.

        Args:
            path: the file to write; ``.png``, ``.pdf``, ``.svg``, or ``.html`` for a page with the summary.

        Raises:
            ValueError: before the first step is kept.
            ModuleNotFoundError: without matplotlib.
        """
        from .picture import plot

        plot(self.history(), self._labels(), Path(path))

    def log(self, logger: Logger) -> int:
        """Hand the kept steps to a logger that it has not got yet; see :mod:`fastconfig.monitor.loggers`.

        Returns:
            How many steps were handed over.
        """
        if isinstance(logger, type) or not callable(getattr(logger, "log", None)):
            raise TypeError(f"logger: got {got(logger)}, want one with log(step, figures)")
        new = self._new(logger)
        for step in sorted(new):
            logger.log(step, new[step])
        return len(new)

    def _new(self, logger: Any) -> dict[int, dict[str, float]]:
        """The figures by step that a logger has not got yet; it counts as having them."""
        self.fetch()
        found: dict[int, dict[str, float]] = {}
        if (host := self._host) is not None:
            _, since = self._sent.get(id(logger), (logger, 0))
            self._sent[id(logger)] = logger, host.stored
            for figures_of in self._flat(host.rows(since)):
                found[int(figures_of.pop("step"))] = figures_of
        for name, monitor in self.groups.items():
            for step, of_group in monitor._new(logger).items():
                found.setdefault(step, {}).update(in_groups({name: of_group}))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is kept to a NumPy ``.npz`` file, whole at any time, for :meth:`load` and ``plot``.

        Raises:
            OSError: if it cannot be written; what was there stays.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez(file, version=_VERSION, **self._arrays())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Monitor:
        """Read a file of :meth:`save`; set on an operator, the monitor goes on from there.

        Raises:
            ValueError: for another file.
            OSError: if it cannot be read.
        """
        wanted = "want a file that Monitor.save wrote"
        try:
            with np.load(path, allow_pickle=False) as file:
                kept = {name: file[name] for name in file.files}
            if int(kept["version"]) != _VERSION:
                raise ValueError(f"version {kept['version']}, not {_VERSION}")
            return cls._of(kept)
        except OSError:
            raise
        except Exception as error:  # whatever NumPy says of a file that is none
            raise ValueError(f"path: got {os.fspath(path)!r}, {wanted} ({error})") from error

    def _arrays(self, before: str = "") -> dict[str, Any]:
        """All that is kept, by names that begin so."""
        steps, gram, c, losses = self._kept()
        rows, columns = np.tril_indices(gram.shape[-1])
        found: dict[str, Any] = {
            "names": np.array(self.names or (), dtype=str),
            "every": self.every,
            "keep": self.keep,
            "next_step": self.step,
            "step": steps.astype(np.int64),
            "gram": gram[:, rows, columns],
            "coefficients": c,
            "losses": losses,
            "groups": np.array(list(self.groups), dtype=str),
        }
        found = {before + name: value for name, value in found.items()}
        for i, monitor in enumerate(self.groups.values()):
            found |= monitor._arrays(f"{before}group{i}.")
        return found

    @classmethod
    def _of(cls, kept: dict[str, Any], before: str = "") -> Monitor:
        """A monitor made from :meth:`_arrays`."""
        get: Any = lambda name: kept[before + name]  # noqa: E731
        monitor = cls(
            [str(name) for name in get("names")] or None, every=int(get("every")), keep=int(get("keep"))
        )
        monitor._step = int(get("next_step"))
        steps, c = get("step"), get("coefficients")
        m = c.shape[1]
        if m and len(steps):
            gram = np.empty((len(steps), m, m))
            rows, columns = np.tril_indices(m)
            gram[:, rows, columns] = gram[:, columns, rows] = get("gram")
            host = monitor._started(m)
            host.extend(np.column_stack([steps, gram.reshape(len(steps), m * m), c, get("losses")]))
        for i, name in enumerate(get("groups")):
            monitor.groups[str(name)] = cls._of(kept, f"{before}group{i}.")
        return monitor

    def _ready(self, gram: Tensor) -> HostRing:
        """The host's ring for gradients of this number."""
        self.check(gram.shape[-1], gram.shape[:-2])
        return self._host or self._started(gram.shape[-1])

    def _started(self, m: int) -> HostRing:
        self._host = host = HostRing(m, self.every, self.keep)
        host.step = self._step
        if self.names is None:
            self.names = tuple(f"loss_{i}" for i in range(m))
        return host

    def _leave_device(self) -> None:
        """Steps come from elsewhere from now on."""
        self.fetch()
        self._device = None

    def _labels(self) -> tuple[str, ...]:
        return self.names or ()

    def _kept(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        self.fetch()
        if self._host is None:
            m = len(self._labels())
            return split(np.empty((0, width(m))), m)
        return split(self._host.rows(), self._host.m)

    def _flat(self, rows: FloatArray) -> list[dict[str, float]]:
        assert self._host is not None
        return figures.flat(figures.of(*split(rows, self._host.m)), self._labels())

    def __getstate__(self) -> dict[str, Any]:
        return self._arrays()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(Monitor._of(state)))

    def __repr__(self) -> str:
        return f"Monitor({list(self._labels())}, every={self.every}, keep={self.keep})"
