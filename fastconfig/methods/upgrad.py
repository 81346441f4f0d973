"""UPGrad: every gradient projected so that it conflicts with none, then the mean (arXiv:2406.16232)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .preference import PreferenceOperator, PreferringRule, preferences
from .solvers import dual_cone


class UPGrad(PreferringRule):
    """The mean of the projections of all gradients on the dual cone {v: g_j . v >= 0 for all j}.

    Quinton and Rey 2024, "Jacobian Descent for Multi-Objective Optimization", section 3; by proposition 1
    there the projection of g_i is sum_j w_j g_j with w of least w^T G w among w >= e_i. The update conflicts
    with no gradient and is linear in the length of each. Here the program is solved exactly, and between
    unit gradients, so that lengths do not matter to it. TorchJD divides G by its trace, adds 1e-4 to the
    diagonal and takes a trace below 1e-4 for zero: its update conflicts where norms differ by a hundred.

    A projection is zero where rounding of G leaves nothing certain of it: where its squared length is at most
    rcond / 8 times the square of its parts' summed lengths, as for opposed gradients. No cosine of the update
    with a gradient is below -16 eps times sum_i c_i |g_i| / |update| (of more than 8 gradients -(m + 8) eps),
    which is what rounding of G and of the coefficients may cost: -4e-15 where the parts hardly cancel, -3e-8
    where they nearly do. rcond is 1e-13 whatever the gradients' dtype, as G is exact in all. A zero gradient
    counts in the mean, and bounds nothing.

    Args:
        weights: (m,) or (B, m) float64, not negative: the preference vector; None is 1/m each.
    """

    native = "upgrad"
    rank_dtype = torch.float64

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m = norms.shape[-1]
        programs = torch.eye(m, dtype=norms.dtype, device=norms.device).expand(cosines.shape)
        w = dual_cone(cosines.unsqueeze(-3), programs, rcond)
        return (self.shares(norms).unsqueeze(-2) @ w).squeeze(-2)  # sums of what is not negative

    @staticmethod
    def oracle(rows: Tensor, weights: Tensor | None = None, *, rcond: float | None = None) -> Tensor:
        """The projections one by one, by least squares on the rows.

        Args:
            rows: (m, N) gradients.
            weights: (m,) preferences; 1/m each by default.
            rcond: cut-off on squared lengths.

        Returns:
            (N,) float64.
        """
        if not torch.isfinite(rows).all():
            return reference._all_nan(rows)
        programs = torch.diag(preferences(weights, rows))
        q, r = torch.linalg.qr(rows.double().T)  # projections commute with rotations
        return q @ torch.stack([reference.onto_dual_cone(r.T, e, rcond) for e in programs]).sum(0)


class UPGradOperator(PreferenceOperator):
    """UPGrad (Quinton and Rey 2024, arXiv:2406.16232): conflicts with no gradient, whatever their lengths.

    The mean of all gradients' projections on the dual cone {v: g_j . v >= 0 for all j}; opposed gradients
    give zero. What is exact and where the limits are: :class:`fastconfig.methods.UPGrad`.

    Args:
        pref_vector: (m,) finite numbers, not negative, a tensor or a list: what each projection counts; 1/m
            each by default.
        rcond, process_group: as in :func:`ConFIG_update`; rcond is 1e-13 by default.

    Raises:
        TypeError, ValueError: for another ``pref_vector`` or ``rcond``.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.UPGradOperator().calculate_gradient(grads)
        tensor([0.4000, 0.7000])
    """

    _kind = UPGrad
    _rule = UPGrad()
