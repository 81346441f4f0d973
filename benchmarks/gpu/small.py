"""What compute-sanitizer and ncu watch: ``python -m gpu.small BACKEND DEVICE kernels|counters``."""

from __future__ import annotations

import sys

import torch

from fastconfig import ConFIG_update, ConFIGOperator, GramOperator, PCGradOperator, use_backend
from fastconfig.bench.cases import CALLS
from fastconfig.methods import RULES
from fastconfig.momentum_operator import PseudoMomentumOperator
from gpu.grouped import grouped


def kernels(device: str) -> None:
    """Each kernel once or twice, on rows aligned and odd; both ends of a chunk."""
    sizes = (1, 1025) if device == "cpu" else (1, 1025, 50_003)
    for m in (2, 3, 8, 9, 17, 33):
        for n in sizes if m < 17 else sizes[:2]:
            rows = torch.randn(m, n).to(device)
            ConFIG_update([torch.cat([row[:1], row])[1:] for row in rows])
            ConFIG_update(list(rows.bfloat16()))
        PCGradOperator().calculate_gradient(rows)
        operator = PseudoMomentumOperator(m)
        operator.calculate_gradient(range(m), rows)
        operator.calculate_gradient([0], rows[:1])
        grouped(ConFIGOperator()).calculate_gradient([row.split([1, 700, row.numel() - 701]) for row in rows])
        if m in (3, 9, 33):
            for method in heavy():
                GramOperator(RULES[method]()).calculate_gradient(rows)
        print(f"m = {m}", flush=True)


def heavy() -> list[str]:
    """Methods that iterate: compiled code has them, and the bench times them apart."""
    return [name for name, rule in RULES.items() if rule.native is not None and name not in CALLS]


def counters(device: str) -> None:
    """Both passes for m = 3, then the first for m = 32; warmed up before."""
    share = 1000 if device == "cpu" else 1
    given = [list(torch.randn(m, n // share, device=device)) for m, n in ((3, 10_000_000), (32, 1_000_000))]
    for grads in given:
        ConFIG_update(grads)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for grads in given:
        ConFIG_update(grads)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    _, backend, device, what = sys.argv
    with use_backend(backend):
        {"kernels": kernels, "counters": counters}[what](device)
    if device == "cuda":
        torch.cuda.synchronize()
