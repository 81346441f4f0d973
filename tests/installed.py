"""What an installed fastconfig must do: ``python tests/installed.py``, from outside of the checkout.

For wheels: no compiler, no test framework, no peers. Imports the package as users do, compares updates in
every dtype with the oracle, and takes momentum steps and a step of a network.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import fastconfig
from fastconfig import _C, reference
from fastconfig.cli import main

HERE = Path(__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check(backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = [torch.randn(10_007).to(dtype) for _ in range(5)]
    exact = reference.config(torch.stack(rows))
    with fastconfig.use_backend(backend):
        update = fastconfig.ConFIG_update(rows).double()
        operator = fastconfig.PseudoMomentumOperator(5)
        for step in range(3):
            assert operator.calculate_gradient([step, 4], rows[:2]).isfinite().all(), (backend, dtype)
    error = float((update - exact).norm() / exact.norm())
    assert error <= max(torch.finfo(dtype).eps, 1e-13), (backend, dtype, error)  # rounded once


def run() -> None:
    installed = Path(fastconfig.__file__).resolve()
    assert installed.parent != HERE / "fastconfig", (
        f"{installed} is the checkout: run this from another folder"
    )
    assert Path(_C.__file__).resolve().parent == installed.parent
    for backend in ("numba", "pytorch"):
        for dtype in DTYPES:
            check(backend, dtype)
    network = torch.nn.Linear(3, 2)
    outputs = network(torch.ones(4, 3))
    fastconfig.backward([outputs[:, 0].sum(), outputs[:, 1].square().sum()], network)
    assert network.weight.grad is not None
    assert main(["info", "--json"]) == 0
    print(
        f"fastconfig {fastconfig.__version__} in {installed.parent}: right on Python {sys.version.split()[0]}"
    )


if __name__ == "__main__":
    run()
