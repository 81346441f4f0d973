"""Results against the float64 oracle, and the bound within which a result counts as right."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..methods import RULES
from ..momentum.step import EPSILON
from ..numbers import cutoff
from .cases import Inputs, Setting, flat, stages, updates
from .momentum import MOMENTUM, schedule

BLOCK = 1 << 16  # columns widened to float64 at a time
LEAST_BOUND = 1e-12  # what solving in float64 may cost, whatever the dtype


class Exact:
    """The oracle of ``reference.py`` on gradients of any length, without an (m, N) float64 copy.

    A^T = Q R by blocks, in float64. All methods commute with rotations, so the oracle on the m rows of R^T
    has the coefficients of the oracle on the rows of A. G is R^T R: no product of the gradients is formed.

    Attributes:
        gram: (m, m) float64.
    """

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        self.dtype = setting.torch_dtype
        self.segments = inputs.segments
        r: Tensor | None = None
        for block in self._blocks():
            tall = block.T if r is None else torch.cat([r, block.T])
            r = torch.linalg.qr(tall, mode="r").R
        assert r is not None
        self.r = r
        self.gram = r.T @ r
        self._coefficients: dict[str, Tensor] = {}
        self._updates: dict[str, Tensor] = {}

    def _blocks(self) -> Any:
        for segment in self.segments:
            for start in range(0, len(segment[0]), BLOCK):
                yield torch.stack([row[start : start + BLOCK].double() for row in segment])

    def coefficients(self, method: str) -> Tensor:
        """(m,) float64 coefficients of the merged gradient."""
        if method not in self._coefficients:
            rows = self.r.T
            oracle = RULES[method].oracle
            cut = {"rcond": cutoff(self.dtype)} if "rcond" in inspect.signature(oracle).parameters else {}
            self._coefficients[method] = torch.linalg.pinv(self.r) @ oracle(rows, **cut)
        return self._coefficients[method]

    def update(self, method: str) -> Tensor:
        """(N,) float64 merged gradient."""
        if method not in self._updates:
            c = self.coefficients(method)
            self._updates[method] = torch.cat([c @ block for block in self._blocks()])
        return self._updates[method]

    def momentum(self) -> Tensor:
        """(N,) float64: the last update of the schedule, by the oracle's recursion on the coefficients.

        Every merged momentum is a combination of the gradients; only what is squared needs the columns.
        """
        steps = list(self._merged_momenta())
        merged = torch.stack([c for c, _, _ in steps])
        found = []
        for block in self._blocks():
            fake = second = torch.zeros(block.shape[1], dtype=torch.float64, device=block.device)
            for u, (_, first, _) in zip(merged @ block, steps, strict=True):
                now = first * u
                second = 0.999 * second + 0.001 * ((now - 0.9 * fake) / 0.1) ** 2
                fake = now
            found.append(u / ((second / steps[-1][2]).sqrt() + EPSILON))
        return torch.cat(found)

    def _merged_momenta(self) -> Iterator[tuple[Tensor, float, float]]:
        """Of every update in the schedule: coefficients (m), 1 - beta_1^t and 1 - beta_2^t."""
        m = len(self.gram)
        momenta, counts, updates = torch.zeros_like(self.gram), [0] * m, 0
        for i, j in schedule(m):
            counts[i] += 1
            momenta[i] *= 0.9
            momenta[i, j] += 0.1
            if 0 in counts:
                continue
            updates += 1
            decayed = torch.tensor([1 - 0.9**t for t in counts], dtype=torch.float64, device=self.r.device)
            rows = (momenta / decayed[:, None]) @ self.r.T
            merged = reference.config(rows, rcond=cutoff(self.dtype))
            yield torch.linalg.pinv(self.r) @ merged, 1 - 0.9**updates, 1 - 0.999**updates

    def bound(self, operation: str) -> float:
        """8 eps sum_i |c_i| |g_i| / |update|; 8 eps on cosines for the Gram matrix; none for the mask."""
        eps = torch.finfo(self.dtype).eps
        if operation == "conflict mask":
            return 0.0
        if operation == "gram":
            return max(8 * eps, LEAST_BOUND)
        if operation == MOMENTUM:  # the last difference of the merged momenta takes digits: 1 / (1 - beta_1)
            return 10 * self.bound("ConFIG_update")
        c = self.coefficients(self._method(operation))
        spread = (c.abs() * self.r.norm(dim=0)).sum() / (self.r @ c).norm()
        return max(8 * eps * float(spread), LEAST_BOUND)

    def _method(self, operation: str) -> str:
        return {**stages(), **updates()}.get(operation, "config")  # combine is given ConFIG's coefficients

    def error(self, operation: str, result: Any) -> float:
        """Distance of a result to the oracle's, relative to its length; inf where it is not finite."""
        if operation == "conflict mask":
            return float((result != (self.gram < 0)).double().mean())
        if operation == "gram":
            norms = self.r.norm(dim=0)
            error = ((result.double() - self.gram).abs() / (norms[:, None] * norms)).max()
        elif operation.endswith("coefficients"):
            exact = self.coefficients(stages()[operation])
            error = (self.r @ (result.double() - exact)).norm() / (self.r @ exact).norm()
        elif operation == MOMENTUM:
            exact = self.momentum()
            error = (flat(result).double() - exact).norm() / exact.norm()
        else:
            exact = self.update(self._method(operation))
            error = (flat(result).double() - exact).norm() / exact.norm()
        return float(error) if torch.isfinite(error) else float("inf")
