"""Convert the state of conflictfree's momentum operators to this package's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

#: attributes in which conflictfree's PseudoMomentumOperator keeps its state
NAMES = ("m", "s", "fake_m", "t", "t_grads")


def is_theirs(attributes: Mapping[str, Any]) -> bool:
    """Whether these are attributes of conflictfree's operator."""
    return "t_grads" in attributes or "fake_m" in attributes  # the names that nobody else gives


def adopted_state(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """``state_dict`` of :class:`fastconfig.PseudoMomentumOperator` from conflictfree's attributes.

    Raises:
        ValueError: for attributes that are missing or contradict each other.
    """
    missing = [name for name in NAMES if name not in attributes]
    if missing:
        raise ValueError(
            f"state: got conflictfree's without {', '.join(missing)}, want all of {', '.join(NAMES)}"
        )
    m, s, fake_m, t, t_grads = (attributes[name] for name in NAMES)
    state = {"form": None, "counts": list(t_grads), "updates": t, "gram": None, "rank": None}
    if all(value is None for value in (m, s, fake_m)) and not any(t_grads):
        return state | {"momenta": [[] for _ in t_grads], "second": [], "fake": []}
    if not (isinstance(m, Sequence) and all(isinstance(tensor, Tensor) for tensor in (*m, s, fake_m))):
        raise ValueError(
            "state: got conflictfree's with a part of m, s and fake_m only, want all tensors or none"
        )
    complete = 0 not in t_grads
    initialized = attributes.get("all_initialized", complete)
    if not complete == (t > 0) == initialized:
        came = f"t = {t}, t_grads = {t_grads} and all_initialized = {initialized}"
        raise ValueError(f"state: got conflictfree's {came}, want an update since every gradient has come")
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in (*m, s, fake_m)), torch.float32)
    *momenta, second, fake = ([tensor.detach().to(dtype)] for tensor in (*m, s, fake_m))
    return state | {"form": "vector", "momenta": momenta, "second": second, "fake": fake}


class Adopting:
    """Mixin for operators with a state: takes conflictfree's over from pickles and attributes."""

    _momenta: Any

    def _adopted(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """A state for ``load_state_dict`` from conflictfree's attributes."""
        recorder = attributes.get("loss_recorder")
        return adopted_state(attributes) | ({} if recorder is None else {"loss_recorder": vars(recorder)})

    def _adopt(self) -> None:
        """Take over conflictfree's attributes, unpickled or set since.

        Raises:
            ValueError: if they are inconsistent or do not fit the operator; nothing is changed then.
        """
        given = vars(self)
        if is_theirs(given):
            state = self._adopted(given)
            self._momenta.check_state(state, None)
            self._momenta.load_state_dict(state)
            for name in (*NAMES, "all_initialized", "len_vectors", "device"):
                given.pop(name, None)
