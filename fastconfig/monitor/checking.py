"""Whether losses conflict at all, and where in the model, from one step's gradients."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..gradients import Gradients
from ..gradients.part import part_of
from ..gradients.shards import any_dtensor
from ..ops import gram_of
from ..training.passes import kept, leaves, passes, scalars
from ..training.weighting import untouched
from .figures import pairs
from .given import checked_names

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .ring import FloatArray

_SHOWN = 20  # modules in a table


@dataclass(frozen=True)
class Diagnosis:
    """The result of :func:`check`; ``print`` shows it.

    Attributes:
        names: of the losses.
        norms: (m,) of the whole gradients.
        cosines: (m, m) of each pair of them; NaN with a zero gradient.
        modules: by name, the cosines (m, m) of the gradients of a module's own parameters.
        sentences: what that means.
    """

    names: tuple[str, ...]
    norms: FloatArray
    cosines: FloatArray
    modules: dict[str, FloatArray]
    sentences: list[str]

    @property
    def conflict(self) -> bool:
        """Whether any two losses conflict over all parameters."""
        return bool((self.cosines < 0).any())

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from .summary import table

        at = pairs(len(self.names))
        rows = table("Cosines of each pair", ["", *(f"{self.names[i]}, {self.names[j]}" for i, j in at)])
        rows.add_row("all parameters", *_cells(self.cosines, at))
        for name, cosines in list(self.modules.items())[:_SHOWN]:
            rows.add_row(name, *_cells(cosines, at))
        if len(self.modules) > _SHOWN:
            rows.caption = f"and {len(self.modules) - _SHOWN} more modules"
        return Group(rows, *(Text(f"• {sentence}") for sentence in self.sentences))

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=100).print(self)
        return file.getvalue().rstrip("\n")

    __repr__ = __str__


def check(
    model: torch.nn.Module,
    losses: Iterable[Tensor] | Tensor,
    names: Iterable[str] | None = None,
    *,
    retain_graph: bool = True,
) -> Diagnosis:
    """Which losses of one step conflict, and in which modules; nothing is written, no ``.grad`` either.

        print(fastconfig.monitor.check(model, [data_loss, physics_loss]))

    Args:
        model: whose parameters' gradients are taken; of replicas those of this rank.
        losses: m scalar losses, two at least, in any iterable, or one vector (m,) of them.
        names: of the losses; ``loss_0``, ``loss_1``, ... by default.
        retain_graph: keep the graphs, to go backward through them once more.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: got a {type(model).__name__}, want a torch.nn.Module")
    values = scalars(losses)
    m = len(values)
    if m < 2:
        raise ValueError(f"losses: got {m}, want at least 2")
    known = tuple(f"loss_{i}" for i in range(m)) if names is None else checked_names(names)
    if len(known) != m:
        raise ValueError(f"names: got {len(known)}, want {m}, one a loss")
    parameters = leaves(model, "model")
    if any_dtensor(parameters):
        raise ValueError(
            "model: got parameters that are DTensors, want a model that is whole on this process"
        )
    with untouched(parameters):
        rows = list(passes(values, parameters, kept(values, parameters, retain_graph)))
    grads = Gradients(rows)
    norms, cosines = _cosines_of(grads)
    places: dict[str, list[int]] = {}
    owners = {id(par): name.rpartition(".")[0] for name, par in model.named_parameters()}
    for p, par in enumerate(parameters):
        places.setdefault(owners.get(id(par), "") or "(the model itself)", []).append(p)
    modules = {
        name: _cosines_of(part_of(grads, some))[1]
        for name, some in places.items()
        if any(row[p] is not None for row in rows for p in some)
    }
    return Diagnosis(known, norms, cosines, modules, _sentences(known, norms, cosines, modules))


def _cosines_of(grads: Gradients) -> tuple[FloatArray, FloatArray]:
    gram = gram_of(grads).cpu().numpy()
    norms = np.sqrt(np.diagonal(gram))
    with np.errstate(all="ignore"):
        cosines = gram / norms[:, None] / norms
    return norms, cosines


def _sentences(
    names: tuple[str, ...], norms: FloatArray, cosines: FloatArray, modules: dict[str, FloatArray]
) -> list[str]:
    if not np.isfinite(norms).all():
        bad = [name for name, norm in zip(names, norms, strict=True) if not np.isfinite(norm)]
        return [f"Nothing to say: gradients of {', '.join(bad)} have NaN or Inf."]
    at = pairs(len(names))
    said = []
    against = sorted((cosines[i, j], i, j) for i, j in at if cosines[i, j] < 0)
    if against:
        found = ", ".join(f"{names[i]} and {names[j]} (cosine {value:.2f})" for value, i, j in against[:3])
        more = f", and {len(against) - 3} more pairs" if len(against) > 3 else ""
        said.append(f"There is conflict between {found}{more}.")
    else:
        said.append("Your losses agree: a plain sum will do.")
    lowest = sorted((float(c[i, j]), name, i, j) for name, c in modules.items() for i, j in at if c[i, j] < 0)
    inside = list(dict.fromkeys(name for _, name, _, _ in lowest))
    if inside and len(modules) > 1:
        value, name, i, j = lowest[0]
        said.append(
            f"{len(inside)} of {len(modules)} modules have conflicts of their own, the strongest {name}: "
            f"{names[i]} and {names[j]}, cosine {value:.2f}."
        )
    units = np.where(norms > 0, norms, 1)
    along = np.nansum(np.where(np.eye(len(names), dtype=bool), 1, cosines) * norms, axis=1)
    losers = [name for name, x, norm in zip(names, along / units, norms, strict=True) if x < 0 and norm > 0]
    if losers:
        said.append(f"The plain sum of gradients points against {', '.join(losers)}.")
    alive = norms[norms > 0]
    if len(alive) > 1 and alive.max() > 3 * alive.min():
        longest = names[int(norms.argmax())]
        said.append(
            f"The gradient of {longest} is {alive.max() / alive.min():,.0f} times the shortest: a plain sum "
            "mostly follows it."
        )
    zero = [name for name, norm in zip(names, norms, strict=True) if norm == 0]
    if zero:
        said.append(f"The gradient of {', '.join(zero)} is zero.")
    return said


def _cells(cosines: FloatArray, at: list[tuple[int, int]]) -> list[str]:
    return ["-" if np.isnan(value := cosines[i, j]) else f"{value:+.2f}" for i, j in at]
