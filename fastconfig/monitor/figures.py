"""What Gram matrices and coefficients say of gradients and updates.

All of it follows from C = D^-1 G D^-1 and from c d, the coefficients of the unit gradients, so that norms
from 1e-150 to 1e150 meet no overflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .ring import FloatArray

Figures = dict[str, npt.NDArray[Any]]


def pairs(m: int) -> list[tuple[int, int]]:
    """The two gradients of each column of "cosines": (0, 1), (0, 2), ..., (1, 2), ..."""
    return [(i, j) for i in range(m) for j in range(i + 1, m)]


def of(steps: FloatArray, gram: FloatArray, c: FloatArray, losses: FloatArray) -> Figures:
    """The figures of :meth:`Monitor.history`.

    Args:
        steps: (n,).
        gram: (n, m, m) float64.
        c: (n, m), coefficients.
        losses: (n, m), NaN where they are not known.
    """
    m = gram.shape[-1]
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.einsum("nii->ni", gram))
        inverse = np.where(norms > 0, 1 / norms, 0)
        cosines = gram * inverse[:, :, None] * inverse[:, None, :]
        one = np.arange(m)
        cosines[:, one, one] = 1
        finite = np.isfinite(norms).all(axis=1)
        cosines[~finite] = np.nan
        x = c * norms
        along = np.einsum("nij,nj->ni", cosines, x)  # products of the update with the unit gradients
        length = np.sqrt(np.maximum(np.einsum("ni,ni->n", x, along), 0))
        whole = np.sqrt(np.maximum(np.einsum("ni,nij,nj->n", norms, cosines, norms), 0))
        shortest = np.min(norms, axis=1, initial=np.inf)
        update_cosines = np.where(norms > 0, along / length[:, None], np.nan)
        alignment = 2 * cosines.sum(axis=(1, 2)) / m**2 - 1 if m else np.empty(len(steps))
        norm_ratio = np.where(finite, np.max(norms, axis=1, initial=0) / shortest, np.nan)
        update_ratio = length / whole
    at = np.array(pairs(m), dtype=np.intp).reshape(-1, 2)
    both = (norms > 0)[:, at[:, 0]] & (norms > 0)[:, at[:, 1]]
    of_pairs = np.where(both, np.clip(cosines[:, at[:, 0], at[:, 1]], -1, 1), np.nan)
    with np.errstate(invalid="ignore"):
        rate = (of_pairs < 0).mean(axis=1) if len(at) else np.zeros(len(steps))
    return {
        "step": steps.astype(np.int64),
        "losses": losses,
        "norms": norms,
        "cosines": of_pairs,
        "conflict_rate": np.where(finite, rate, np.nan),
        "alignment": alignment,
        "coefficients": c,
        "update_cosines": np.clip(update_cosines, -1, 1),
        "norm_ratio": norm_ratio,
        "update_norm": length,
        "update_ratio": update_ratio,
    }


_ONE = ("conflict_rate", "alignment", "norm_ratio", "update_norm", "update_ratio")
_OF_LOSSES = (
    ("losses", "loss"),
    ("norms", "norm"),
    ("coefficients", "coefficient"),
    ("update_cosines", "update_cosine"),
)


def columns(figures: Figures, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The same, a column (n,) each, by names such as "cosine/a,b"; of losses only if some are known."""
    found: dict[str, npt.NDArray[Any]] = {"step": figures["step"]}
    for key, one in _OF_LOSSES:
        if key != "losses" or not np.isnan(figures[key]).all():
            found |= {f"{one}/{name}": figures[key][:, i] for i, name in enumerate(names)}
    for p, (i, j) in enumerate(pairs(len(names))):
        found[f"cosine/{names[i]},{names[j]}"] = figures["cosines"][:, p]
    return found | {key: figures[key] for key in _ONE}


def flat(figures: Figures, names: Sequence[str]) -> list[dict[str, float]]:
    """The figures of each step by the names of :func:`columns`; losses only where they are known."""
    lists = {name: values.tolist() for name, values in columns(figures, names).items()}
    return [
        {
            name: values[n]
            for name, values in lists.items()
            if not (name.startswith("loss/") and values[n] != values[n])
        }
        for n in range(len(figures["step"]))
    ]


def frame(figures: Figures, names: Sequence[str]) -> Any:
    """The same as a pandas DataFrame with the steps for an index.

    Raises:
        ModuleNotFoundError: without pandas.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("frame: needs pandas: pip install pandas") from error
    return pandas.DataFrame(columns(figures, names)).set_index("step")
