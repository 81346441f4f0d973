"""Base of all aggregators and weightings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..gradients import Gradients, GradientsLike, Update
from ..methods import GramOperator, Rule
from ..methods.operator import refuse_groups
from ..methods.stateful import StatefulOperator


class Weighting(nn.Module):
    """Base class of weightings: Gramian (m, m) -> m weights; TorchJD's name for a rule.

    A weighting of your own overrides :meth:`forward`; ``GramOperator(weighting)`` makes an operator of it.
    The settings of the constructor are attributes, which you may change.
    """

    operator: GramOperator
    _operator: ClassVar[Any]  # makes the operator, from those settings that have an effect
    _ignored: ClassVar[tuple[str, ...]] = ()  # those of a solver of TorchJD's

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings
        if settings or hasattr(type(self), "_operator"):
            self.operator = self._made(settings)

    def _made(self, settings: dict[str, Any]) -> GramOperator:
        return type(self)._operator(**{k: v for k, v in settings.items() if k not in self._ignored})

    def forward(self, gramian: Tensor, /, *, dtype: torch.dtype | None = None) -> Tensor:
        """The weights.

        Args:
            gramian: (m, m) or (B, m, m), of any floating-point dtype.
            dtype: of the gradients, where it is known; see :meth:`fastconfig.GramOperator.coefficients`.

        Returns:
            (m,) or (B, m) in the dtype of ``gramian``.
        """
        return self.operator.coefficients(gramian, dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        settings = vars(self).get("_settings", {})
        return settings[name] if name in settings else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        settings = vars(self).get("_settings", {})
        if name not in settings:
            super().__setattr__(name, value)
            return
        changed = settings | {name: value}
        operator = self._made(changed)  # raises before anything has changed
        if isinstance(operator, StatefulOperator):
            operator.load_state_dict(self.operator.state_dict())  # type: ignore[attr-defined]
        self.operator, settings[name] = operator, value

    def extra_repr(self) -> str:
        return _shown(self._settings)


class StatefulWeighting(Weighting):
    """Base class of weightings with a state."""

    def reset(self) -> None:
        """Forget the state."""
        self.operator.reset()  # type: ignore[attr-defined]

    def get_extra_state(self) -> Any:
        """The state, for ``state_dict``."""
        return self.operator.state_dict()  # type: ignore[attr-defined]

    def set_extra_state(self, state: Any) -> None:
        """Load what :meth:`get_extra_state` returned."""
        self.operator.load_state_dict(state)  # type: ignore[attr-defined]


class _OfWeighting(nn.Module):
    """A module that shows the settings of a weighting as its own attributes, and changes them there."""

    def _settled(self) -> Weighting | None:
        """The weighting; None before there is one."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        weighting = self._settled()
        if weighting is not None and name in weighting._settings:
            return weighting._settings[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        weighting = self._settled()
        if weighting is not None and name in weighting._settings:
            setattr(weighting, name, value)
        else:
            super().__setattr__(name, value)


class _OfGradients(_OfWeighting):
    """The weights as a function of the gradients; a module, so that forward hooks work as in TorchJD."""

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        self._inner = [weighting]  # not a part of this module: the aggregator has it

    def _settled(self) -> Weighting | None:
        return next(iter(vars(self).get("_inner", ())), None)

    def forward(self, matrix: GradientsLike, /) -> Tensor:
        rows = Gradients(matrix)
        self._exact = self._inner[0](ops.gram_of(rows), dtype=rows.dtype)
        return self._exact.to(rows.dtype)

    def unrounded(self, weights: Tensor) -> Tensor:
        """The weights in float64, where no hook has changed them."""
        return torch.where(weights == self._exact.to(weights.dtype), self._exact, weights.double())


class Aggregator(GramOperator, _OfWeighting):
    """Base class of aggregators: m gradients -> their update; TorchJD's name for an operator.

    Call it with a Jacobian (m, N), or with gradients in any form of :func:`fastconfig.ConFIG_update`. It is
    an operator, too, with ``calculate_gradient(grads, losses)`` and ``update_gradient(network, grads)``, for
    :func:`fastconfig.backward` and the momentum operators. The settings of the constructor are attributes,
    which you may change.
    """

    def __init__(self, weighting: Weighting) -> None:
        nn.Module.__init__(self)
        self.gramian_weighting = weighting
        self.weighting = _OfGradients(weighting)

    @property
    def fixed_rule(self) -> Rule | None:
        """The rule, if it is the same for all gradients."""
        return self.gramian_weighting.operator.fixed_rule

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call."""
        return self.gramian_weighting.operator.rule_at(norms, device, spread)

    def forward(self, matrix: GradientsLike, /) -> Update:
        """The update.

        Args:
            matrix: the Jacobian (m, N), or gradients in any form of :func:`fastconfig.ConFIG_update`.

        Returns:
            The update in the form of the gradients. Forward hooks of the weighting see the weights and may
            change them.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names.
        """
        if any(_hooked(module) for module in (self.weighting, self.gramian_weighting)):
            refuse_groups(self, "forward hooks see one vector of weights")
            return ops.combine(matrix, self.weighting.unrounded(self.weighting(matrix)))
        return self.calculate_gradient(matrix)

    def _settled(self) -> Weighting | None:
        return vars(self).get("_modules", {}).get("gramian_weighting")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_shown(self.gramian_weighting._settings)})"

    def __str__(self) -> str:
        settings = self.gramian_weighting._settings
        vector = settings.get("weights", settings.get("pref_vector"))
        numbers = "" if vector is None else f"([{', '.join(map(_short, vector))}])"
        return f"{type(self).__name__}{numbers}"


class WeightedAggregator(Aggregator):
    """An aggregator that uses weights; here all do."""


class GramianWeightedAggregator(WeightedAggregator):
    """An aggregator whose weights follow from the Gramian."""


class StatefulAggregator(GramianWeightedAggregator):
    """Base class of aggregators with a state, which ``state_dict`` includes."""

    gramian_weighting: StatefulWeighting

    def reset(self) -> None:
        """Forget the state."""
        self.gramian_weighting.reset()


def jac_to_grad(
    tensors: Iterable[Tensor],
    /,
    aggregator: Aggregator,
    *,
    retain_jac: bool = False,
    optimize_gramian_computation: bool = False,
) -> Tensor:
    """Merge the ``.jac`` of tensors into their ``.grad``, as ``torchjd.autojac.jac_to_grad`` does.

    The Jacobians are read in place and not copied to one matrix.

    Args:
        tensors: tensors with ``.jac`` of shape (m, ...), with the same m.
        aggregator: merges the rows.
        retain_jac: keep the ``.jac``.
        optimize_gramian_computation: accepted for compatibility with TorchJD; nothing is ever concatenated.

    Returns:
        (m,) the weights.

    Raises:
        ValueError: for no tensors, one without ``.jac`` or that takes no ``.grad``, or different m; nothing
            is changed then.
    """
    given: list[Any] = list(tensors)
    if not given:
        raise ValueError("tensors: got none, want at least one")
    jacobians: list[Any] = [getattr(tensor, "jac", None) for tensor in given]
    if any(jac is None for jac in jacobians):
        raise ValueError("tensors: got one without .jac, want those of autojac.backward or mtl_backward")
    if not all(tensor.requires_grad and (tensor.is_leaf or tensor.retains_grad) for tensor in given):
        raise ValueError("tensors: got one that takes no .grad, want leaves with requires_grad=True")
    sizes = {len(jac) for jac in jacobians}
    if len(sizes) > 1:
        raise ValueError(f"tensors.jac: got {sorted(sizes)} rows, want the same number for all")
    rows = [[jac[i] for jac in jacobians] for i in range(sizes.pop())]
    captured: list[Tensor] = []
    handle = aggregator.weighting.register_forward_hook(lambda _module, _given, w: captured.append(w))
    try:
        update = aggregator(rows)
    finally:
        handle.remove()
    for tensor, piece in zip(given, update, strict=True):
        if not retain_jac:
            del tensor.jac
        tensor.grad = piece if tensor.grad is None else tensor.grad + piece
    return captured[0]


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _short(value: Any) -> str:
    return f"{float(value):.2f}".rstrip("0")


def _shown(settings: Mapping[str, Any]) -> str:
    drawing = {"generator"} if settings.get("generator") is None else set()
    return ", ".join(f"{name}={value!r}" for name, value in settings.items() if name not in drawing)
