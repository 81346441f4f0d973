"""Cosines of the ConFIG update with every gradient, by fastconfig and by conflictfree, at large N.

With equal weights all cosines are equal, by definition. Run: python examples/equal_cosines.py
"""

from __future__ import annotations

import argparse
import importlib
import time

import torch
from torch import Tensor

from fastconfig import ConFIG_update, reference


def gradients(m: int, n: int) -> Tensor:
    """(m, n) float32 mixtures of m independent heavy-tailed directions: some agree, some conflict."""
    directions = torch.randn(m, n) * torch.randn(m, n).exp()
    return torch.randn(m, m) @ directions


def cosines(update: Tensor, rows: Tensor) -> list[float]:
    """Cosine of the update with each row, in float64."""
    u = update.double()
    return [float(u @ (g := row.double()) / (u.norm() * g.norm())) for row in rows]


def report(name: str, update: Tensor, seconds: float, rows: Tensor, exact: Tensor) -> None:
    values = cosines(update, rows)
    mean = sum(values) / len(values)
    spread = (max(values) - min(values)) / abs(mean)
    error = float((update.double() - exact).norm() / exact.norm())
    print(f"  {name:13s} " + " ".join(f"{value:+.6f}" for value in values))
    print(f"  {'':13s} spread {spread:.1e}   error of the update {error:.1e}   {seconds:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 5_000_000], metavar="N")
    parser.add_argument("--gradients", type=int, default=5, metavar="M")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    packages = {"fastconfig": ConFIG_update}
    try:
        packages["conflictfree"] = importlib.import_module("conflictfree.grad_operator").ConFIG_update
    except ImportError:
        print("conflictfree is not installed; showing fastconfig alone")
    for n in options.sizes:
        rows = gradients(options.gradients, n)
        exact = reference.config(rows)
        print(f"N = {n:,}: cosines of the update with the {options.gradients} gradients")
        for name, update in packages.items():
            grads = list(rows)
            if name == "fastconfig":
                update(grads)  # compile
            start = time.perf_counter()
            result = update(grads)
            report(name, result, time.perf_counter() - start, rows, exact)


if __name__ == "__main__":
    main()
