"""DualProj: the mean gradient, projected so that it conflicts with none (Lopez-Paz and Ranzato 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .preference import PreferenceOperator, PreferringRule, preferences
from .solvers import dual_cone


class DualProj(PreferringRule):
    """The projection of the gradients' mean on the dual cone {v: g_j . v >= 0 for all j}.

    "Gradient Episodic Memory for Continual Learning" (arXiv:1706.08840), equation 11, of the mean of all
    gradients as TorchJD has it under this name. What is zero, rcond, and where TorchJD's answer conflicts is
    said at :class:`fastconfig.methods.UPGrad`.

    Args:
        weights: (m,) or (B, m) float64, not negative: the preference vector; None is 1/m each.
    """

    native = "dualproj"
    rank_dtype = torch.float64

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        shares = self.shares(norms)
        largest = shares.amax(-1, keepdim=True)
        return largest * dual_cone(cosines, torch.where(largest > 0, shares / largest, 0), rcond)

    @staticmethod
    def oracle(rows: Tensor, weights: Tensor | None = None, *, rcond: float | None = None) -> Tensor:
        """By least squares on the rows.

        Args:
            rows: (m, N) gradients.
            weights: (m,) preferences; 1/m each by default.
            rcond: cut-off on squared lengths.

        Returns:
            (N,) float64.
        """
        return reference.onto_dual_cone(rows, preferences(weights, rows), rcond)


class DualProjOperator(PreferenceOperator):
    """DualProj (Lopez-Paz and Ranzato 2017, arXiv:1706.08840): the mean gradient, freed of conflict.

    What is closest to the mean of all vectors that conflict with no gradient: its projection on the dual
    cone {v: g_j . v >= 0 for all j}.

    Args:
        pref_vector: (m,) finite numbers, not negative, a tensor or a list: what each gradient counts in the
            mean; 1/m each by default.
        rcond, process_group: as in :func:`ConFIG_update`; rcond is 1e-13 by default.

    Raises:
        TypeError, ValueError: for another ``pref_vector`` or ``rcond``.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.DualProjOperator().calculate_gradient(grads)
        tensor([0.2500, 0.5000])
    """

    _kind = DualProj
    _rule = DualProj()
