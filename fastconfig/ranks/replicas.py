"""Whose gradients somebody else averages: the replicas of DistributedDataParallel, in whatever disguise.

Such a model averages gradients in hooks of the engine's own backward pass, which ``torch.autograd.grad`` does
not run. Its parameters look like any others: as ``model.parameters()``, ``model.module``, compiled, held by
another module or by an optimizer. So all models of that kind are known here, with their parameters.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

_models: list[weakref.ref[Any]] | None = None  # None until the first question
_owners: dict[int, Any] = {}  # references by the ids of the parameters, which live as long as their model
_changed = False


def replica_group(
    model: Any, parameters: Sequence[Tensor], argument: str = "model_or_parameters"
) -> dist.ProcessGroup | None:
    """Over which ranks gradients of these parameters must be averaged; None where they are whole here.

    Args:
        model: what the user gave: a DistributedDataParallel, or anything.
        parameters: whose gradients are taken.
        argument: what error messages call it.

    Raises:
        TypeError: for parameters of FullyShardedDataParallel.
        ValueError: if only some are those of replicas, or of replicas over different ranks, or of a model
            with ``static_graph=True``.
    """
    given = isinstance(model, DistributedDataParallel)
    if not (given or (dist.is_available() and dist.is_initialized())):
        return None
    owners = _known_owners()
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
            raise TypeError(
                f"{argument}: got parameters of FullyShardedDataParallel, want FSDP2: "
                "torch.distributed.fsdp.fully_shard(model)"
            )
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


def learned(model: DistributedDataParallel) -> list[Tensor]:
    """What a DistributedDataParallel averages: all parameters but those that it was told to ignore."""
    ignored = set(model.parameters_to_ignore)
    return [par for name, par in model.module.named_parameters() if name not in ignored]


def _known_owners() -> dict[int, Any]:
    """References to all models of replicas, by the ids of their parameters."""
    global _models, _changed
    if _models is None:
        # those that are there already; later ones are seen as they take in what they replicate
        _models = [weakref.ref(value) for value in gc.get_objects() if _is_replicated(type(value))]
        register_module_module_registration_hook(_see)
        _changed = True
    if _changed or any(model() is None for model in _models):
        _models = [model for model in _models if model() is not None]
        _changed = False
        _owners.clear()
        for model in _models:
            owner = model()
            if isinstance(owner, DistributedDataParallel):
                _owners.update((id(par), model) for par in learned(owner))
            elif owner is not None:
                _owners.update((id(par), model) for par in owner.parameters())
    return _owners


def _see(module: torch.nn.Module, name: str, part: Any) -> None:
    global _changed
    if _is_replicated(type(module)) and _models is not None:
        _models.append(weakref.ref(module))
        _changed = True


def _is_replicated(kind: type) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded = () if fsdp is None else (fsdp.FullyShardedDataParallel,)
    return issubclass(kind, (DistributedDataParallel, *sharded))
