"""GradVac: cosines of gradients are raised to their moving averages (arXiv:2010.05874)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import check_flag, check_rcond, number
from ..numbers import sent
from .base import Rule
from .stateful import DrawingOperator, StatefulOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class GradVac(Rule):
    """Algorithm 1 of Wang et al. 2021.

    Gradient i goes through the others in a random order. Where its cosine phi with g_j is below the target
    t_ij, it takes |g_i'| (t sqrt(1 - phi^2) - phi sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2)) of g_j, which gives
    it that cosine (equation 3); then t_ij <- (1 - beta) t_ij + beta phi (equation 4). The update is the sum.

    A target that all but reaches 1 would take without bound: 1 - t^2 counts as rcond at least. Between a
    zero gradient and any other there is no cosine: nothing is taken, and their target stays.

    Args:
        beta: weight of a new cosine in its target, 0 to 1; 0.5 as in TorchJD and LibMTL (the paper's
            experiments have 1e-2).
        order: (..., m, m) int64: row i lists the gradients in the order in which i goes through them (i
            itself is skipped); None is 0..m-1 for every i.
        targets: (..., m, m) float64, which each call changes in place; None is zeros.
        rcond: least 1 - t^2; None takes the dtype's.

    Raises:
        TypeError, ValueError: for another beta.
    """

    native = "gradvac"

    def __init__(
        self,
        beta: float = 0.5,
        order: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        rcond: float | None = None,
    ) -> None:
        super().__init__(rcond=rcond)
        if not 0 <= number("beta", beta) <= 1:
            raise ValueError(f"beta: got {beta}, want a number from 0 to 1")
        self.beta, self.order, self.state = float(beta), order, targets
        self.parameters = (self.beta,)

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m = norms.shape[-1]
        finite = norms.isfinite().all(-1)[..., None, None]
        cosines = torch.where(finite, cosines, torch.eye(m, dtype=norms.dtype, device=norms.device))
        targets = torch.zeros_like(cosines) if self.state is None else self.state
        # b[i]: gradient i over |g_i|, in units of the unit gradients, while it is raised; all i side by side
        b = torch.eye(m, dtype=norms.dtype, device=norms.device).expand_as(cosines).clone()
        along = cosines.clone()  # its products with all unit gradients
        rows = torch.arange(m, device=norms.device)
        order = rows.expand(m, m) if self.order is None else self.order.to(norms.device)
        alive = norms > 0
        for step in range(m):
            j = order[..., step].expand(b.shape[:-1])
            at = j.unsqueeze(-1)
            squared = (b * along).sum(-1)
            length = torch.where(squared > rcond * b.abs().sum(-1).square(), squared, 0).sqrt()
            pair = alive & alive.gather(-1, j) & (j != rows) & finite[..., 0]
            cosine = torch.where(length > 0, along.gather(-1, at).squeeze(-1) / length, 0).clamp(-1, 1)
            target = targets.gather(-1, at).squeeze(-1)
            sine, wanted = (
                (1 - cosine.square()).sqrt(),
                (1 - target.square()).clamp(min=max(rcond, 2**-52)).sqrt(),
            )
            taken = length * (target * sine - cosine * wanted) / wanted
            taken = torch.where(pair & (cosine < target), taken, 0).unsqueeze(-1)
            b.scatter_add_(-1, at, taken)
            along += taken * torch.take_along_dim(cosines, at, dim=-2)
            if self.state is not None:
                moved = torch.where(pair, target.lerp(cosine, self.beta), target)
                self.state.scatter_(-1, at, moved.unsqueeze(-1))
        return (norms.unsqueeze(-1) * b).sum(-2)

    @staticmethod
    def oracle(
        rows: Tensor, targets: Tensor | None = None, beta: float = 0.5, order: Tensor | None = None
    ) -> Tensor:
        """Algorithm 1 on the full rows, in float64; changes ``targets`` as the paper does."""
        full = rows.double()
        m = len(full)
        targets = full.new_zeros(m, m) if targets is None else targets
        total = torch.zeros_like(full[0])
        for i in range(m):
            g = full[i].clone()
            for j in range(m) if order is None else order[i].tolist():
                if j == i or not g.any() or not full[j].any():
                    continue
                phi, t = float(g @ full[j] / (g.norm() * full[j].norm())), float(targets[i, j])
                if phi < t:
                    root = (1 - t * t) ** 0.5
                    factor = t * max(1 - phi * phi, 0) ** 0.5 - phi * root
                    g += g.norm() * factor / (full[j].norm() * root) * full[j]
                targets[i, j] = (1 - beta) * t + beta * phi
            total += g
        return total


class GradVacOperator(StatefulOperator, DrawingOperator):
    """GradVac (Wang et al. 2021); see :class:`GradVac`. It keeps the m x m targets from call to call.

    The paper's granularities are :attr:`groups`: None for the whole model, "parameter" for all layers.

    Args:
        beta: weight of a new cosine in its target, 0 to 1.
        shuffle: go through the other gradients in random order, as the paper does; else 0..m-1.
        generator: source of the order, on the CPU; by default torch's own, or for gradients spread over
            processes one that the operator starts from 0, because all ranks must draw alike.
        rcond, process_group: as in :func:`fastconfig.ConFIG_update`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.

    Examples:
        >>> operator = fastconfig.GradVacOperator(beta=0.5)
        >>> for _ in range(3):  # the targets move with every step
        ...     update = operator.calculate_gradient(torch.randn(2, 10))
    """

    _rule: GradVac

    def __init__(
        self,
        beta: float = 0.5,
        *,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(GradVac(beta, rcond=check_rcond(rcond)), generator, process_group)
        check_flag("shuffle", shuffle)
        self.shuffle = shuffle

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call, in a new random order; it changes the targets."""
        order = sent(self.random_order(norms, spread), device) if self.shuffle else None
        targets = self._kept("targets", (*norms, norms[-1]), device)
        return GradVac(self._rule.beta, order, targets, rcond=self._rule.rcond)
