"""Gradients that are hard on a quadratic program, and the judge of an answer in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import strategies as st
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
#: of two gradients that nearly depend on each other; 1.5e-6 is a cosine of 1 - 1e-12
ANGLES = (0.0, 1e-9, 1e-8, 3e-8, 1e-7, 3e-7, 1.5e-6, 1e-4, 1e-2)


@st.composite
def hard_rows(draw: st.DrawFn) -> Tensor:
    """Up to 7 rows: of low rank, of small integers, nearly parallel or opposed, zero, over twelve decades."""
    m, n = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    maker = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = torch.randn(m, n, generator=maker, dtype=torch.float64)
    kinds = ["any", "rank", "float32", "perturbed", "integers", "multiples", "balanced", "near", "near"]
    kind = draw(st.sampled_from(kinds))
    if kind in ("rank", "float32", "perturbed"):
        rank = draw(st.integers(1, min(m, n)))
        other = torch.randn(m, n, generator=maker, dtype=torch.float64)
        rows = rows[:, :rank] @ torch.randn(rank, n, generator=maker, dtype=torch.float64)
        if kind == "float32":
            rows = rows.float().double()
        elif kind == "perturbed":
            rows = rows + 10.0 ** draw(st.integers(-9, -5)) * other
    elif kind == "integers":
        rows = torch.randint(-1, 2, (m, n), generator=maker).double()
    elif kind == "multiples":
        factors = torch.tensor([-1.0, 0.3, 1.0, 7.0], dtype=torch.float64)
        rows = rows[torch.randint(0, m, (m,), generator=maker)]
        rows = rows * factors[torch.randint(0, 4, (m, 1), generator=maker)]
    elif kind == "balanced":
        rows = rows - rows.mean(0)
    elif kind == "near":
        for away in torch.eye(n + 3, dtype=torch.float64)[n:]:
            i, j = draw(st.integers(0, m - 1)), draw(st.integers(0, m - 1))
            rows = torch.nn.functional.pad(rows, (0, n + 3 - rows.shape[1]))
            angle = draw(st.sampled_from(ANGLES))
            rows[i] = draw(st.sampled_from([-1, 1])) * (rows[j] / rows[j].norm() + angle * away)
    if draw(st.booleans()):
        exponents = torch.tensor(draw(st.lists(st.integers(-6, 6), min_size=m, max_size=m)))
        rows = rows * 10.0 ** exponents[:, None]
    if draw(st.integers(0, 9)) == 0:
        rows[draw(st.integers(0, m - 1))] = 0
    return rows


class Judged:
    """The update v = sum_i c_i g_i of given coefficients, in exact fractions.

    Attributes:
        products: g_i . v / |g_i|; nothing for a zero gradient.
        norms: |g_i| of the others.
        length: |v|.
        parts: sum_i |c_i| |g_i|, which rounding of C and c is relative to.
    """

    def __init__(self, c: Tensor, rows: Tensor) -> None:
        assert c.isfinite().all()
        self.rows = [[Fraction(v) for v in row] for row in rows.tolist()]
        self.c = [Fraction(v) for v in c.tolist()]
        self.v = self.sum_of(self.c)
        self.squares = [inner(row, row) for row in self.rows]
        self.norms = [math.sqrt(square) for square in self.squares if square]
        self.products = [
            float(inner(row, self.v)) / math.sqrt(square)
            for row, square in zip(self.rows, self.squares, strict=True)
            if square
        ]
        self.length = math.sqrt(inner(self.v, self.v))
        parts = zip(self.c, self.squares, strict=True)
        self.parts = math.fsum(abs(float(x)) * math.sqrt(square) for x, square in parts)

    def sum_of(self, c: list[Fraction]) -> list[Fraction]:
        """sum_i c_i g_i."""
        columns = zip(*self.rows, strict=True)
        return [sum((x * g for x, g in zip(c, column, strict=True)), Fraction()) for column in columns]

    @property
    def beyond_the_mean(self) -> list[Fraction]:
        """c_i - 1 / m; zero for a zero gradient, whose coefficient says nothing."""
        mean = Fraction(1, len(self.c))
        return [x - mean if square else Fraction() for x, square in zip(self.c, self.squares, strict=True)]

    @property
    def rounding(self) -> float:
        """Of a product with a unit gradient: 8 eps for a ridge, 4 for C, 4 for the coefficients."""
        return 16 * EPS * self.parts


def inner(u: list[Fraction], v: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(u, v, strict=True)), Fraction())
