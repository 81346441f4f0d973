"""PCGrad and PPCGrad for PyTorch: ``pack_grad``, ``project_conflicting`` and ``pc_backward``.

    pcgrad = PPCGrad(reduction="mean")
    grads = pcgrad.pc_backward([loss_1, loss_2], model.parameters())  # one tensor a parameter

or around an optimizer, as the PyTorch file that is copied from project to project does it:

    optimizer = PCGrad(torch.optim.Adam(model.parameters()))
    optimizer.zero_grad()
    optimizer.pc_backward([loss_1, loss_2])
    optimizer.step()

Such an object is an optimizer itself, for schedulers, scalers and checkpoints.

:mod:`fastconfig.tensorflow` has the same two classes for ``tf.GradientTape``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .backends import choose
from .checks import got
from .grad_operator import PCGradOperator, PPCGradOperator
from .gradients import Gradients
from .gradients.checks import check_dense
from .gradients.pairs import as_real, real_numel
from .gradients.shards import any_dtensor
from .merging import merge
from .methods import REDUCTIONS, Rule
from .methods.watched import Held, watched
from .network import joined, write
from .numbers import DTYPES, dtype_names
from .ops import gram_of
from .ranks.replicas import fellow_parameters, replica_group
from .training.graphs import leaves_of, nodes_of
from .training.passes import Row, checked_parameters, collected, kept, listed, passes, summed
from .training.replicas import averaged, exchanged
from .wrapped_optimizer import WrappedOptimizer

__all__ = ["PCGrad", "PPCGrad"]


_MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *DTYPES)


class _Projection(WrappedOptimizer):
    """Base of both classes; ``_operators`` has an operator for each reduction."""

    _operators: Mapping[str, PCGradOperator | PPCGradOperator]
    #: a fastconfig.monitor.Monitor; "mean" counts for it only where it does for all parameters
    monitor: Any = None

    def __init__(self, optimizer: Optimizer | str | None, reduction: str) -> None:
        if isinstance(optimizer, str):  # the reduction, by position
            reduction, optimizer = optimizer, None
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction: got {reduction!r}, want 'mean' or 'sum'")
        super().__init__(optimizer)
        self.reduction = reduction

    def pack_grad(
        self,
        losses: Iterable[Tensor] | Tensor,
        parameters: Iterable[Tensor] | None = None,
        *,
        retain_graph: bool = True,
    ) -> tuple[list[Tensor], list[torch.Size], list[Tensor]]:
        """Compute the gradient of every loss, flattened; in DistributedDataParallel averaged over the ranks.

        Args:
            losses: m losses in any iterable; a loss of several elements is summed.
            parameters: the tensors to differentiate by; the optimizer's by default.
            retain_graph: keep the graph after the last loss.

        Returns:
            m gradients (N,), with zeros where the loss does not depend on a parameter; the parameters'
            shapes; m masks (N,) in the gradients' dtype, 1 where there was a gradient. A complex parameter
            counts as pairs of real numbers.

        Raises:
            TypeError, ValueError: as :meth:`pc_backward`.
        """
        chosen = self._chosen(parameters)
        values = _values(losses)
        group = replica_group(None, chosen, "parameters")
        rows = _rows(values, chosen, retain_graph)
        if group is not None:
            rows = [averaged(row, chosen, group, f"losses[{i}]") for i, row in enumerate(rows)]
        _check_connected(rows)
        ones = [torch.ones(real_numel(par), dtype=as_real(par).dtype, device=par.device) for par in chosen]
        masks = [
            torch.cat([torch.full_like(one, g is not None) for one, g in zip(ones, row, strict=True)])
            for row in rows
        ]
        flat = [
            joined([torch.zeros_like(par) if g is None else g for par, g in zip(chosen, row, strict=True)])
            for row in rows
        ]
        return flat, [par.shape for par in chosen], masks

    def project_conflicting(
        self, grads: Sequence[Tensor] | Tensor, has_grads: Sequence[Tensor] | None = None, **given: Any
    ) -> Tensor:
        """Merge flattened gradients.

        Args:
            grads: m vectors (N,) of one dtype, or a tensor (m, N).
            has_grads: m masks (N,), 0 or 1: which elements each task has; all ones by default. Elements that
                all tasks have are averaged or added up by ``reduction``, the others are added up.

        Returns:
            (N,) in the dtype of the gradients.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names.
        """
        rows = Gradients(grads)
        if rows.form == "parameters" or rows.batch is not None:
            raise ValueError(
                "grads: got no vectors, want m flattened gradients (N,); pc_backward takes other forms"
            )
        masks = None if has_grads is None else _checked_masks(has_grads, rows)
        whole = masks is None or self.reduction == "sum" or _all_there(masks)
        update = merge(rows, self._rule(self.reduction if whole else "sum", rows, **given))
        assert isinstance(update, Tensor)
        if masks is None or whole:
            return update
        shared = masks[0]
        for mask in masks[1:]:
            shared = shared & mask
        return update.div_(shared.to(update.dtype).mul_(rows.m - 1).add_(1))

    def pc_backward(
        self,
        losses: Iterable[Tensor] | Tensor,
        parameters: Iterable[Tensor] | None = None,
        *,
        retain_graph: bool = True,
        **given: Any,
    ) -> list[Tensor] | None:
        """Compute the gradient of every loss and merge them, parameter by parameter.

        Around an optimizer this writes its parameters' ``.grad``. Other parameters that the losses reach,
        such as heads in an optimizer of their own, get the sum of their gradients added to ``.grad``, as from
        a backward pass of every loss. In DistributedDataParallel gradients are averaged over the ranks.

        Args:
            losses: m losses in any iterable; a loss of several elements is summed.
            parameters: the tensors to differentiate by; the optimizer's by default.
            retain_graph: keep the graph after the last loss; False frees it.

        Returns:
            Without an optimizer's parameters: the merged gradient in the shapes and dtypes of the parameters,
            with zeros for a parameter that no loss reaches. None if it was written to ``.grad``.

        Raises:
            TypeError: if the losses are no tensors; the message names the argument.
            ValueError: for no losses, if no loss reaches any parameter, or if a function in the graph hides a
                parameter; ``.grad`` is unchanged.
            CollectiveError: as :func:`fastconfig.backward`.
        """
        chosen = self._chosen(parameters)
        values = _values(losses)
        own = parameters is None
        group = replica_group(None, chosen, "parameters")
        if group is not None:
            merged = self._exchanged(values, chosen, group, own, retain_graph, **given)
        else:
            # around an optimizer by torch's own passes, which write to all other parameters
            rows = _rows(values, chosen, retain_graph, collect=own)
            _check_connected(rows)
            merged = self._merge(rows, chosen, values, **given)
        if not own:
            return merged
        write(chosen, merged)
        return None

    def _chosen(self, parameters: Iterable[Tensor] | None) -> list[Tensor]:
        """The parameters given, or those of the optimizer."""
        if parameters is None:
            groups = self.optimizer.param_groups
            parameters = [par for group in groups for par in group["params"] if par.requires_grad]
        return _parameters(parameters)

    def _exchanged(
        self, values: list[Tensor], chosen: list[Tensor], group: Any, own: bool, retain: bool, **given: Any
    ) -> list[Tensor]:
        """Merge gradients averaged over the ranks; if ``own``, write those of other parameters, too."""
        rule_for = self._operators["sum"].rule_for
        told = None if self.monitor is None else Held(self.monitor)
        known = {id(par) for par in chosen}
        reached = leaves_of(nodes_of(values)) if own else []
        # all that the model has, in its order: ranks may reach others
        fellows = fellow_parameters([*chosen, *reached]) if own else []
        fellows = [par for par in fellows if id(par) not in known]
        known.update(id(par) for par in fellows)
        alone = [leaf for leaf in reached if id(leaf) not in known]
        rows = _rows(values, [*chosen, *fellows, *alone], retain)
        count = len(chosen)
        update, everywhere = exchanged(
            [row[:count] for row in rows],
            chosen,
            group,
            lambda grads, room: merge(grads, watched(rule_for(grads, **given), told, values), room()),
        )
        if told is not None:
            told.release(1 / len(rows) if self.reduction == "mean" and all(everywhere) else 1.0)
        if self.reduction == "mean":
            for piece, shared in zip(update, everywhere, strict=True):
                if piece is not None and shared:
                    piece.div_(len(rows))
        sums: Row = [summed(column) for column in zip(*[row[count:] for row in rows], strict=True)]
        of_fellows = averaged(sums[: len(fellows)], fellows, group, "other parameters")
        write(fellows + alone, [*of_fellows, *sums[len(fellows) :]], accumulate=True)
        return _filled(update, chosen)

    def _rule(self, reduction: str, grads: Gradients, losses: Any = None, **given: Any) -> Rule:
        """How the gradients are merged by a reduction, and who is told of it."""
        return watched(self._operators[reduction].rule_for(grads, **given), self.monitor, losses)

    def _merge(
        self, rows: list[Row], parameters: list[Tensor], losses: list[Tensor], **given: Any
    ) -> list[Tensor]:
        """One tensor for each parameter; all dtypes and devices share the coefficients."""
        averaged = self.reduction == "mean"
        groups: dict[tuple[torch.dtype, torch.device, bool], list[int]] = {}
        for p, column in enumerate(zip(*rows, strict=True)):
            missing = sum(piece is None for piece in column)
            if missing < len(rows):
                key = parameters[p].dtype, parameters[p].device, averaged and missing == 0
                groups.setdefault(key, []).append(p)
        merged: list[Tensor | None] = [None] * len(parameters)
        for places, update in zip(groups.values(), self._updates(rows, groups, losses, **given), strict=True):
            for p, piece in zip(places, update, strict=True):
                merged[p] = piece
        return _filled(merged, parameters)

    def _updates(
        self,
        rows: list[Row],
        groups: dict[tuple[torch.dtype, torch.device, bool], list[int]],
        losses: list[Tensor],
        **given: Any,
    ) -> list[Any]:
        """The update of every group of one dtype and device, in the order of its parameters."""
        parts = [Gradients([[row[p] for p in places] for row in rows]) for places in groups.values()]
        means = [mean for _, _, mean in groups]
        first = parts[0]
        if len(parts) == 1:
            return [merge(first, self._rule("mean" if means[0] else "sum", first, losses, **given))]
        gram = gram_of(first)
        for part in parts[1:]:
            gram = gram + gram_of(part).to(gram.device)
        told = None if self.monitor is None else Held(self.monitor)
        rule = watched(self._operators["sum"].rule_for(first, **given), told, losses)
        c = choose(first).coefficients(gram, rule, first)
        if told is not None:
            told.release(1 / first.m if all(means) else 1.0)
        updates = []
        for part, mean in zip(parts, means, strict=True):
            update = part.new_update()
            choose(part).combine(part, (c / part.m if mean else c).to(part.device), update)
            updates.append(part.as_given(update))
        return updates


class PCGrad(_Projection):
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Take each task's gradient and go through the others in random order. Where it conflicts with another
    original gradient, remove its component along that one. A zero gradient conflicts with nothing; a NaN or
    Inf in any gradient makes the whole result NaN.

    ``project_conflicting`` and ``pc_backward`` also take ``order``, an (m, m) tensor: row i lists tasks in
    the order in which gradient i is projected against them (i itself is skipped); it overrides ``shuffle``.

    Args:
        optimizer: the optimizer to wrap, or None.
        reduction: "mean" or "sum" over the tasks, for elements that all tasks have.
        shuffle: False goes through the others in the order 0..m-1.
        generator: source of the random order, on the CPU; torch's default generator by default.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
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
    """PCGrad with every projection taken against the original gradients, so that order does not matter.

    g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, merged over i.

    Args:
        optimizer: the optimizer to wrap, or None.
        reduction: "mean" or "sum" over the tasks, for elements that all tasks have.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
    """

    def __init__(self, optimizer: Optimizer | str | None = None, reduction: str = "mean") -> None:
        super().__init__(optimizer, reduction)
        self._operators = {each: PPCGradOperator(reduction=each) for each in REDUCTIONS}


def _values(losses: Any) -> list[Tensor]:
    """The losses one by one, each a scalar."""
    found = listed(losses)
    for i, loss in enumerate(found):
        if not isinstance(loss, Tensor):
            raise TypeError(f"losses[{i}]: got a {type(loss).__name__}, want a tensor")
        if loss.dtype not in DTYPES:
            raise TypeError(f"losses[{i}]: got {loss.dtype}, want one of {dtype_names()}")
    return [loss if loss.dim() == 0 else loss.sum() for loss in found]


def _rows(
    values: list[Tensor], parameters: list[Tensor], retain: bool, *, collect: bool = False
) -> list[Row]:
    """The gradients of every loss; None where it does not depend on a parameter."""
    keep = kept(values, parameters, retain)
    if collect or any_dtensor(parameters):
        return collected(values, parameters, keep)
    return list(passes(values, parameters, keep))


def _check_connected(rows: Sequence[Row]) -> None:
    if all(piece is None for row in rows for piece in row):
        raise ValueError("losses: got losses that depend on none of the parameters")


def _filled(update: Sequence[Tensor | None], parameters: list[Tensor]) -> list[Tensor]:
    pairs = zip(update, parameters, strict=True)
    return [torch.zeros_like(par) if piece is None else piece for piece, par in pairs]


def _checked_masks(has_grads: Any, rows: Gradients) -> list[Tensor]:
    """m masks (N,) as bool tensors: which elements a task has."""
    if isinstance(has_grads, Tensor):
        check_dense(has_grads, "has_grads", _MASKS)
        if has_grads.shape != (rows.m, rows.n):
            raise ValueError(f"has_grads: got shape {tuple(has_grads.shape)}, want {(rows.m, rows.n)}")
    elif isinstance(has_grads, (Mapping, str)) or not isinstance(has_grads, Iterable):
        raise TypeError(f"has_grads: got {got(has_grads)}, want a sequence of masks (N,)")
    masks = list(has_grads)
    if len(masks) != rows.m:
        raise ValueError(f"has_grads: got {len(masks)}, want {rows.m}: one a gradient")
    for i, mask in enumerate(masks):
        name = f"has_grads[{i}]"
        if not isinstance(mask, Tensor):
            raise TypeError(f"{name}: got {got(mask)}, want a tensor ({rows.n},) of 0 and 1")
        if mask.shape != (rows.n,):
            raise ValueError(f"{name}: got shape {tuple(mask.shape)}, want {(rows.n,)}")
        if mask.device != rows.device:
            raise ValueError(f"{name}: got device {mask.device}, want {rows.device}, that of the gradients")
        check_dense(mask, name, _MASKS)
    return [mask if mask.dtype is torch.bool else mask != 0 for mask in masks]


def _all_there(masks: Sequence[Tensor]) -> bool:
    """Whether masks are all ones, where finding out does not wait for a device: cheaper than merging them."""
    return all(mask.device.type == "cpu" and bool(mask.all()) for mask in masks)


def _parameters(parameters: Any) -> list[Tensor]:
    listed = checked_parameters(parameters, "parameters")
    if not listed:
        raise ValueError("parameters: got an empty list, want at least one")
    for i, parameter in enumerate(listed):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters[{i}]: got {got(parameter)}, want a tensor")
        if not parameter.requires_grad:
            raise ValueError(f"parameters[{i}]: got a tensor that does not require a gradient")
    return listed
