"""Figures go where the user already looks: TensorBoard, Weights & Biases, Accelerate, Lightning, a file.

    logger = TensorBoard(SummaryWriter())
    for step, batch in enumerate(data):
        ...
        if step % 100 == 99:
            monitor.log(logger)  # all steps since the last call

A logger of your own is any object with :meth:`Logger.log`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..checks import whole

if TYPE_CHECKING:
    from .monitor import Monitor

PREFIX = "gradients/"


class Logger(Protocol):
    """An object that takes the figures of a step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take them.

        Args:
            step: its number.
            figures: by names such as "cosine/residual,initial"; NaN where one has no meaning.
        """


class JSONLines:
    """A line of JSON a step at the end of a file; NaN is null.

    Args:
        path: of the file, made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        line: dict[str, float | None] = {"step": step}
        line |= {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class TensorBoard:
    """Scalars of a ``SummaryWriter``.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or what has its ``add_scalar``.
        prefix: before the names.
    """

    def __init__(self, writer: Any, prefix: str = PREFIX) -> None:
        self.writer, self.prefix = writer, prefix

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(self.prefix + name, value, step)


class WandB:
    """Figures of a Weights & Biases run, over an axis of their own: steps may come later than others'.

    Args:
        run: what ``wandb.init`` returned.
        prefix: before the names.
    """

    def __init__(self, run: Any, prefix: str = PREFIX) -> None:
        self.run, self.prefix = run, prefix
        run.define_metric(f"{prefix}step")
        run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log({f"{self.prefix}step": step, **_named(self.prefix, figures)})


class AccelerateTrackers:
    """All trackers of an ``accelerate.Accelerator``.

    Args:
        accelerator: after its ``init_trackers``.
        prefix: before the names.
    """

    def __init__(self, accelerator: Any, prefix: str = PREFIX) -> None:
        self.accelerator, self.prefix = accelerator, prefix

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.accelerator.log(_named(self.prefix, figures), step=step)


def lightning_callback(monitor: Monitor, *, every: int = 50, prefix: str = PREFIX) -> Any:
    """A Lightning callback that logs the last step's figures by the module's ``self.log``.

    Args:
        monitor: of the operator in the module's ``training_step``.
        every: so many batches; the trainer's ``log_every_n_steps`` should divide it.
        prefix: before the names.

    Returns:
        A ``lightning.Callback``; for the trainer's ``callbacks``.

    Raises:
        ModuleNotFoundError: without lightning.
    """
    try:
        from lightning.pytorch.callbacks import Callback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("lightning_callback: needs lightning: pip install lightning") from error
    if whole("every", every) < 1:
        raise ValueError(f"every: got {every}, want at least 1")

    class MonitorCallback(Callback):  # type: ignore[misc,unused-ignore]
        batches = 0  # of all epochs, as the trainer counts for its loggers

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.batches += 1
            if self.batches % every == 0:
                figures = {name: value for name, value in monitor.last().items() if name != "step"}
                pl_module.log_dict(_named(prefix, figures))

    return MonitorCallback()


def _named(prefix: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in figures.items()}
