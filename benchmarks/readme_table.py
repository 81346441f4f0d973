"""Write the README's benchmark table from a JSON file of ``fastconfig bench``; it is never typed by hand.

python benchmarks/readme_table.py                             # the newest in benchmarks/results
python benchmarks/readme_table.py benchmarks/results/X.json   # this one
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
OPERATION = "ConFIG_update"
PEERS = ("plain torch", "torchjd", "conflictfree")


def newest(folder: Path = RESULTS) -> Path | None:
    """The JSON file of the latest run, by the date in it; None if there is none."""
    files = sorted(folder.glob("*.json"))
    return max(files, key=lambda path: json.loads(path.read_text(encoding="utf-8"))["date"], default=None)


def table(numbers: dict[str, Any], source: str) -> str:
    """The whole update of float32 vectors by the default backend, as Markdown."""
    machine, versions = numbers["machine"], numbers["versions"]
    place = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    peers = ", ".join(f"{name} {versions[name]}" for name in PEERS if versions.get(name))
    heads = ["m", "N", "time (median)", "over the floor", *(f"× {name}" for name in PEERS), "extra memory"]
    lines = [
        f"`{OPERATION}` of m float32 vectors on {place}, {machine['threads']} threads, torch "
        f"{versions['torch']}{', ' + peers if peers else ''} ([all figures]({source})).",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' ---: |' * len(heads)}",
    ]
    notes = set()
    for of_setting in numbers["settings"]:
        setting = of_setting["setting"]
        row = next((r for r in of_setting.get("results", ()) if r["operation"] == OPERATION), None)
        if row is None or (setting["dtype"], setting["form"]) != ("float32", "vectors"):
            continue
        ratios = []
        for name in PEERS:
            ratio, mark = ratio_of(row, of_setting, name)
            ratios.append(ratio + mark)
            notes.add(mark)
        extra = row.get("extra_memory_bytes")
        cells = [
            str(setting["m"]),
            f"{setting['n']:,}",
            duration(row["median_us"]),
            f"{row['time_over_floor']:.2f}",
            *ratios,
            "" if extra is None else f"{extra / 1e6:.1f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "The floor is the time to read the gradients twice and to write the answer once, measured in the "
        "same run; × says how many times faster fastconfig is; extra memory is the peak of a call beyond its "
        "result.",
    ]
    if "\\*" in notes:
        lines += [
            "",
            "\\*: the other's result is off the float64 oracle's by more than 1 % of its length.",
        ]
    if "–" in notes:
        lines += ["", "–: left out, because it is too slow or fails."]
    return "\n".join(lines)


def ratio_of(row: dict[str, Any], of_setting: dict[str, Any], name: str) -> tuple[str, str]:
    """How many times faster than a peer, and a mark."""
    peer = next((p for p in of_setting["peers"] if p["name"] == name and p["operation"] == OPERATION), None)
    if peer is None:
        return "", "–"
    if not row["right"]:
        return "refused", ""
    off = not peer["right"] and (peer["error"] is None or peer["error"] > 0.01)
    value = row["faster_than"][name]
    return (f"{value:,.0f}" if value >= 10 else f"{value:.1f}"), "\\*" if off else ""


def duration(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.3g} µs"
    return f"{microseconds / 1000:.3g} ms"


def inserted(readme: str, text: str) -> str:
    """The README with ``text`` between the markers.

    Raises:
        ValueError: if the markers are missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: want {BEGIN} and {END} around the table")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def generated(readme: str, path: Path) -> str:
    """The README as it must be for the results in ``path``."""
    numbers = json.loads(path.read_text(encoding="utf-8"))
    return inserted(readme, table(numbers, f"benchmarks/results/{path.name}"))


def main(arguments: list[str]) -> int:
    path = Path(arguments[0]) if arguments else newest()
    if path is None:
        print(f"no JSON file in {RESULTS}; make one: fastconfig bench --json benchmarks/results/NAME.json")
        return 1
    readme = ROOT / "README.md"
    readme.write_text(generated(readme.read_text(encoding="utf-8"), path), encoding="utf-8")
    print(f"README.md: table from {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
