"""Host time of an eager call on a CUDA device, as JSON; or a small run for compute-sanitizer.

python benchmarks/gpu_host.py [--once]
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch

from fastconfig import ConFIG_update, backends, use_backend

FORMS = ("tensor", "list of 3", "3 lists of 20")
CALLS = 200  # that the device's queue holds without the host waiting for it


def inputs(form: str, n: int) -> object:
    rows = torch.randn(3, n, device="cuda")
    if form == "tensor":
        return rows
    if form == "list of 3":
        return list(rows)
    return [[piece.clone() for piece in row.split(n // 20)] for row in rows]


def microseconds(grads: object) -> float:
    """Median over 20 rows of calls."""
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            ConFIG_update(grads)
        times.append((time.perf_counter() - start) / CALLS)
    return 1e6 * statistics.median(times)


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for name, reason in backends.explain("cuda"):
        if reason is not None or name == "pytorch":
            continue
        with use_backend(name):
            if "--once" in sys.argv:
                for m in (2, 3, 8, 9, 33):
                    for dtype in (torch.float32, torch.bfloat16):
                        for n in (1, 4099, 200_003):
                            rows = torch.randn(m, n, device="cuda").to(dtype)
                            ConFIG_update(rows)
                            ConFIG_update([torch.cat([row[:1], row])[1:] for row in rows])
                continue
            found[name] = {form: round(microseconds(inputs(form, 10_000)), 2) for form in FORMS}
    torch.cuda.synchronize()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
