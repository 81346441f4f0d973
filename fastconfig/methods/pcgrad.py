"""PCGrad: each gradient loses what conflicts with the others, one after another (arXiv:2001.06782)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import reference
from ..checks import as_order, check_flag, check_losses
from ..gradients import Gradients, GradientsLike, Update
from ..merging import merge
from ..numbers import CPU, float64_device, sent
from .base import Rule
from .groups import by_groups
from .making import check_reduction, make_rule
from .operator import by_rule
from .stateful import DrawingOperator
from .watched import watched

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PCGrad(Rule):
    """Algorithm 1 of Yu et al. 2020.

    Args:
        order: (m, m) or (B, m, m) int64: row i lists the rows in the order in which gradient i is projected
            against them (i itself is skipped); None is 0..m-1 for every i.
        mean: average the projected gradients instead of adding them up.
    """

    native = "pcgrad"
    oracle = staticmethod(reference.pcgrad)

    def __init__(self, order: Tensor | None = None, mean: bool = False) -> None:
        super().__init__()
        self.order, self.mean = order, mean

    def unit_coefficients(
        self, cosines: Tensor, norms: Tensor, losses: Tensor | None, rcond: float
    ) -> Tensor:
        # b[i]: gradient i in units of the unit gradients, while it is projected; all i side by side
        m = norms.shape[-1]
        b = torch.diag_embed(norms)
        rows = torch.arange(m, device=norms.device)
        order = rows.expand(m, m) if self.order is None else self.order
        for step in range(m):
            j = order[..., step].expand(b.shape[:-1])
            against = torch.take_along_dim(cosines, j.unsqueeze(-1), dim=-2)  # row j(i) of C for each i
            along = (b * against).sum(-1).clamp(max=0)
            along = torch.where(j == rows, 0, along)
            b.scatter_add_(-1, j.unsqueeze(-1), -along.unsqueeze(-1))
        return b.mean(-2) if self.mean else b.sum(-2)


class PCGradOperator(DrawingOperator):
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Each gradient in turn loses its component along every original gradient that it (as projected so far)
    conflicts with; then all are added up.

    Args:
        reduction: "sum" (the paper's) or "mean" over the projected gradients.
        shuffle: visit the other gradients in random order, as the paper does; conflictfree's order 0..m-1
            by default.
        generator: source of the random order, on the CPU; by default torch's own, or for gradients spread
            over processes one that the operator starts from 0, because all ranks must draw alike.
        process_group: as in :func:`ConFIG_update`.

    Raises:
        TypeError, ValueError: for another reduction, and what is no flag or generator.

    Examples:
        >>> grads = torch.tensor([[1.0, 0.0], [-0.5, 1.0]])
        >>> fastconfig.PCGradOperator().calculate_gradient(grads)
        tensor([0.8000, 1.4000])
    """

    _rule, shuffle = PCGrad(), False  # also of conflictfree's objects, unpickled

    def __init__(
        self,
        *,
        reduction: str = "sum",
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(PCGrad(mean=check_reduction(reduction) == "mean"), generator, process_group)
        check_flag("shuffle", shuffle)
        self.shuffle = shuffle

    @by_rule
    def calculate_gradient(
        self,
        grads: GradientsLike,
        losses: Sequence[Any] | None = None,
        *,
        order: Any = None,
    ) -> Update:
        """Merge the gradients.

        Args:
            grads: m gradients, in any of the forms of :func:`ConFIG_update`.
            losses: not used.
            order: (m, m) or (B, m, m) integers, a tensor or nested lists: row i lists the gradients in the
                order in which gradient i is projected against them (i itself is skipped); overrides
                ``shuffle``.

        Returns:
            The merged gradient, in the form of the gradients.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        if order is None and (not self.shuffle or self._groups is not None):
            return super().calculate_gradient(grads, losses)
        if order is not None:
            order = as_order(order)
        if self._groups is not None:
            return by_groups(self, grads, losses, order=order)
        if torch.compiler.is_compiling():
            from ..graph import can_compile, compiled_update, outside_the_graph

            if order is None or self.monitor is not None or not can_compile(grads, self.process_group):
                return outside_the_graph(self.calculate_gradient, grads, losses, order=order)
            return compiled_update(grads, "pcgrad", order=order, mean=self._rule.mean)
        rows = Gradients(grads, group=self.process_group)
        if losses is not None:
            check_losses(losses, rows.m)
        return merge(rows, watched(self.rule_for(rows, order), self.monitor, losses))

    @property
    def fixed_rule(self) -> Rule | None:
        """The rule, if it is the same for all gradients; None with ``shuffle``."""
        return None if self.shuffle else self._rule

    def rule_for(self, grads: Gradients, order: Tensor | None = None) -> Rule:
        """How coefficients of these gradients follow from G; in a new random order with ``shuffle``."""
        if order is None:
            return super().rule_for(grads)
        device, order = float64_device(grads.device), as_order(order)
        given: Any = {
            "batch": grads.batch,
            "order": order,
            "reduction": "mean" if self._rule.mean else "sum",
        }
        if order.device.type == "cpu" != device.type:
            make_rule("pcgrad", grads.m, CPU, **given)  # looks for permutations, which a device is not asked
        return make_rule("pcgrad", grads.m, device, **given)

    def rule_at(self, norms: tuple[int, ...], device: torch.device, spread: bool = False) -> Rule:
        """The rule of the next call; in a new random order with ``shuffle``."""
        if not self.shuffle:
            return self._rule
        return PCGrad(sent(self.random_order(norms, spread), device), self._rule.mean)
