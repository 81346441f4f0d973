"""Nash-MTL: the bargaining solution, G alpha = 1 / alpha (arXiv:2202.01017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import reference
from ..checks import check_flag, check_rcond, not_negative
from .base import Rule
from .newton import nash_point
from .operator import GramOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class NashMTL(Rule):
    """alpha > 0 with G alpha = 1 / alpha, entry by entry.

    Navon et al. 2022, "Multi-Task Learning as a Bargaining Game", claim 3.1: the update v = sum_i alpha_i g_i
    has the greatest product of all g_i . v for its length. With b = alpha d it is C b = 1 / b: the lengths of
    the gradients drop out, only their directions count, and v has the length sqrt(m). ``max_norm`` then cuts
    it, as in the authors' code; with 1, the default, the update is a unit vector.

    The equation is solved to rounding, by Newton's method on 1/2 b^T C b - sum log b. The authors and TorchJD
    take up to 20 linearised programs and stop at a residual of 1e-3.

    No such alpha exists where a combination of the gradients with coefficients that are not negative
    vanishes (opposed gradients): they are Pareto stationary, nothing can be agreed on, and the update is
    zero. That is b^T C b <= rcond b^T b, with 1e-13 whatever the gradients' dtype, as G is exact in all. Zero
    gradients drop out.

    Args:
        max_norm: the greatest length of the update; None, or TorchJD's 0, leaves it.
        relative: multiply by the root of the Frobenius norm of G, before ``max_norm``; the length then
            follows those of the gradients.
    """

    native = "nash"
    rank_dtype = torch.float64

    def __init__(
        self, max_norm: float | None = 1.0, relative: bool = False, *, rcond: float | None = None
    ) -> None:
        super().__init__(rcond=rcond)
        if max_norm is not None:
            max_norm = not_negative("max_norm", max_norm, "None or a finite number >= 0")
        check_flag("relative", relative)
        self.max_norm, self.relative = max_norm, bool(relative)
        self.parameters = (max_norm or 0.0, float(relative))

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        alive = norms > 0
        b, exists = nash_point(cosines, alive, rcond)
        length = alive.to(norms.dtype).sum(-1, keepdim=True).sqrt()
        scale = torch.ones_like(length)
        if self.relative:
            most = norms.amax(-1, keepdim=True)
            r = torch.where(alive, norms / most, 0)
            squares = (r.unsqueeze(-1) * cosines * r.unsqueeze(-2)).square()
            scale = most * squares.sum((-2, -1)).pow(0.25).unsqueeze(-1)
        if self.max_norm:
            scale = torch.minimum(scale, self.max_norm / length)
        return torch.where(exists, scale * b, 0)

    @staticmethod
    def oracle(
        rows: Tensor, max_norm: float | None = 1.0, relative: bool = False, *, rcond: float | None = None
    ) -> Tensor:
        """v of the greatest sum_i log(u_i . v) - |v|^2 / 2, on the rows.

        Args:
            rows: (m, N) gradients.
            max_norm, relative: as above.
            rcond: cut-off on the squared length of the shortest convex combination of the unit gradients.

        Returns:
            (N,) float64.
        """
        v = reference.fair(rows, 1.0, rcond=rcond)
        if relative:
            v = v * torch.linalg.matrix_norm(reference.gram(rows)).sqrt()
        length = float(v.norm())
        return v * (max_norm / length) if max_norm and length > max_norm else v


class NashMTLOperator(GramOperator):
    """Nash-MTL (Navon et al. 2022, arXiv:2202.01017): the greatest product of all g_i . v.

    Only the directions of the gradients count; opposed gradients give zero. What is exact and where the
    limits are: :class:`fastconfig.methods.NashMTL`.

    Args:
        max_norm: the greatest length of the update; None leaves it, which is sqrt(m) then.
        relative: let the length follow those of the gradients: multiply by the root of the Frobenius norm of
            G, before ``max_norm``.
        rcond, process_group: as in :func:`ConFIG_update`; rcond is 1e-13 by default.

    Raises:
        TypeError, ValueError: for a ``max_norm`` that is no number, or negative, and the like.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.NashMTLOperator().calculate_gradient(grads)
        tensor([0.5257, 0.8507])
    """

    _rule = NashMTL()

    def __init__(
        self,
        max_norm: float | None = 1.0,
        *,
        relative: bool = False,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(NashMTL(max_norm, relative, rcond=check_rcond(rcond)), process_group)
