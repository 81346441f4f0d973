"""PCGrad and PPCGrad for PyTorch: ``pack_grad``, ``project_conflicting`` and ``pc_backward``.

    pcgrad = PPCGrad(reduction="mean")
    grads = pcgrad.pc_backward([loss_1, loss_2], model.parameters())  # one tensor a parameter

or around an optimizer, as the PyTorch file that is copied from project to project does it:

    optimizer = PCGrad(torch.optim.Adam(model.parameters()))
    optimizer.zero_grad()
    optimizer.pc_backward([loss_1, loss_2])
    optimizer.step()

:mod:`fastconfig.tensorflow` has the same two classes for ``tf.GradientTape``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .backends import choose
from .config_update import merge
from .grad_operator import PCGradOperator, PPCGradOperator
from .gradients import Gradients
from .methods import REDUCTIONS
from .ops import gram_of

__all__ = ["PCGrad", "PPCGrad"]


class _Projection:
    """What both have in common; ``_operators`` merge by either reduction."""

    _operators: Mapping[str, PCGradOperator | PPCGradOperator]

    def __init__(self, optimizer: Optimizer | str | None, reduction: str) -> None:
        if isinstance(optimizer, str):  # the reduction, by position
            reduction, optimizer = optimizer, None
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: got {reduction!r}, want 'mean' or 'sum'")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: got a {type(optimizer).__name__}, want a torch.optim.Optimizer")
        self.reduction = reduction
        self._optimizer = optimizer

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that this one was made around.

        Raises:
            TypeError: if there is none.
        """
        if self._optimizer is None:
            raise TypeError(f"optimizer: got none, want {type(self).__name__}(optimizer)")
        return self._optimizer

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's ``zero_grad``."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Any = None) -> Any:
        """The optimizer's ``step``."""
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def pack_grad(
        self, losses: Sequence[Tensor], parameters: Iterable[Tensor], *, retain_graph: bool = False
    ) -> tuple[list[Tensor], list[torch.Size], list[Tensor]]:
        """The gradient of every loss, flattened.

        Args:
            losses: m losses; one with several elements is summed.
            parameters: tensors that the gradients are taken of.
            retain_graph: keep the graph after the last loss.

        Returns:
            m gradients (N,), zeros where a parameter is unconnected to the loss; the parameters' shapes; m
            masks (N,) of the gradients' dtype, 1 where there was a gradient.

        Raises:
            TypeError, ValueError: as :meth:`pc_backward`.
        """
        parameters = _parameters(parameters)
        rows = _gradients(losses, parameters, retain_graph)
        masks = [
            torch.cat(
                [torch.full((p.numel(),), g is not None, dtype=p.dtype, device=p.device)
                 for g, p in zip(row, parameters, strict=True)]
            )
            for row in rows
        ]  # fmt: skip
        flat = [
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).detach().reshape(-1)
                 for g, p in zip(row, parameters, strict=True)]
            )
            for row in rows
        ]  # fmt: skip
        return flat, [p.shape for p in parameters], masks

    def project_conflicting(
        self, grads: Sequence[Tensor] | Tensor, has_grads: Sequence[Tensor] | None = None, **given: Any
    ) -> Tensor:
        """Merge flattened gradients.

        Args:
            grads: m vectors (N,) of one dtype, or a tensor (m, N).
            has_grads: m masks (N,), 0 or 1: which elements a task has. Those that all have are averaged or
                added up by ``reduction``, the others are added up. All ones by default.

        Returns:
            (N,) in the dtype of the gradients.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        rows = Gradients(grads)
        m, n = rows.m, rows.n
        if has_grads is not None:
            if len(has_grads) != m:
                raise ValueError(f"has_grads: got {len(has_grads)}, want {m}: one a gradient")
            for i, mask in enumerate(has_grads):
                if mask.shape != (n,):
                    raise ValueError(f"has_grads[{i}]: got shape {tuple(mask.shape)}, want {(n,)}")
        whole = has_grads is None or self.reduction == "sum" or _all_there(has_grads)
        operator = self._operators[self.reduction if whole else "sum"]
        update = merge(rows, operator.rule_for(rows, **given))
        assert isinstance(update, Tensor)
        if has_grads is None or whole:
            return update
        shared = has_grads[0].to(update.dtype, copy=True)
        for mask in has_grads[1:]:
            shared.mul_(mask)
        return update.div_(shared.mul_(m - 1).add_(1))

    def pc_backward(
        self,
        losses: Sequence[Tensor],
        parameters: Iterable[Tensor] | None = None,
        *,
        retain_graph: bool = False,
        **given: Any,
    ) -> list[Tensor] | None:
        """Take the losses' gradients and merge them, parameter by parameter: nothing is flattened.

        Args:
            losses: m losses; one with several elements is summed.
            parameters: tensors that the gradients are taken of; by default those of the optimizer, whose
                ``.grad`` is written then.
            retain_graph: keep the graph after the last loss.

        Returns:
            The merged gradient in the shapes and dtypes of the parameters, zeros for one that no loss is
            connected to; None where it was written to ``.grad``.

        Raises:
            TypeError: for what is no sequence of tensors; naming the argument.
            ValueError: for an empty list, or if no parameter is connected to any loss.
        """
        own = parameters is None
        if parameters is None:
            groups = self.optimizer.param_groups
            parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        parameters = _parameters(parameters)
        rows = _gradients(losses, parameters, retain_graph)
        merged = self._merge(rows, parameters, **given)
        if not own:
            return merged
        for parameter, grad in zip(parameters, merged, strict=True):
            parameter.grad = grad
        return None

    def _merge(
        self, rows: list[tuple[Tensor | None, ...]], parameters: list[Tensor], **given: Any
    ) -> list[Tensor]:
        """One tensor a parameter; parameters of different kinds share the coefficients."""
        averaged = self.reduction == "mean"
        groups: dict[tuple[torch.dtype, torch.device, bool], list[int]] = {}
        for p, column in enumerate(zip(*rows, strict=True)):
            missing = sum(piece is None for piece in column)
            if missing < len(rows):
                key = parameters[p].dtype, parameters[p].device, averaged and missing == 0
                groups.setdefault(key, []).append(p)
        merged: list[Tensor | None] = [None] * len(parameters)
        for places, update in zip(groups.values(), self._updates(rows, groups, **given), strict=True):
            for p, piece in zip(places, update, strict=True):
                merged[p] = piece
        return [
            torch.zeros_like(parameter) if piece is None else piece
            for piece, parameter in zip(merged, parameters, strict=True)
        ]

    def _updates(
        self,
        rows: list[tuple[Tensor | None, ...]],
        groups: dict[tuple[torch.dtype, torch.device, bool], list[int]],
        **given: Any,
    ) -> list[Any]:
        """The update of every group, in the order of its parameters."""
        parts = [Gradients([[row[p] for p in places] for row in rows]) for places in groups.values()]
        means = [mean for _, _, mean in groups]
        first = parts[0]
        if len(parts) == 1:
            operator = self._operators["mean" if means[0] else "sum"]
            return [merge(first, operator.rule_for(first, **given))]
        gram = gram_of(first)
        for part in parts[1:]:
            gram = gram + gram_of(part).to(gram.device)
        rule = self._operators["sum"].rule_for(first, **given)
        c = choose(first).coefficients(gram, rule, first)
        updates = []
        for part, mean in zip(parts, means, strict=True):
            update = part.new_update()
            choose(part).combine(part, (c / part.m if mean else c).to(part.device), update)
            updates.append(part.as_given(update))
        return updates


class PCGrad(_Projection):
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Each task's gradient in turn, over the others in random order, loses its component along every original
    gradient that it, as projected so far, conflicts with. A zero gradient conflicts with nothing; NaN or Inf
    in any gradient gives an all-NaN result.

    ``project_conflicting`` and ``pc_backward`` also take ``order``, an (m, m) tensor: row i lists tasks in
    the order in which gradient i is projected against them (i itself is skipped); it overrides ``shuffle``.

    Args:
        optimizer: to be wrapped, or None.
        reduction: "mean" or "sum" over the tasks, of elements that all of them have.
        shuffle: False takes the others in the order 0..m-1 instead.
        generator: source of the random order, on the CPU; torch's default one by default.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """

    def __init__(
        self,
        optimizer: Optimizer | str | None = None,
        reduction: str = "mean",
        *,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(optimizer, reduction)
        self._operators = {
            each: PCGradOperator(reduction=each, shuffle=shuffle, generator=generator) for each in REDUCTIONS
        }


class PPCGrad(_Projection):
    """PCGrad with all projections taken against the original gradients, so without an order.

    g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, merged over i.

    Args:
        optimizer: to be wrapped, or None.
        reduction: "mean" or "sum" over the tasks, of elements that all of them have.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """

    def __init__(self, optimizer: Optimizer | str | None = None, reduction: str = "mean") -> None:
        super().__init__(optimizer, reduction)
        self._operators = {each: PPCGradOperator(reduction=each) for each in REDUCTIONS}


def _gradients(
    losses: Sequence[Tensor], parameters: list[Tensor], retain_graph: bool
) -> list[tuple[Tensor | None, ...]]:
    """The gradients of every loss; None where a parameter is unconnected."""
    if isinstance(losses, Tensor) or not isinstance(losses, Sequence):
        raise TypeError(f"losses: got a {type(losses).__name__}, want a list of tensors")
    if not losses:
        raise ValueError("losses: got an empty list, want at least one")
    rows: list[tuple[Tensor | None, ...]] = []
    for i, loss in enumerate(losses):
        if not isinstance(loss, Tensor):
            raise TypeError(f"losses[{i}]: got a {type(loss).__name__}, want a tensor")
        if not loss.requires_grad:  # of nothing that is learned
            rows.append((None,) * len(parameters))
            continue
        keep = retain_graph or i + 1 < len(losses)
        rows.append(torch.autograd.grad(loss.sum(), parameters, retain_graph=keep, allow_unused=True))
    if all(piece is None for row in rows for piece in row):
        raise ValueError("losses: got no gradient of any parameter, want at least one that is connected")
    return rows


def _all_there(masks: Sequence[Tensor]) -> bool:
    """Whether masks are all ones, where finding out does not wait for a device: cheaper than merging them."""
    return all(
        mask.device.type == "cpu" and bool(mask.all() if mask.dtype is torch.bool else mask.amin() > 0)
        for mask in masks
    )


def _parameters(parameters: Iterable[Tensor]) -> list[Tensor]:
    listed = list(parameters)
    if not listed:
        raise ValueError("parameters: got an empty list, want at least one")
    for i, parameter in enumerate(listed):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters[{i}]: got a {type(parameter).__name__}, want a tensor")
    return listed
