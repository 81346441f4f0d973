"""Recognise parameters of DistributedDataParallel, however they are passed.

Such a model averages gradients in hooks of torch's own backward pass, which ``torch.autograd.grad`` does not
run. Its parameters look like any others: from ``model.parameters()``, ``model.module``, a compiled model,
another module or an optimizer. So this module knows all such models of the process, with their parameters.
"""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from ..gradients.shards import is_fsdp1

_models: list[weakref.ref[Any]] = []
_watching = False
_owners: dict[int, Any] = {}  # by the ids of the parameters, which live as long as their model
_changed = False


def replica_group(
    model: Any, parameters: Sequence[Tensor], argument: str = "model_or_parameters"
) -> dist.ProcessGroup | None:
    """The ranks over which gradients of these parameters must be averaged; None if there are none.

    Args:
        model: the user's argument: a DistributedDataParallel, or anything else.
        parameters: the parameters.
        argument: its name in error messages.

    Raises:
        TypeError: for parameters of FullyShardedDataParallel.
        ValueError: if only some belong to such a model, or they belong to models over different ranks, or
            to a model with ``static_graph=True``.
    """
    if is_fsdp1(model):
        _refuse_fsdp1(argument)
    given = isinstance(model, DistributedDataParallel)
    if not (given or (dist.is_available() and dist.is_initialized())):
        return None
    owners = _known_owners(model if given else None)
    if not owners:
        return None
    groups: dict[Any, Any] = {}
    alone = 0
    for par in parameters:
        owner = owners[id(par)]() if id(par) in owners else None
        if owner is None:
            alone += 1
        else:
            groups.setdefault(owner.process_group, owner)
    if not groups:
        return None
    for group, owner in groups.items():
        if not isinstance(owner, DistributedDataParallel):
            _refuse_fsdp1(argument)
        if not given and dist.get_world_size(group) == 1:
            return None
        if owner.static_graph:
            raise ValueError(
                f"{argument}: got a DistributedDataParallel with static_graph=True, want False: such a graph "
                "has one backward pass"
            )
    if alone or len(groups) > 1:
        got = f"{alone} parameters beside" if alone else f"parameters of {len(groups)} process groups in"
        raise ValueError(
            f"{argument}: got {got} those of a DistributedDataParallel, want all in one: its ranks average "
            "their gradients, and others would train apart"
        )
    return next(iter(groups))


def _refuse_fsdp1(argument: str) -> NoReturn:
    raise TypeError(
        f"{argument}: got parameters of FullyShardedDataParallel, want FSDP2: "
        "torch.distributed.fsdp.fully_shard(model)"
    )


def learned(model: DistributedDataParallel, argument: str | None = None) -> list[Tensor]:
    """The parameters that a DistributedDataParallel averages: all but those that it was told to ignore.

    Raises:
        ValueError: if an ignored one requires a gradient and ``argument`` is given.
    """
    ignored = set(model.parameters_to_ignore)
    named = list(model.module.named_parameters())
    apart = [name for name, par in named if name in ignored and par.requires_grad]
    if apart and argument is not None:
        raise ValueError(
            f"{argument}: got a DistributedDataParallel that is told to ignore {apart[0]!r}, want a list "
            "of the parameters to merge, all of them averaged: its ranks would train apart"
        )
    return [par for name, par in named if name not in ignored]


def fellow_parameters(parameters: Sequence[Tensor]) -> list[Tensor]:
    """All trained parameters of the models that have some of these, in the models' order."""
    references = [_owners[id(par)] for par in parameters if id(par) in _owners]
    models = [reference() for reference in dict.fromkeys(references)]
    return [par for model in models if model is not None for par in learned(model) if par.requires_grad]


def _known_owners(given: Any) -> dict[int, Any]:
    """References to all DistributedDataParallel models, by the ids of their parameters."""
    global _models, _changed, _watching
    if not _watching:
        _watch()
        _watching = True
        # of 300,000 objects 0.2 s: once; later models are seen when they are made or copied
        _models += [weakref.ref(value) for value in _all_objects() if _is_replicated(type(value))]
        _changed = True
    if given is not None and not any(model() is given for model in _models):
        _models.append(weakref.ref(given))
        _changed = True
    if _changed or any(model() is None for model in _models):
        _models = list({id(model()): model for model in _models if model() is not None}.values())
        _changed = False
        _owners.clear()
        for model in _models:
            owner: Any = model()
            replicated = isinstance(owner, DistributedDataParallel)
            if not hasattr(owner, "reducer" if replicated else "process_group"):
                continue  # deleted, or its constructor failed
            _owners.update((id(par), model) for par in (learned(owner) if replicated else owner.parameters()))
    return _owners


def _all_objects() -> list[Any]:
    """All objects known to the garbage collector, frozen ones included."""
    frozen = gc.get_freeze_count()
    if frozen:
        gc.unfreeze()
    found = gc.get_objects()
    if frozen:
        gc.freeze()
    return found


def _watch() -> None:
    """See every model from now on: a constructor registers its module, a copy or a pickle sets a state."""
    register_module_module_registration_hook(_see)
    restore = DistributedDataParallel.__setstate__

    @functools.wraps(restore)
    def restored(self: DistributedDataParallel, state: Any) -> None:
        restore(self, state)
        _see(self)

    DistributedDataParallel.__setstate__ = restored  # type: ignore[method-assign]


def _see(module: torch.nn.Module, name: str | None = None, part: Any = None) -> None:
    global _changed
    if _is_replicated(type(module)):
        _models.append(weakref.ref(module))
        _changed = True


def _is_replicated(kind: type) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded = () if fsdp is None else (fsdp.FullyShardedDataParallel,)
    return issubclass(kind, (DistributedDataParallel, *sharded))
