"""What other packages offer for each method: TorchJD's aggregators and LibMTL's weightings, as calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module, metadata
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .peers import Peer, find_peer

Calls = dict[str, Callable[[], Any]]  # "us": G -> c; "merge_us": gradients -> update
Maker = Callable[[str, dict[str, Any], Tensor, Tensor], Calls]

#: LibMTL's class of a method, and its arguments; both names of an argument that was renamed.
LIBMTL: dict[str, tuple[str, dict[str, Any]]] = {
    "AlignedMTL": ("Aligned_MTL", {}),
    "CAGrad": ("CAGrad", {"calpha": 0.5, "rescale": 0}),
    "FairGrad": ("FairGrad", {"FairGrad_alpha": 1.0}),
    "GradVac": (
        "GradVac",
        {"GradVac_beta": 0.5, "GradVac_group_type": 0, "beta": 0.5, "group_type": 0},
    ),
    "IMTLG": ("IMTL", {}),
    "MGDA": ("MGDA", {"mgda_gn": "none"}),
    "NashMTL": ("Nash_MTL", {"update_weights_every": 1, "optim_niter": 20, "max_norm": 0}),
    "PCGrad": ("PCGrad", {}),
    "Random": ("RLW", {}),
    "Sum": ("EW", {}),
    "UPGrad": ("UPGrad", {"UPGrad_norm_eps": 1e-4, "UPGrad_reg_eps": 1e-4}),
}


def find_weightings() -> list[tuple[Peer, Maker]]:
    """Both packages, and what makes the calls of a method: of its name, settings, gradients and G.

    The calls are empty where a package does not have the method.
    """
    torchjd = find_peer("torchjd", lambda peer: import_module("torchjd.aggregation"))
    libmtl = find_peer("LibMTL", lambda peer: import_module("LibMTL.weighting"))
    if libmtl.version:
        libmtl.version += _commit("LibMTL")
    return [(torchjd, of_torchjd), (libmtl, of_libmtl)]


@contextmanager
def in_order() -> Iterator[None]:
    """Who draws an order gets 0 to m - 1 in here, so that its answer can be compared."""

    def count(n: int, **named: Any) -> Tensor:
        return torch.arange(n, device=named.get("device"))

    with mock.patch("random.shuffle"), mock.patch("torch.randperm", count):
        yield


def _commit(package: str) -> str:
    """Of a package that was installed from a repository: its releases may be older than its code."""
    source = json.loads(metadata.distribution(package).read_text("direct_url.json") or "{}")
    commit = source.get("vcs_info", {}).get("commit_id", "")
    return f" ({commit[:7]})" if commit else ""


def of_torchjd(kind: str, given: dict[str, Any], rows: Tensor, gram: Tensor) -> Calls:
    module = import_module("torchjd.aggregation")
    if not hasattr(module, kind):
        return {}
    if kind == "Constant":
        given = {"weights": given["weights"].to(rows)}
    calls: Calls = {"merge_us": partial(getattr(module, kind)(**given), rows)}
    weighting = getattr(module, f"{kind}Weighting", None)
    if weighting is not None:
        calls["us"] = partial(weighting(**given), gram.to(rows.dtype))
    return calls


def of_libmtl(kind: str, given: dict[str, Any], rows: Tensor, gram: Tensor) -> Calls:
    name, settings = LIBMTL.get(kind, ("", {}))
    weighting = getattr(import_module("LibMTL.weighting"), name, None) if name else None
    if weighting is None:
        return {}
    # it takes gradients, not G: those of m elements with the same G stand in
    values, vectors = torch.linalg.eigh(gram)
    factor = (vectors * values.clamp(min=0).sqrt()).to(rows.dtype)
    return {
        "merge_us": _OfLibMTL(weighting(), rows, settings),
        "us": _OfLibMTL(weighting(), factor, settings),
    }


class _OfLibMTL:
    """One of LibMTL's weightings on gradients that are there, without its network and backward passes."""

    def __init__(self, weighting: Any, rows: Tensor, settings: dict[str, Any]) -> None:
        self.weighting, self.rows, self.settings = weighting, rows, settings
        self.update: Tensor | None = None
        weighting.task_num, weighting.device, weighting.rep_grad = len(rows), rows.device, False
        weighting._compute_grad_dim = lambda: None
        weighting._compute_grad = lambda *_, **__: rows
        weighting._reset_grad = self._keep
        weighting.init_param()

    def _keep(self, update: Tensor) -> None:
        self.update = update

    def __call__(self) -> Tensor:
        self.update = None
        losses = torch.ones(len(self.rows), device=self.rows.device, requires_grad=True)
        self.weighting.backward(losses, **self.settings)
        if self.update is None:  # it weighs the losses, and leaves the merge to a backward pass
            assert losses.grad is not None
            self.update = losses.grad.to(self.rows.dtype) @ self.rows
        return self.update
