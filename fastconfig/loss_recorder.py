"""Loss recorders: they remember the losses that a step does not compute.

Names, parameters and defaults are those of ``conflictfree.loss_recorder``. What fails there by mistake works
here as documented.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Tuple, Union  # noqa: UP035  # also taken from here by star import

from torch import Tensor

from .checks import abstract, check_losses, check_ordered, fraction, got, whole
from .momentum.indexes import index_list
from .showing import Shown

__all__ = [
    "LatestLossRecorder",
    "LossRecorder",
    "MomentumLossRecorder",
    "Optional",
    "Sequence",
    "Tuple",
    "Union",
]


class LossRecorder(Shown):
    """Base class of loss recorders. A subclass overrides :meth:`record_loss`.

    Args:
        num_losses: how many losses there are.

    Attributes:
        num_losses: how many losses there are.
        current_losses: the latest recorded value of each loss; zeros at first.

    Raises:
        TypeError, ValueError: if num_losses is no integer, or below 1.

    Examples:
        >>> fastconfig.LossRecorder(2)
        LossRecorder(2)
    """

    def __init__(self, num_losses: int) -> None:
        num_losses = whole("num_losses", num_losses)
        if num_losses < 1:
            raise ValueError(f"num_losses: got {num_losses}, want at least 1")
        self.num_losses = num_losses
        self.current_losses: list[Any] = [0.0] * num_losses

    def record_loss(self, losses_indexes: Any, losses: Any) -> list[Any]:
        """Record some of the losses.

        Args:
            losses_indexes: an integer, or a sequence of k different ones.
            losses: one value or k: numbers, or tensors of one element.

        Returns:
            The recorded values of all losses, as a new list.

        Raises:
            NotImplementedError: always; a subclass overrides it.
        """
        raise abstract(self, "record_loss")

    def record_all_losses(self, losses: Sequence[Any]) -> list[Any]:
        """Record all losses.

        Args:
            losses: num_losses values.

        Returns:
            As :meth:`record_loss`.

        Raises:
            TypeError, ValueError: for another number of losses, or if it is no sequence.
        """
        check_losses(losses, self.num_losses)
        return self.record_loss(range(self.num_losses), losses)

    def _preprocess_losses(self, losses_indexes: Any, losses: Any) -> tuple[list[int], list[Any]]:
        """Indexes and values as lists of one length, checked; for use in :meth:`record_loss`."""
        chosen = index_list(losses_indexes, self.num_losses, "losses_indexes")
        check_ordered("losses", losses, "a number, a tensor of one element, or a sequence of them")
        values = [losses] if _is_one(losses) else list(losses)
        if len(values) != len(chosen):
            raise ValueError(f"losses: got {len(values)}, want {len(chosen)}: one an index")
        for i, value in enumerate(values):
            _check_value(i, value)
        # a graph must not live on in what is recorded
        return chosen, [value.detach() if isinstance(value, Tensor) else value for value in values]

    def state_dict(self) -> dict[str, Any]:
        """The recorded values, in plain containers."""
        return {"current_losses": list(self.current_losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a :meth:`state_dict`; its values are copied.

        Raises:
            ValueError: for the state of another number of losses; nothing is changed then.
        """
        self.check_state(state)
        self.current_losses = _copies(state["current_losses"])

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that a state fits; nothing is changed.

        Raises:
            ValueError: naming what came and what is wanted.
        """
        for name, values in self.state_dict().items():
            if name not in state or len(state[name]) != len(values):
                got = "none" if name not in state else str(len(state[name]))
                raise ValueError(f"state: got {got} for {name}, want {len(values)} values")


def _check_value(i: int, value: Any) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"losses[{i}]: got shape {tuple(value.shape)}, want one element")
    elif not hasattr(value, "__float__"):
        raise TypeError(f"losses[{i}]: got {got(value)}, want a number or a tensor of one element")


def _is_one(losses: Any) -> bool:
    return losses.dim() == 0 if isinstance(losses, Tensor) else not hasattr(losses, "__len__")


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _copies(values: Sequence[Any]) -> list[Any]:
    return [_copy(value) for value in values]


class LatestLossRecorder(LossRecorder):
    """Keeps the latest value of every loss.

    Args:
        num_losses: how many losses there are.

    Raises:
        TypeError, ValueError: if num_losses is no integer, or below 1.

    Examples:
        >>> recorder = fastconfig.LatestLossRecorder(2)
        >>> recorder.record_loss([0, 1], [1.0, 2.0])
        [1.0, 2.0]
        >>> recorder.record_loss(1, 3.0)
        [1.0, 3.0]
    """

    def record_loss(self, losses_indexes: Any, losses: Any) -> list[Any]:
        """Record some of the losses; arguments and result as in :class:`LossRecorder`.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names; nothing is recorded.
        """
        for i, value in zip(*self._preprocess_losses(losses_indexes, losses), strict=True):
            self.current_losses[i] = _copy(value)  # a loop may write its losses to the same tensor again
        return list(self.current_losses)


class MomentumLossRecorder(LossRecorder):
    """Keeps a bias-corrected moving average of every loss; zero until the loss was recorded once.

    Args:
        num_losses: how many losses there are.
        betas: decay, 0 <= beta < 1: one for all losses, or one for each.

    Raises:
        TypeError, ValueError: for another number of betas, or a beta outside of [0, 1); if num_losses is no
            integer, or below 1.

    Examples:
        >>> recorder = fastconfig.MomentumLossRecorder(2, betas=0.9)
        >>> recorder.record_loss([0, 1], [1.0, 2.0])
        [1.0, 2.0]
    """

    def __init__(self, num_losses: int, betas: float | Sequence[float] = 0.9) -> None:
        super().__init__(num_losses)
        check_ordered("betas", betas, "a number, or one a loss")
        one = not getattr(betas, "ndim", 1) or not hasattr(betas, "__len__")
        several: Any = [betas] * self.num_losses if one else betas
        each = list(several)
        if len(each) != self.num_losses:
            raise ValueError(f"betas: got {len(each)}, want one, or {num_losses}: one a loss")
        self.betas = [fraction("betas", beta) for beta in each]
        self.m: list[Any] = [0.0] * self.num_losses
        self.t = [0] * self.num_losses

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "betas" not in state:
            raise ValueError("state: got conflictfree's MomentumLossRecorder without betas, which it lost")
        vars(self).update(state)

    def record_loss(self, losses_indexes: Any, losses: Any) -> list[Any]:
        """Record some of the losses; arguments and result as in :class:`LossRecorder`.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names; nothing is recorded.
        """
        for i, value in zip(*self._preprocess_losses(losses_indexes, losses), strict=True):
            beta = self.betas[i]
            self.t[i] += 1
            self.m[i] = beta * self.m[i] + (1 - beta) * value
            self.current_losses[i] = self.m[i] / (1 - beta ** self.t[i])
        return list(self.current_losses)

    def state_dict(self) -> dict[str, Any]:
        """The recorded values, in plain containers."""
        return super().state_dict() | {"m": list(self.m), "t": list(self.t)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a :meth:`state_dict`.

        Raises:
            ValueError: for the state of another number of losses; nothing is changed then.
        """
        super().load_state_dict(state)
        self.m, self.t = _copies(state["m"]), [int(n) for n in state["t"]]
