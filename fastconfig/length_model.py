r"""Length models of ConFIG: how long the update is along its direction u.

All are sums of projections, |g_c| = sum_i l_i cos(g_i, u): with the gradients' own lengths l_i = |g_i|
(ProjectionLength) or with one tracked length for all (Track*). Zero gradients drop out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Optional, Union  # also taken from here by star import

import torch
from torch import Tensor

from . import methods
from .checks import abstract, whole
from .showing import Shown
from .utils import *  # noqa: F403  # as conflictfree's module offers them
from .utils import __all__ as _utils_all
from .utils import unit_vector

__all__ = [
    "LengthModel",
    "Optional",
    "ProjectionLength",
    "Sequence",
    "Tensor",
    "TrackArithmeticAverage",
    "TrackGeometricAverage",
    "TrackHarmonicAverage",
    "TrackMaximum",
    "TrackMinimum",
    "TrackSpecific",
    "Union",
    *_utils_all,
]


class LengthModel(Shown):
    """Base class of length models. A subclass overrides :meth:`get_length` or :meth:`rescale_length`.

    Examples:
        >>> class AlwaysOne(fastconfig.LengthModel):
        ...     def get_length(self, *given, **named):
        ...         return 1.0
        >>> update = fastconfig.ConFIG_update(torch.randn(3, 10), length_model=AlwaysOne())
        >>> bool(abs(update.norm() - 1) < 1e-5)
        True
    """

    def __init__(self) -> None:
        pass

    def get_length(
        self,
        target_vector: Tensor | None = None,
        unit_target_vector: Tensor | None = None,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor | float:
        """Length of the update.

        Args:
            target_vector: (N,) vector along the update, of any length.
            unit_target_vector: (N,) the same at length one.
            gradients: (m, N) loss-specific gradients.
            losses: the m losses, if they were given.

        Raises:
            NotImplementedError: always; a subclass overrides it.
        """
        raise abstract(self, "get_length")

    def rescale_length(
        self,
        target_vector: Tensor,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor:
        """Scale a vector to the length that :meth:`get_length` returns.

        Args:
            target_vector: (N,).
            gradients: (m, N) loss-specific gradients.
            losses: the m losses, if they were given.

        Returns:
            (N,).
        """
        unit_target_vector = unit_vector(target_vector)
        length = self.get_length(
            target_vector=target_vector,
            unit_target_vector=unit_target_vector,
            gradients=gradients,
            losses=losses,
        )
        return length * unit_target_vector


class _Projected(LengthModel):
    """Base of the models here, whose length follows from the Gram matrix."""

    _length = "none"
    track_id = 0

    def get_length(
        self,
        target_vector: Tensor | None = None,
        unit_target_vector: Tensor | None = None,
        gradients: Tensor | None = None,
        losses: Sequence[Any] | None = None,
    ) -> Tensor:
        """Length of the update.

        Args:
            target_vector: (N,); this or ``unit_target_vector`` is needed.
            unit_target_vector: (N,) at length one.
            gradients: (m, N) loss-specific gradients, or a sequence of m.
            losses: not used.

        Returns:
            0-d tensor in the dtype of the gradients.

        Raises:
            ValueError: if a needed argument is missing.
        """
        if gradients is None:
            raise ValueError(f"gradients: got None, want the (m, N) gradients for {type(self).__name__}")
        target = target_vector if unit_target_vector is None else unit_target_vector
        if target is None:
            raise ValueError("target_vector: got None, and no unit_target_vector; want one of them")
        from .gradients import Gradients
        from .ops import gram_of

        rows = [*gradients, target.to(gradients[0].dtype)]  # one read, no unit vector formed
        name = "target_vector" if unit_target_vector is None else "unit_target_vector"
        products = gram_of(Gradients(rows, [*(f"gradients[{i}]" for i in range(len(rows) - 1)), name]))
        norms = products.diagonal().sqrt()
        target_norm = norms[-1]
        along = torch.where(target_norm > 0, products[-1, :-1] / target_norm, 0)
        return self._scaled(norms[:-1], along).to(gradients[0].dtype)

    def _scaled(self, norms: Tensor, along: Tensor) -> Tensor:
        """The length from the norms (m,) and the projections (m,) of the gradients on the direction."""
        return along.sum()


class ProjectionLength(_Projected):
    r"""The sum of the projections of the gradients on the update, |g_c| = sum_i |g_i| cos(g_i, g_c).

    Examples:
        >>> rows = torch.tensor([[1.1, 0.0], [0.0, 2.3]])
        >>> fastconfig.ConFIG_update(rows, length_model=fastconfig.ProjectionLength())
        tensor([1.7000, 1.7000])
    """

    _length = "projection"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies of the default model are the model itself, because operators compare by identity."""
        return "PROJECTION" if self is PROJECTION else super().__reduce_ex__(protocol)


#: the default of all operators
PROJECTION = ProjectionLength()


class _FlexibleTrackProjectionLength(_Projected):
    """Every gradient is given one tracked length before it is projected on the update."""

    def _scaled(self, norms: Tensor, along: Tensor) -> Tensor:
        cosines = torch.where(norms > 0, along / norms, 0)
        return cosines.sum() * self._tracked_value(norms)

    def _tracked_value(self, grad_norms: Tensor) -> Tensor:
        if self._length == "none":
            raise abstract(self, "_tracked_value")
        rule = methods.make_rule(  # checks the index
            "config",
            len(grad_norms),
            grad_norms.device,
            length=self._length,
            track_id=self.track_id,
        )
        return methods.tracked(grad_norms, rule.length, rule.track_id)[0]


class TrackMinimum(_FlexibleTrackProjectionLength):
    """Tracks the length of the shortest non-zero gradient: |g_c| = sum_i |g_min| cos(g_i, g_c).

    Examples:
        >>> rows = torch.tensor([[1.1, 0.0], [0.0, 2.3]])
        >>> fastconfig.ConFIG_update(rows, length_model=fastconfig.TrackMinimum())
        tensor([1.1000, 1.1000])
    """

    _length = "minimum"


class TrackMaximum(_FlexibleTrackProjectionLength):
    """Tracks the length of the longest gradient: |g_c| = sum_i |g_max| cos(g_i, g_c).

    Examples:
        >>> rows = torch.tensor([[1.1, 0.0], [0.0, 2.3]])
        >>> fastconfig.ConFIG_update(rows, length_model=fastconfig.TrackMaximum())
        tensor([2.3000, 2.3000])
    """

    _length = "maximum"


class TrackHarmonicAverage(_FlexibleTrackProjectionLength):
    """Tracks the harmonic mean of the lengths, m / sum_i (1 / |g_i|); long gradients count little.

    Examples:
        >>> rows = torch.tensor([[1.1, 0.0], [0.0, 2.3]])
        >>> fastconfig.ConFIG_update(rows, length_model=fastconfig.TrackHarmonicAverage())
        tensor([1.4882, 1.4882])
    """

    _length = "harmonic"


class TrackArithmeticAverage(_FlexibleTrackProjectionLength):
    """Tracks the mean length of the non-zero gradients.

    Examples:
        >>> rows = torch.tensor([[1.1, 0.0], [0.0, 2.3]])
        >>> fastconfig.ConFIG_update(rows, length_model=fastconfig.TrackArithmeticAverage())
        tensor([1.7000, 1.7000])
    """

    _length = "arithmetic"


class TrackGeometricAverage(_FlexibleTrackProjectionLength):
    """Tracks the geometric mean of the lengths of the non-zero gradients; long gradients count little.

    Examples:
        >>> rows = torch.tensor([[1.1, 0.0], [0.0, 2.3]])
        >>> fastconfig.ConFIG_update(rows, length_model=fastconfig.TrackGeometricAverage())
        tensor([1.5906, 1.5906])
    """

    _length = "geometric"


class TrackSpecific(_FlexibleTrackProjectionLength):
    """Tracks the length of one gradient; if that one is zero, so is the update.

    Args:
        track_id: index of the tracked gradient, -m..m-1.

    Raises:
        TypeError: if track_id is no integer.

    Examples:
        >>> rows = torch.tensor([[1.1, 0.0], [0.0, 2.3]])
        >>> fastconfig.ConFIG_update(rows, length_model=fastconfig.TrackSpecific(1))
        tensor([2.3000, 2.3000])
    """

    _length = "specific"

    def __init__(self, track_id: int) -> None:
        super().__init__()
        self.track_id = whole("track_id", track_id)


#: models whose length follows from the Gram matrix; a subclass may have a form of its own
BY_GRAM = (
    ProjectionLength,
    TrackArithmeticAverage,
    TrackGeometricAverage,
    TrackHarmonicAverage,
    TrackMaximum,
    TrackMinimum,
    TrackSpecific,
)
_FORMS = frozenset({"get_length", "rescale_length", "_tracked_value"})


@lru_cache(maxsize=64)
def _overridden(kind: Any) -> bool:
    """Whether a subclass overrides the vector form, so that the Gram matrix is not enough."""
    for base in kind.__mro__:
        if vars(base).keys() & _FORMS:
            return base.__module__ != __name__ or base is LengthModel
    return True


def length_rule(model: LengthModel) -> tuple[str, int] | None:
    """(length, track_id) for :class:`fastconfig.methods.Rule`, or None for a user's own model."""
    kind: Any = type(model)
    if _overridden(kind) or vars(model).keys() & _FORMS:  # by its class, or by hand
        return None
    assert isinstance(model, _Projected)
    return None if model._length == "none" else (model._length, model.track_id)
