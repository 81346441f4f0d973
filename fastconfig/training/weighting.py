"""Weights of the losses; the caller runs the backward pass of the weighted sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..checks import check_flag, check_operator
from ..gradients import Gradients
from ..gradients.shards import any_dtensor, reshard
from ..merging import coefficients, losses_of
from ..methods.every import kept_coefficients
from ..methods.operator import GradientOperator, is_ours, needed_rule, refuse_groups, refuse_operator
from ..momentum_operator import CONFIG
from ..network import plain_leaves
from ..ranks.collectives import mean_of
from ..ranks.replicas import learned, replica_group
from .graphs import edge_of, leaves_of, nodes_of
from .passes import Row, as_weights, check_no_group, collected, group_of, kept, leaves, passes, scalars, taken
from .trunks import check_apart, feature_list

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["weights"]

FeaturesGram: TypeAlias = Literal["flatten", "batch_sum"]


def weights(
    losses: Iterable[Tensor] | Tensor,
    with_respect_to: torch.nn.Module | Tensor | Iterable[Tensor],
    operator: GradientOperator = CONFIG,
    *,
    retain_graph: bool = True,
    features_gram: FeaturesGram = "flatten",
    approximate: bool = False,
) -> Tensor:
    """Weights c for which the gradient of sum_i c_i L_i is the merged gradient.

    You run the backward pass, so whatever your loop puts around it (DistributedDataParallel, GradScaler,
    accumulation, compiled models, Lightning, Accelerate) stays as it is:

        c = fastconfig.weights(losses, model)
        (c * torch.stack(losses)).sum().backward()

    It writes no ``.grad``, runs no hooks of the parameters, and does not wait for the device. In
    DistributedDataParallel the weights belong to the averaged gradients and are the same on all ranks.

    Args:
        losses: m scalar losses of shape (), in any iterable, or one vector (m,); in DistributedDataParallel
            this rank's.
        with_respect_to: the tensors whose gradients decide. A model or its parameters: m backward passes, and
            the merged gradient is that of :func:`fastconfig.backward`. Some of the parameters, such as those
            of the last shared layer: m passes down to these. Features of a shared trunk: m passes through the
            heads and none through the trunk.
        operator: computes the weights from the Gram matrix of the gradients; ConFIG by default.
        retain_graph: keep the graphs for your own backward pass.
        features_gram: for features: "flatten" multiplies all their elements; "batch_sum" first sums each
            loss's gradient over the batch, the first dimension.
        approximate: in DistributedDataParallel, average the ranks' own Gram matrices instead of the
            gradients: m x m numbers are sent instead of m N. A rank's smaller batch is noisier, which makes
            its gradients longer than the averages and the cosines smaller.

    Returns:
        (m,) weights without a graph, on the losses' device and in their dtype (at least float32); all NaN if
        any gradient has NaN or Inf.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names; also for an operator that has
            momentum or needs the gradients themselves.
        CollectiveError: if a rank died or hangs.

    Examples:
        >>> w = fastconfig.weights(losses, network)
        >>> sum(w_i * loss for w_i, loss in zip(w, losses)).backward()
    """
    if torch.compiler.is_compiling():
        from ..graph import outside_the_graph

        rest = {"retain_graph": retain_graph, "features_gram": features_gram, "approximate": approximate}
        return outside_the_graph(weights, losses, with_respect_to, operator, **rest)
    check_operator(operator, "operator")
    check_flag("approximate", approximate)
    if not is_ours(operator):
        refuse_operator(operator)
    refuse_groups(operator, "a weighted sum of losses has one weight a loss; backward merges by groups")
    if features_gram not in ("flatten", "batch_sum"):
        raise ValueError(f"features_gram: got {features_gram!r}, want 'flatten' or 'batch_sum'")
    values = scalars(losses)
    for i, value in enumerate(values):
        if value.dim():
            raise ValueError(
                f"losses[{i}]: got {tuple(value.shape)}, want a scalar of shape (), such as loss.sum(); "
                "its product with the weights would have m x m elements"
            )
    if (kept := kept_coefficients(operator, len(values))) is not None:
        return as_weights(kept, values)
    targets = with_respect_to
    if isinstance(targets, Tensor):
        targets = [targets]
    elif isinstance(targets, Iterable) and not isinstance(targets, (torch.nn.Module, type, str)):
        targets = list(targets)
    if isinstance(targets, list) and any(isinstance(t, Tensor) and not t.is_leaf for t in targets):
        features = feature_list(targets, "with_respect_to")
        check_apart([edge_of(feature) for feature in features], "with_respect_to")
        with untouched(features):
            rows = _features_rows(values, features, retain_graph)
        group = _features_group(features)
        if group is not None:
            check_no_group(operator)
        c = by_features(rows, features, values, operator, group, features_gram)
    else:
        c = _by_parameters(values, targets, operator, retain_graph, approximate)
    return as_weights(c, values)


def _by_parameters(
    values: list[Tensor], model: Any, operator: GradientOperator, retain_graph: bool, approximate: bool
) -> Tensor:
    replicated = isinstance(model, DistributedDataParallel)
    parameters = leaves(learned(model, "with_respect_to") if replicated else model, "with_respect_to")
    keep = kept(values, parameters, retain_graph)
    group, scale = replica_group(model, parameters, "with_respect_to"), 1.0
    with untouched(parameters):
        if group is not None:
            check_no_group(operator)
            rows = passes(values, parameters, keep)
            if approximate:  # summed over the ranks, as if each had a part
                grads, scale = Gradients(list(rows), group=group), 1 / group.size()
            else:
                grads = _averages(rows, parameters, group)
        elif plain_leaves(parameters) is None and any_dtensor(parameters):
            found = collected(values, parameters, keep)
            if isinstance(model, torch.nn.Module):
                reshard(model)
            grads = whole(found, operator, "parameter")
        else:
            grads = whole(list(passes(values, parameters, keep)), operator, "parameter")
    rule = needed_rule(operator, grads, values)
    return coefficients(grads, rule, losses_of(rule, values, grads, group), scale)


def _averages(rows: Iterable[Row], parameters: list[Tensor], group: ProcessGroup) -> Gradients:
    """This rank's parts of the gradients, averaged over the ranks."""
    from ..ranks.exchange import Exchange  # loads torch's DTensors

    exchange = Exchange(parameters, group)
    for i, row in enumerate(rows):
        exchange.send(row, f"losses[{i}]")
    return exchange.averages()


def whole(rows: list[Row], operator: GradientOperator, what: str) -> Gradients:
    """The gradients of all losses, checked: each loss has some.

    Raises:
        ValueError: for a loss that has none, unless other ranks of the operator may have them.
    """
    for i, row in enumerate(rows):
        if group_of(operator) is None and all(tensor is None for tensor in row):
            raise ValueError(f"losses[{i}]: got a loss that depends on none of the {what}s")
    return Gradients(rows, group=group_of(operator))


def _features_rows(values: list[Tensor], features: list[Tensor], retain_graph: bool) -> list[Row]:
    keep = kept(values, features, retain_graph)
    return [taken(f"losses[{i}]", [value], features, keep[i]) for i, value in enumerate(values)]


def by_features(
    rows: list[Row],
    features: list[Tensor],
    values: list[Tensor],
    operator: GradientOperator,
    group: ProcessGroup | None,
    features_gram: FeaturesGram = "flatten",
) -> Tensor:
    """Coefficients, (m,) float64, from the gradients of the features.

    Args:
        rows: for each loss, the gradients of the features.
        group: the ranks over which the batch is split.

    Raises:
        TypeError, ValueError: for a wrong argument, which the message names.
    """
    if features_gram == "batch_sum":
        rows = [_summed_over_batch(row, features) for row in rows]
        if group is not None:
            stacked = torch.stack([_joined(row, features) for row in rows])
            rows = [[row] for row in mean_of(stacked, group, "the features' gradients")]
    if group is None or features_gram == "batch_sum":
        grads, scale = whole(rows, operator, "feature"), 1.0
    else:  # all ranks' features form one batch, and this rank has a part of it
        grads, scale = Gradients(rows, group=group), 1 / group.size() ** 2
    rule = needed_rule(operator, grads, values)
    return coefficients(grads, rule, losses_of(rule, values, grads, group), scale)


def _features_group(features: list[Tensor]) -> ProcessGroup | None:
    """The ranks over which the batch of the features is split; None if this one has all of it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    behind = [leaf for leaf in leaves_of(nodes_of(features)) if isinstance(leaf, torch.nn.Parameter)]
    return replica_group(None, behind, "with_respect_to") if behind else None


def _summed_over_batch(row: Row, features: list[Tensor]) -> list[Tensor | None]:
    for k, feature in enumerate(features):
        if not feature.dim():
            raise ValueError(f"with_respect_to[{k}]: got shape (), want (batch, ...) for 'batch_sum'")
    return [None if gradient is None else gradient.sum(0) for gradient in row]


def _joined(row: Sequence[Tensor | None], features: list[Tensor]) -> Tensor:
    pairs = zip(row, features, strict=True)
    return torch.cat(
        [f.detach().new_zeros(f.shape[1:].numel()) if g is None else g.reshape(-1) for g, f in pairs]
    )


@contextmanager
def untouched(targets: list[Tensor]) -> Iterator[None]:
    """Run backward passes without these tensors' hooks, and leave no retained ``.grad`` on them."""
    waiting = [(hooks, dict(hooks)) for target in targets if (hooks := target._backward_hooks)]
    retained = [(target, target.grad) for target in targets if target.retains_grad]
    for hooks, _ in waiting:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, held in waiting:
            hooks.update(held)
        for target, grad in retained:
            target.grad = grad
