"""Aggregators that solve a program, or an equation, in every call."""

from __future__ import annotations

from typing import Any

import torch

from .. import methods
from ..checks import whole
from ..methods.operator import GramOperator
from .base import GramianWeightedAggregator, StatefulAggregator, StatefulWeighting, Weighting


class UPGradWeighting(Weighting):
    """The weights of :class:`UPGrad`; its parameters."""

    _operator = methods.UPGradOperator
    _ignored = ("projector",)

    def __init__(self, pref_vector: Any = None, projector: Any = None) -> None:
        super().__init__(pref_vector=pref_vector, projector=projector)


class UPGrad(GramianWeightedAggregator):
    """UPGrad; see :class:`fastconfig.methods.UPGrad`.

    Args:
        pref_vector: (m,) what each projection counts, not negative; 1/m by default.
        projector: no effect.
    """

    def __init__(self, pref_vector: Any = None, projector: Any = None) -> None:
        super().__init__(UPGradWeighting(pref_vector, projector))


class DualProjWeighting(Weighting):
    """The weights of :class:`DualProj`; its parameters."""

    _operator = methods.DualProjOperator
    _ignored = ("projector",)

    def __init__(self, pref_vector: Any = None, projector: Any = None) -> None:
        super().__init__(pref_vector=pref_vector, projector=projector)


class DualProj(GramianWeightedAggregator):
    """DualProj; see :class:`fastconfig.methods.DualProj`.

    Args:
        pref_vector: (m,) of the weighted sum that is projected, not negative; 1/m by default.
        projector: no effect.
    """

    def __init__(self, pref_vector: Any = None, projector: Any = None) -> None:
        super().__init__(DualProjWeighting(pref_vector, projector))


class MGDAWeighting(Weighting):
    """The weights of :class:`MGDA`; its parameters."""

    _operator = methods.MGDAOperator
    _ignored = ("epsilon", "max_iters")

    def __init__(self, epsilon: float = 0.001, max_iters: int = 100) -> None:
        super().__init__(epsilon=epsilon, max_iters=max_iters)


class MGDA(GramianWeightedAggregator):
    """MGDA; see :class:`fastconfig.methods.MGDA`.

    Args:
        epsilon, max_iters: no effect.
    """

    def __init__(self, epsilon: float = 0.001, max_iters: int = 100) -> None:
        super().__init__(MGDAWeighting(epsilon, max_iters))


class CAGradWeighting(Weighting):
    """The weights of :class:`CAGrad`; its parameters."""

    _operator = methods.CAGradOperator
    _ignored = ("norm_eps",)

    def __init__(self, c: float, norm_eps: float = 0.0001) -> None:
        super().__init__(c=c, norm_eps=norm_eps)


class CAGrad(GramianWeightedAggregator):
    """CAGrad; see :class:`fastconfig.methods.CAGrad`.

    Args:
        c: how far from the mean, in lengths of it.
        norm_eps: no effect.
    """

    def __init__(self, c: float, norm_eps: float = 0.0001) -> None:
        super().__init__(CAGradWeighting(c, norm_eps))

    def __str__(self) -> str:
        return f"CAGrad{self.c}".removesuffix(".0")


class FairGradWeighting(Weighting):
    """The weights of :class:`FairGrad`; its parameters."""

    _operator = methods.FairGradOperator
    _ignored = ("max_iters",)

    def __init__(self, alpha: float, max_iters: int | None = None) -> None:
        super().__init__(alpha=alpha, max_iters=max_iters)


class FairGrad(GramianWeightedAggregator):
    """FairGrad; see :class:`fastconfig.methods.FairGrad`.

    Args:
        alpha: fairness, >= 0.
        max_iters: no effect.
    """

    def __init__(self, alpha: float, max_iters: int | None = None) -> None:
        super().__init__(FairGradWeighting(alpha, max_iters))

    def __str__(self) -> str:
        return f"{self.alpha}-FairGrad"


class AlignedMTLWeighting(Weighting):
    """The weights of :class:`AlignedMTL`; its parameters."""

    _operator = methods.AlignedMTLOperator

    def __init__(self, pref_vector: Any = None, scale_mode: str = "min") -> None:
        super().__init__(pref_vector=pref_vector, scale_mode=scale_mode)


class AlignedMTL(GramianWeightedAggregator):
    """Aligned-MTL; see :class:`fastconfig.methods.AlignedMTL`.

    Args:
        pref_vector: (m,) not negative; 1/m by default.
        scale_mode: "min", "median" or "rmse".
    """

    def __init__(self, pref_vector: Any = None, scale_mode: str = "min") -> None:
        super().__init__(AlignedMTLWeighting(pref_vector, scale_mode))


class _Bargaining(methods.EveryOperator):
    """Nash-MTL as in its authors' code: lengths are cut in every call."""

    def __init__(self, n_tasks: int, max_norm: float | None, update_weights_every: int) -> None:
        if whole("n_tasks", n_tasks) < 1:
            raise ValueError(f"n_tasks: got {n_tasks}, want at least 1")
        if whole("update_weights_every", update_weights_every) < 1:
            raise ValueError(f"update_weights_every: got {update_weights_every}, want at least 1")
        rule = methods.NashMTL(None)
        super().__init__(rule, update_weights_every, max_norm=max_norm)
        self.n_tasks = int(n_tasks)

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> methods.Rule:
        if norms[-1] != self.n_tasks:
            raise ValueError(f"matrix: got {norms[-1]} gradients, want {self.n_tasks}, the n_tasks")
        if self.calls > 1:
            return super().rule_at(norms, device, spread)
        return methods.NashMTL(self.max_norm)


class NashMTLWeighting(StatefulWeighting):
    """The weights of :class:`NashMTL`; its parameters."""

    _operator = _Bargaining
    _ignored = ("optim_niter",)

    def __init__(
        self,
        n_tasks: int,
        max_norm: float | None = 1.0,
        update_weights_every: int = 1,
        optim_niter: int = 20,
    ) -> None:
        super().__init__(
            n_tasks=n_tasks,
            max_norm=max_norm,
            update_weights_every=update_weights_every,
            optim_niter=optim_niter,
        )

    def _made(self, settings: dict[str, Any]) -> GramOperator:
        if whole("optim_niter", settings["optim_niter"]) < 1:
            raise ValueError(f"optim_niter: got {settings['optim_niter']}, want at least 1")
        return super()._made(settings)


class NashMTL(StatefulAggregator):
    """Nash-MTL; see :class:`fastconfig.methods.NashMTL`.

    Args:
        n_tasks: number of gradients.
        max_norm: the greatest length of the update; None or 0 leaves it.
        update_weights_every: the weights are found anew in every k-th call only.
        optim_niter: no effect.
    """

    def __init__(
        self,
        n_tasks: int,
        max_norm: float | None = 1.0,
        update_weights_every: int = 1,
        optim_niter: int = 20,
    ) -> None:
        super().__init__(NashMTLWeighting(n_tasks, max_norm, update_weights_every, optim_niter))
