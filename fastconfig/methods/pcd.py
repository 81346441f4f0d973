"""PCD: the first gradient comes first, and each other one gets a share of progress (arXiv:2606.29521)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import as_tensor, check_rcond, fraction, number
from .base import Rule
from .solvers import nearest_in_cone
from .stateful import StatefulOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PCD(Rule):
    """Priority-constrained descent (2026): with s_i = 1 / sqrt(v_i + eps) and h_i = s_i g_i,

        d = argmin |d - h_1|^2 / 2  subject to  h_j . d >= tau |h_j|^2 for j = 2..m,

    brought to the length of g_1. v_i is the moving average of |g_i|^2 with constant beta, divided by
    1 - beta^t. If the constraints contradict each other they are dropped: the update is g_1. It is zero
    where g_1 is zero, and where d is. The constraint of a zero gradient is met by every d.

    Args:
        tau: share of progress, 0 to 1; one for all, or m - 1 of them.
        beta: constant of the moving average, 0 to 1 (excluded).
        eps: added to it; the only scale in the method.
        averages: (..., m + 1) float64, the moving averages and, at last, the number of calls, which each call
            changes in place; None is a first call.
        rcond: a gradient whose part apart from those of other constraints is below this, squared and
            relative, counts as dependent on them; None takes the dtype's.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """

    native = "pcd"
    state_dims = 1

    def __init__(
        self,
        tau: Any = 0.02,
        beta: float = 0.999,
        eps: float = 1e-8,
        averages: Tensor | None = None,
        *,
        rcond: float | None = None,
    ) -> None:
        super().__init__(rcond=rcond)
        wanted = "a number from 0 to 1, or m - 1 of them"
        given = as_tensor("tau", tau, wanted, torch.float64).detach()
        self.tau = given.to("cpu", torch.float64, copy=True).contiguous()
        if self.tau.dim() > 1 or not bool(((self.tau >= 0) & (self.tau <= 1)).all()):
            raise ValueError(f"tau: got {tau}, want {wanted}")
        self.beta = float(fraction("beta", beta))
        if not number("eps", eps) >= 0:
            raise ValueError(f"eps: got {eps}, want at least 0")
        self.eps, self.state = float(eps), averages
        self.weights = self.tau if self.tau.dim() == 1 else None
        self.parameters = (0.0 if self.tau.dim() == 1 else float(self.tau), self.beta, self.eps)

    def for_rows(self, m: int, device: torch.device) -> Rule:
        if self.weights is None:
            return self
        if len(self.weights) != m - 1:
            raise ValueError(f"tau: got {len(self.weights)} of them for {m} gradients, want {m - 1}")
        if self.weights.device == device:
            return self
        made = copy(self)
        made.weights = self.placed(self.weights, device)
        return made

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        m = norms.shape[-1]
        tau = self.for_rows(m, norms.device).weights
        finite = norms.isfinite().all(-1, keepdim=True)
        safe = torch.where(finite, norms, 0)
        cosines = torch.where(
            finite.unsqueeze(-1), cosines, torch.eye(m, dtype=norms.dtype, device=norms.device)
        )
        lengths = safe * self._scales(safe, finite)  # of the h_i
        shares = lengths[..., 1:] * (self.parameters[0] if tau is None else tau)
        first, others = cosines[..., 0, 1:], cosines[..., 1:, 1:]
        wanted = torch.where(lengths[..., 1:] > 0, shares - lengths[..., :1] * first, 0)
        added, met = nearest_in_cone(others, wanted, lengths[..., :1], rcond)
        x = torch.cat([lengths[..., :1], torch.where(met.unsqueeze(-1), added, 0)], -1)
        squared = (x * (cosines @ x.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)
        present = (squared > rcond * x.abs().sum(-1, keepdim=True).square()) & (norms[..., :1] > 0)
        return torch.where(present, x * norms[..., :1] / squared.sqrt(), 0)

    def _scales(self, norms: Tensor, finite: Tensor) -> Tensor:
        """s_i, with the moving average one call further where the gradients are finite."""
        average = norms.square()
        if self.state is not None:
            averages, calls = self.state[..., :-1], self.state[..., -1:]
            moved = self.beta * averages + (1 - self.beta) * average
            averages.copy_(torch.where(finite, moved, averages))
            calls.add_(finite)
            average = averages / (1 - self.beta**calls)
        root = (average + self.eps).sqrt()
        return torch.where(root > 0, 1 / root, 0)

    @staticmethod
    def oracle(rows: Tensor, tau: Any = 0.02, eps: float = 1e-8, squares: Tensor | None = None) -> Tensor:
        """The paper's program on the full rows in float64, by trying every set of constraints.

        ``squares`` are the bias-corrected averages; by default |g_i|^2, as in a first call.
        """
        full = rows.double()
        squares = full.square().sum(1) if squares is None else squares
        roots = (squares + eps).sqrt()[:, None]
        scaled = torch.where(roots > 0, full / roots, 0)
        h, others = scaled[0], list(scaled[1:])
        taus = torch.as_tensor(tau, dtype=torch.float64, device="cpu").expand(len(others)).tolist()
        needs = [(row, t * float(row @ row)) for row, t in zip(others, taus, strict=True) if row.any()]
        size = full[0].norm()
        for count in range(len(needs) + 1):
            for active in combinations(needs, count):
                d = h
                if active:
                    q, r = torch.linalg.qr(torch.stack([row for row, _ in active]).T)
                    lack = full.new_tensor([need - float(row @ h) for row, need in active])
                    if len(r) < count or (r.diagonal().abs() <= 1e-12 * r.norm(dim=0)).any():
                        continue
                    along = torch.linalg.solve_triangular(r.T, lack[:, None], upper=False)
                    held = torch.linalg.solve_triangular(r, along, upper=True)
                    if (held < 0).any():
                        continue
                    d = h + (q @ along)[:, 0]
                sizes = float(h.norm() + d.norm())
                if all(float(row @ d) >= need - 1e-12 * sizes * float(row.norm()) for row, need in needs):
                    length = float(d.norm())
                    return d * (size / length) if length > 1e-12 * float(h.norm()) else torch.zeros_like(d)
        return full[0]


class PCDOperator(StatefulOperator):
    """Priority-constrained descent; see :class:`PCD`. The first gradient is that of the primary objective.

    It keeps the moving averages of the squared norms from call to call.

    Args:
        tau, beta, eps: as in :class:`PCD`.
        rcond, process_group: as in :func:`fastconfig.ConFIG_update`.

    Raises:
        TypeError, ValueError: as for :class:`PCD`.

    Examples:
        >>> operator = fastconfig.PCDOperator(tau=0.02)
        >>> for _ in range(3):
        ...     update = operator.calculate_gradient(torch.randn(2, 10))
    """

    _rule: PCD

    def __init__(
        self,
        tau: Any = 0.02,
        beta: float = 0.999,
        eps: float = 1e-8,
        *,
        rcond: float | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(PCD(tau, beta, eps, rcond=check_rcond(rcond)), process_group)

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call; it changes the averages."""
        rule, m = copy(self._rule.for_rows(norms[-1], device)), norms[-1]
        rule.state = self._kept("averages", (*norms[:-1], m + 1), device)
        return rule

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state_dict`, whose tensors are copied; one of version 0.2.0, too.

        Raises:
            TypeError: for what is none.
        """
        super().load_state_dict(state)
        for name in [name for name in self._state if name.endswith("squares")]:  # one of two tensors then
            prefix = name.removesuffix("squares")
            both = self._state.pop(name), self._state.pop(f"{prefix}steps")
            self._state[f"{prefix}averages"] = torch.cat(both, -1)
