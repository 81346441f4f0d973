"""Groups of parameters: one Gram matrix and one set of coefficients for each, instead of one for all."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..backends import choose
from ..checks import check_losses, got
from ..gradients import Gradients, GradientsLike, Update
from ..gradients.pairs import real_numel
from ..gradients.part import part_of
from ..merging import losses_of
from ..network import checked_network, parameters_of
from ..numbers import float64_device
from .base import Rule
from .watched import watched
from .within import within

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_WANTED = "want 'parameter', 'module', a dict of parameters or names, a function of a name, or None"
#: how an operator's parameters are grouped, as it is set
GroupsLike: TypeAlias = "str | Mapping[str, Any] | Callable[[str], Hashable] | None"


class Group(NamedTuple):
    """Some of the parameters.

    Attributes:
        name: its state goes by it.
        places: which they are, among all that are merged.
    """

    name: str
    places: list[int]


#: what the call around has found
_found: ContextVar[list[Group] | None] = ContextVar("fastconfig.groups", default=None)
_known: weakref.WeakKeyDictionary[Any, tuple[Any, Any, list[Any], list[Group]]] = weakref.WeakKeyDictionary()


@contextmanager
def among(groups: list[Group] | None) -> Iterator[None]:
    """Within it, calls on gradients alone know the groups of their parameters."""
    token = _found.set(groups)
    try:
        yield
    finally:
        _found.reset(token)


def checked_groups(groups: Any) -> Any:
    """Groups as an operator keeps them: a dict has lists of its own.

    Raises:
        TypeError, ValueError: for anything else than :data:`GroupsLike`.
    """
    if isinstance(groups, str):
        if groups not in ("parameter", "module"):
            raise ValueError(f"groups: got {groups!r}, {_WANTED}")
        return groups
    if isinstance(groups, Mapping):
        if not groups:
            raise ValueError(f"groups: got an empty dict, {_WANTED}")
        return {str(name): _items(name, value) for name, value in groups.items()}
    if groups is not None and (isinstance(groups, (type, Tensor, torch.nn.Module)) or not callable(groups)):
        raise TypeError(f"groups: got {got(groups)}, {_WANTED}")
    return groups


def _items(name: Any, value: Any) -> list[Tensor | str]:
    if isinstance(value, torch.nn.Module):
        return list(value.parameters())
    found = [value] if isinstance(value, (str, Tensor)) or not isinstance(value, Iterable) else list(value)
    for item in found:
        if not isinstance(item, (str, Tensor)):
            raise TypeError(f"groups[{name!r}]: got {got(item)}, want a parameter, a name or a module")
    return found


def groups_of(operator: Any, count: int) -> list[Group]:
    """The groups of ``count`` parameters: those that the call around has found, or each by itself.

    Raises:
        ValueError: where names or parameters are needed, and nobody knows them.
    """
    found, groups = _found.get(), operator.groups
    if found is None and groups != "parameter":
        kind = repr(groups) if isinstance(groups, str) else got(groups)
        raise ValueError(
            f"groups: got {kind} for gradients without a network, want 'parameter', or update_gradient or "
            "fastconfig.backward, which know the parameters"
        )
    if found is None:
        return _each(count)
    wanted = sum(len(group.places) for group in found)
    if wanted != count:
        raise ValueError(f"grads: got {count} parameters, want {wanted}, the network's")
    return found


@lru_cache(maxsize=64)
def _each(count: int) -> list[Group]:
    return [Group(str(p), [p]) for p in range(count)]


def partition(operator: Any, parameters: Sequence[Tensor], given: Any) -> list[Group]:
    """The groups of parameters, each in one.

    Args:
        operator: has groups.
        parameters: whose gradients are merged.
        given: the network that they are of, which knows their names; or anything.

    Raises:
        ValueError: for a parameter that belongs to no group or to several, and where its name is not known.
    """
    network = given if isinstance(given, torch.nn.Module) else None
    groups = operator.groups
    known = _known.get(operator)
    if known is not None and known[0] is groups and known[1]() is network and _are(known[2], parameters):
        return known[3]
    every = [] if network is None else _names_of(network)
    names = {key: name for name, key in reversed(every)}  # of a tied parameter the first
    owners = _owners(groups, every) if isinstance(groups, dict) else {}
    places: dict[str, list[int]] = {}
    for p, par in enumerate(parameters):
        places.setdefault(_group_of(groups, p, par, names.get(id(par)), owners, network), []).append(p)
    found = [Group(name, some) for name, some in places.items()]
    reference: Any = (lambda: None) if network is None else weakref.ref(network)
    _known[operator] = (groups, reference, [weakref.ref(par) for par in parameters], found)
    return found


def _are(references: list[Any], parameters: Sequence[Tensor]) -> bool:
    pairs = zip(references, parameters, strict=False)
    return len(references) == len(parameters) and all(reference() is par for reference, par in pairs)


def _group_of(
    groups: Any, p: int, par: Tensor, name: str | None, owners: dict[int, str], network: Any
) -> str:
    if groups == "parameter":
        return str(p) if name is None else name
    called = f"parameter {p if name is None else repr(name)} of shape {tuple(par.shape)}"
    if isinstance(groups, dict):
        chosen: Any = owners.get(id(par))
    elif name is None:
        wanted = "the network itself" if network is None else "parameters of the network"
        raise ValueError(f"groups: got no name of {called}, want {wanted}: 'module' and functions need names")
    else:
        chosen = name.rpartition(".")[0] if groups == "module" else groups(name)
    if chosen is None:
        raise ValueError(f"groups: got none for {called}, want each parameter in one")
    return str(chosen)


def _owners(groups: dict[str, list[Any]], names: list[tuple[str, int]]) -> dict[int, str]:
    """The group of every parameter that a dict has, by its id."""
    owners: dict[int, str] = {}
    for group, items in groups.items():
        for item in items:
            if isinstance(item, Tensor):
                ids = [id(item)]
            else:
                ids = [key for name, key in names if name == item or name.startswith(f"{item}.")]
                if not ids:
                    wanted = "a parameter's or module's name" if names else "the network itself in the call"
                    raise ValueError(f"groups[{group!r}]: got {item!r}, want {wanted}")
            for key in ids:
                if owners.setdefault(key, group) != group:
                    name = next((repr(name) for name, known in names if known == key), "a parameter")
                    raise ValueError(
                        f"groups: got {name} in {owners[key]!r} and {group!r}, want each parameter in one"
                    )
    return owners


def _names_of(network: Any) -> list[tuple[str, int]]:
    """All names of parameters, and their ids, whatever the network is wrapped in; a tied one has several."""
    while isinstance(network, torch.nn.parallel.DistributedDataParallel) or hasattr(network, "_orig_mod"):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    return [(name, id(par)) for name, par in network.named_parameters(remove_duplicate=False)]


def by_groups(operator: Any, grads: GradientsLike, losses: Sequence[Any] | None, **given: Any) -> Update:
    """``calculate_gradient`` of an operator with groups.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if torch.compiler.is_compiling():
        from ..graph import outside_the_graph

        return outside_the_graph(by_groups, operator, grads, losses, **given)
    rows = Gradients(grads, group=operator.process_group)
    if rows.form != "parameters":
        raise ValueError(
            "grads: got vectors for an operator with groups, want m sequences of per-parameter tensors, or "
            "update_gradient(network, vectors)"
        )
    if losses is not None:
        check_losses(losses, rows.m)
    return merged(operator, rows, groups_of(operator, len(rows.shapes)), losses, **given)


def by_network(
    operator: Any, network: Any, grads: GradientsLike, losses: Sequence[Any] | None, every: bool
) -> Update:
    """The same for ``update_gradient``, which knows the network; vectors are cut into its parameters.

    Args:
        every: whether vectors have a part of all parameters; else of those that have a gradient.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    parameters = parameters_of(checked_network(network))
    rows = Gradients(grads, group=operator.process_group)
    if rows.form == "parameters":
        with among(partition(operator, parameters, network)):
            return operator.calculate_gradient(grads, losses)
    present = parameters if every else [par for par in parameters if par.grad is not None]
    sizes = [real_numel(par) for par in present]
    if rows.shards is not None or rows.batch is not None or rows.n != sum(sizes):
        raise ValueError(
            f"grads: got {rows.form} of {rows.n} elements for an operator with groups, want m vectors of "
            f"{sum(sizes)}, those of the parameters that take part, whole on each process"
        )
    if losses is not None:
        check_losses(losses, rows.m)
    whole = rows.new_update()
    assert isinstance(whole, Tensor)
    vectors: Any = rows.rows
    pieces = Gradients([row.split(sizes) for row in vectors])
    groups = partition(operator, present, network)
    found = merged(operator, pieces, groups, losses, list(whole.split(sizes)))
    for target, piece in zip(whole.split(sizes), found, strict=True):
        if piece is not None and piece.data_ptr() != target.data_ptr():  # of a user's own model
            target.copy_(piece)
    return whole


def merged(
    operator: Any,
    grads: Gradients,
    groups: list[Group],
    losses: Sequence[Any] | None = None,
    out: Update | None = None,
    group: ProcessGroup | None = None,
    **given: Any,
) -> list[Tensor | None]:
    """The update of gradients that are checked already, group by group.

    Args:
        operator: one of this package's.
        groups: all parameters, each once.
        losses: the m losses, for a rule that uses them.
        out: where the update goes, if there is one that fits.
        group: of replicas, whose mean losses count.
        given: more for the operator's ``rule_for``.
    """
    update: Any = grads.new_update() if out is None else out
    spread = grads.shards is not None and grads.shards.group is not None  # others may have what this has not
    if not spread and None in grads.shapes:
        groups = [one for one in groups if any(grads.shapes[p] is not None for p in one.places)]
    fixed = None if given else operator.fixed_rule
    alike = grads.shards is None and not grads.parts
    parts = [grads] * len(groups) if alike else [part_of(grads, one.places) for one in groups]
    rules: list[Rule | None] = [fixed] * len(groups)
    if fixed is None:
        for k, one in enumerate(groups):
            with within(one.name):
                rules[k] = operator.rule_for(parts[k], **given)
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules):
        return _by_models(operator, grads, groups, losses)
    if operator.monitor is not None:
        for k, one in enumerate(groups):
            with within(one.name):
                known[k] = watched(known[k], operator.monitor, losses)
    at_once = alike and all(rule.native is not None for rule in known)
    if at_once and choose(grads).update_groups(grads, [one.places for one in groups], known, update):
        return grads.as_given(update)  # type: ignore[return-value]
    beside = losses_of(known[0], losses, grads, group) if known else None
    if alike:
        parts = [part_of(grads, one.places) for one in groups]
    grams = _summed_grams(parts) if grads.shards is not None else None
    for k, (one, part, rule) in enumerate(zip(groups, parts, known, strict=True)):
        own = None if beside is None else beside.to(float64_device(part.device))
        backend, pieces = choose(part), [update[p] for p in one.places]
        with within(one.name):
            if grams is None:
                backend.update(part, rule, pieces, own)
            else:
                backend.combine(part, backend.coefficients(grams[k], rule, part, own), pieces)
    return grads.as_given(update)  # type: ignore[return-value]


def _summed_grams(parts: list[Gradients]) -> list[Tensor]:
    from ..backends.sharded import grams_of  # its collectives are not in every build of torch

    return grams_of(parts)


def _by_models(
    operator: Any, grads: Gradients, groups: list[Group], losses: Sequence[Any] | None
) -> list[Tensor | None]:
    """The same by models that must see the gradients themselves."""
    grads.check_whole()
    alone = copy(operator)
    alone.groups = None
    update: list[Tensor | None] = [None] * len(grads.shapes)
    for one in groups:
        with within(one.name):
            pieces = alone.calculate_gradient(part_of(grads, one.places).given_rows, losses)
        for p, piece in zip(one.places, pieces, strict=True):
            update[p] = piece
    return update
