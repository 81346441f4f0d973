"""Write the table of docs/notes/gpu.md that sets measured times beside predicted ones.

    python benchmarks/gpu_predicted.py

Times come from benchmarks/results/gpu-h100.json and gpu-h200.json. What was predicted, and measured of the
first version, stands below, and so do the registers of the kernels.
"""

from __future__ import annotations

import json
from typing import Any

from readme_table import RESULTS, ROOT, inserted

DOCUMENT = ROOT / "docs" / "notes" / "gpu.md"
MARKER = "gpu-predicted"
CARDS = ("h100", "h200")
M, N = (2, 3, 8, 32), (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
#: by (m, N), in microseconds: by the design for an H200; read from the first version's machine code for an
#: H100; that version on one
BEFORE = {
    (2, 10_000): ("", "", "10.8"),
    (3, 10_000): ("6 to 7", "11 to 13", "13.5"),
    (3, 100_000): ("7", "12 to 14", "14.7"),
    (3, 1_000_000): ("10", "18 to 23", "21.6"),
    (3, 10_000_000): ("62", "96 to 105", "97.5"),
    (3, 100_000_000): ("", "", "952"),
    (8, 10_000): ("", "17 to 20", "26.3"),
    (8, 10_000_000): ("", "240 to 260", "250"),
    (8, 100_000_000): ("", "", "2,624"),
    (32, 10_000): ("", "55 to 60", "88.9"),
    (32, 10_000_000): ("", "950 to 1,000", "1,158"),
    (32, 100_000_000): ("", "", "10,975"),
}
#: by m, of float32 on sm_90 by nvcc 13.0: of the one launch for short rows, and of those for long ones in
#: their order; tests/test_cuda_build.py compares them with what the compiler says
REGISTERS: dict[int, tuple[dict[str, int], dict[str, int]]] = {
    2: ({"whole": 102}, {"gram_small": 48, "finish": 96}),
    3: ({"whole": 108}, {"gram_small": 64, "finish": 128}),
    8: ({"whole": 159}, {"gram_tiles": 48, "finish": 124}),
    32: ({}, {"gram_tiles": 128, "sum": 32, "solve_problem": 86, "combine": 128}),
}
LONG = 1_000_000  # elements that no single launch keeps
HEADS = ("m", "N", "predicted", "read", "first", "H100", "of a copy", "H200", "of a copy", "registers")


def measured(numbers: dict[str, Any], m: int, n: int) -> tuple[str, str]:
    """Microseconds of ConFIG's update on one card, and for long rows its share of a copy's speed."""
    copy = max(numbers["bandwidth"], key=lambda row: row["bytes"])["copy_gb_s"]
    for place in numbers["settings"]:
        setting = place["setting"]
        if (setting["m"], setting["n"], setting["dtype"], setting["form"]) != (m, n, "float32", "vectors"):
            continue
        for row in place["results"]:
            if (row["operation"], row["backend"], row["right"]) == ("ConFIG_update", "cuda", True):
                us = row["median_us"]
                share = f"{100 * row['gb_s'] / copy:.0f} %" if n >= LONG else ""
                return (f"{us:,.0f}" if us >= 100 else f"{us:.1f}"), share
    return "", ""


def registers(m: int, n: int) -> str:
    short, long = REGISTERS[m]
    return ", ".join(str(count) for count in (long if n >= LONG or not short else short).values())


def table() -> str:
    """All sizes that one of the cards has run or somebody predicted."""
    runs = [json.loads((RESULTS / f"gpu-{card}.json").read_text(encoding="utf-8")) for card in CARDS]
    lines = [f"| {' | '.join(HEADS)} |", "|" + " ---: |" * len(HEADS)]
    for m in M:
        for n in N:
            found = [cell for numbers in runs for cell in measured(numbers, m, n)]
            before = BEFORE.get((m, n), ("", "", ""))
            if any(found) or any(before):
                exponent = len(str(n)) - 1
                lines.append(f"| {' | '.join([str(m), f'1e{exponent}', *before, *found, registers(m, n)])} |")
    return "\n".join(lines)


def generated() -> str:
    """The document as it must be."""
    return inserted(DOCUMENT.read_text(encoding="utf-8"), table(), MARKER)


if __name__ == "__main__":
    DOCUMENT.write_text(generated(), encoding="utf-8")
    print(f"{DOCUMENT.relative_to(ROOT)}: predicted and measured")
