"""Direction weights of ConFIG."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union  # also taken from here by star import

import torch
from torch import Tensor

from .checks import abstract, as_tensor
from .gradients import Gradients
from .numbers import float64_device
from .showing import Shown

__all__ = ["EqualWeight", "Optional", "Sequence", "Union", "WeightModel", "torch"]


class WeightModel(Shown):
    """Base class of weight models.

    A subclass overrides :meth:`get_weights`, which gets the gradients as one (m, N) tensor. It may take a
    ``device`` argument.

    Examples:
        >>> class Twice(fastconfig.WeightModel):
        ...     def get_weights(self, gradients, losses=None, device=None):
        ...         return torch.tensor([2.0, 1.0])
        >>> fastconfig.ConFIG_update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), weight_model=Twice())
        tensor([1.2000, 0.6000])
    """

    def __init__(self) -> None:
        pass

    def get_weights(self, gradients: Tensor | None = None, losses: Sequence[Any] | None = None) -> Any:
        """Direction weights: the update's cosines with the gradients are in the ratio of the weights.

        Args:
            gradients: (m, N) loss-specific gradients.
            losses: the m losses, if they were given.

        Returns:
            (m,) weights.

        Raises:
            NotImplementedError: always; a subclass overrides it.
        """
        raise abstract(self, "get_weights")


class EqualWeight(WeightModel):
    """The same weight for every gradient: the update has equal cosines with all (Liu et al. 2024).

    Examples:
        >>> fastconfig.EqualWeight().get_weights(torch.ones(3, 10))
        tensor([1., 1., 1.])
    """

    def get_weights(  # type: ignore[override]  # conflictfree's signature
        self,
        gradients: Tensor,
        losses: Sequence[Any] | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Ones.

        Args:
            gradients: (m, N) loss-specific gradients, or a sequence of m.
            losses: not used.
            device: where the weights are made; where the gradients are by default.

        Returns:
            (m,) ones in the dtype of the gradients.

        Raises:
            ValueError: if gradients is None.
        """
        if gradients is None:
            raise ValueError("gradients: got None, want the (m, N) gradients")
        first = gradients[0]
        return torch.ones(len(gradients), dtype=first.dtype, device=device or first.device)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies of the default model are the model itself, because operators compare by identity."""
        return "EQUAL" if self is EQUAL else super().__reduce_ex__(protocol)


#: the default of all operators
EQUAL = EqualWeight()


def is_equal(model: WeightModel) -> bool:
    """Whether the model's weights are ones, without calling it."""
    return getattr(model.get_weights, "__func__", None) is EqualWeight.get_weights


def direction_weights(model: WeightModel, grads: Gradients, losses: Sequence[Any] | None) -> Tensor | None:
    """The model's weights, (m,) float64, or None for ones; a user's model gets the stacked tensor.

    Raises:
        ValueError: for another number of weights than gradients.
    """
    if is_equal(model):
        return None
    stacked = grads.stacked()
    keywords = {"device": stacked.device} if _takes_device(model.get_weights) else {}
    with torch.no_grad():
        given = model.get_weights(gradients=stacked, losses=losses, **keywords)
    wanted = f"({grads.m},) numbers from {type(model).__name__}.get_weights"
    weights = as_tensor("weights", given, wanted, torch.float64)
    if weights.shape != (grads.m,):
        raise ValueError(
            f"weights: got shape {tuple(weights.shape)} from {type(model).__name__}.get_weights, "
            f"want ({grads.m},) for {grads.m} gradients"
        )
    return weights.detach().to(float64_device(grads.device), torch.float64).contiguous()


def _takes_device(get_weights: Callable[..., Any]) -> bool:
    parameters = inspect.signature(get_weights).parameters
    return "device" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
