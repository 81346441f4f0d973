"""Write the tables of README.md and docs from the JSON files in benchmarks/results.

Nobody types them. Each CPU table shows the newest run in its folder; GPU tables show every ``gpu-*.json``,
one card each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PEERS = ("plain torch", "torchjd", "conflictfree")
SHOWN = {"conflictfree": "conflictfree", "torchjd": "TorchJD"}  # in the README's summary, by their own names
TRAINING_HEADS = (
    "network",
    "way",
    "step",
    "passes",
    "outside",
    "× less outside",
    "× faster step",
    "extra memory",
)


MARKS = {
    "\\*": "\\*: the other's result is off the float64 oracle's by more than 1 % of its length.",
    "–": "–: left out, because it is too slow or fails.",
}


class Place(NamedTuple):
    """A table: where it stands, between which markers, whose times it has, and from which folder."""

    document: str
    marker: str
    operation: str
    what: str
    results: Path
    floor: str


BENCHMARKS = "docs/benchmarks.md"
TRAINING = Place(
    BENCHMARKS,
    "training",
    "",
    "A training step with three losses",
    RESULTS / "training",
    "Outside is what of a step lies between the losses and `.grad`, without torch's backward passes; the "
    "last line of each network says how much faster a step would be with nothing there. Extra memory is the "
    "peak of that part beyond the graph, in vectors of all parameters.",
)
GPU = Place(
    BENCHMARKS,
    "gpu",
    "ConFIG_update",
    "`ConFIG_update` of m vectors",
    RESULTS,
    "Cold: a CUDA graph's replay with nothing in L2; warm: the next replays. % of copy: (2m + 1) N b bytes "
    "in the cold time, beside what a device-to-device copy reads and writes; more than 100 % where an update "
    "reads its gradients once. Eager: with the host's call, as are those that × compares with.",
)
GPU_ALL = GPU._replace(document="docs/notes/gpu.md")
GPU_TRAINING = TRAINING._replace(marker="training-gpu")
PLACES = (
    Place(
        BENCHMARKS,
        "bench",
        "ConFIG_update",
        "`ConFIG_update` of m float32 vectors",
        RESULTS,
        "The floor is the time to read the gradients twice and to write the answer once, measured in the "
        "same run; × says how many times faster fastconfig is; extra memory is the peak of a call beyond its "
        "result.",
    ),
    Place(
        "docs/notes/momentum.md",
        "momentum",
        "PseudoMomentumOperator",
        "A step of `PseudoMomentumOperator` with one of m float32 vectors",
        RESULTS / "momentum",
        "The floor is the time of the same bytes at the speed of a pure read and a pure write of as many "
        "vectors as a step goes through, measured in the same run; × says how many times faster fastconfig "
        "is; extra memory is the peak of a call beyond its state and its result.",
    ),
)
SUMMARY = "README.md"
SUMMARY_NAMES = ["fastconfig", *SHOWN.values()]
SUMMARY_HEADS = ["device", "N", *SUMMARY_NAMES, *(f"error, {name}" for name in SUMMARY_NAMES)]
SUMMARY_SIZES = {"cpu": (10_000, 1_000_000, 10_000_000), "gpu": (10_000, 1_000_000)}


def newest(folder: Path = RESULTS) -> Path | None:
    """The JSON file of the latest run on a CPU, by the date in it; None if there is none."""
    files = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith("gpu-")]
    return max(files, key=lambda path: json.loads(path.read_text(encoding="utf-8"))["date"], default=None)


def table(numbers: dict[str, Any], source: str, place: Place) -> str:
    """The operation on float32 vectors by the default backend, as Markdown."""
    machine, versions = numbers["machine"], numbers["versions"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    theirs = [peer for of_setting in numbers["settings"] for peer in of_setting.get("peers", ())]
    asked = {peer["name"] for peer in theirs if peer["operation"] == place.operation}
    names = [name for name in PEERS if name in asked]
    peers = ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))
    heads = ["m", "N", "time (median)", "over the floor", *(f"× {name}" for name in names), "extra memory"]
    lines = [
        f"{place.what} on {device}, {machine['threads']} threads, torch "
        f"{versions['torch']}{', ' + peers if peers else ''} ([all figures]({source})).",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' ---: |' * len(heads)}",
    ]
    notes = set()
    for of_setting in numbers["settings"]:
        setting = of_setting["setting"]
        row = next((r for r in of_setting.get("results", ()) if r["operation"] == place.operation), None)
        if row is None or (setting["dtype"], setting["form"]) != ("float32", "vectors"):
            continue
        ratios = []
        for name in names:
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
    lines += ["", place.floor]
    for mark, text in MARKS.items():
        if mark in notes:
            lines += ["", text]
    return "\n".join(lines)


def gpu_table(numbers: dict[str, Any], source: str, place: Place) -> str:
    """One card's results of ``make gpu``, as Markdown."""
    machine, versions = numbers["machine"], numbers["versions"]
    largest = max(numbers["bandwidth"], key=lambda row: row["bytes"], default={"copy_gb_s": 0.0})
    copy = largest["copy_gb_s"]  # a smaller copy may stay in L2
    names = [name for name in PEERS if numbers["peers"].get(name) == "installed"]
    heads = ["m", "N", "input", "cold", "warm", "% of copy", "eager", *(f"× {name}" for name in names)]
    lines = [
        f"{place.what} on {machine['device']}, copy {copy:,.0f} GB/s, torch {versions['torch']} "
        f"([all figures]({source})).",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' ---: |' * len(heads)}",
    ]
    for of_setting in numbers["settings"]:
        setting = of_setting["setting"]
        main = (setting["dtype"], setting["form"], setting["m"] in (3, 8, 32)) == ("float32", "vectors", True)
        for row in of_setting["results"]:
            if row["operation"] != place.operation or (
                place is GPU and not (main and row["backend"] == "cuda")
            ):
                continue
            what = f"{setting['dtype']}, {setting['form']}" + (
                ", Triton" if row["backend"] == "triton" else ""
            )
            cells = [str(setting["m"]), f"{setting['n']:,}", what, *gpu_cells(row, copy)]
            cells += ["".join(ratio_of(row, of_setting, name)) if "eager_us" in row else "" for name in names]
            lines.append(f"| {' | '.join(cells)} |")
    notes = {mark: text for mark, text in MARKS.items() if any(mark in line for line in lines[4:])}
    return "\n".join([*lines, "", " ".join([place.floor, *notes.values()])])


def summary(paths: list[Path]) -> str:
    """The README's few rows: three float32 gradients, on the CPU and on every card; times and errors."""
    lines = [f"| {' | '.join(SUMMARY_HEADS)} |", "| --- |" + " ---: |" * (len(SUMMARY_HEADS) - 1)]
    for path in paths:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        kind = "cpu" if numbers["machine"]["device"] == "cpu" else "gpu"
        for of_setting in numbers["settings"]:
            setting = of_setting["setting"]
            if (setting["m"], setting["dtype"], setting["form"]) != (3, "float32", "vectors"):
                continue
            if setting["n"] not in SUMMARY_SIZES[kind]:
                continue
            found = (r for r in of_setting["results"] if r["operation"] == "ConFIG_update" and r["right"])
            ours = next(found, None)
            peers = of_setting.get("peers", ())
            theirs = {p["name"]: p for p in peers if p["operation"] == "ConFIG_update"}
            entries = [ours, *(theirs.get(name) for name in SHOWN)]
            cells = ["CPU" if kind == "cpu" else card(numbers), f"{setting['n']:,}"]
            cells += ["–" if e is None else duration(e.get("eager_us", e["median_us"])) for e in entries]
            cells += ["–" if e is None else f"{e['error']:.2g}" for e in entries]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def card(numbers: dict[str, Any]) -> str:
    """A card's short name, such as H100."""
    return str(numbers["machine"]["device"]).removeprefix("NVIDIA ").split()[0]


def summarised() -> str:
    """README.md as it must be for the newest run on a CPU and all cards' runs."""
    paths = [path for path in (newest(), *cards()) if path is not None]
    return inserted((ROOT / SUMMARY).read_text(encoding="utf-8"), summary(paths), "summary")


def gpu_cells(row: dict[str, Any], copy: float) -> list[str]:
    """Times, and the share of a copy's speed; of a wrong result nothing."""
    if not row["right"]:
        return ["wrong", "", "", ""]
    cold = duration(row["median_us"]) + ("" if row["note"] == "CUDA graph" else " eager")
    warm, eager = (duration(row[name]) if name in row else "" for name in ("warm_us", "eager_us"))
    return [cold, warm, f"{100 * row['gb_s'] / copy:.0f}" if copy else "", eager]


def training_table(numbers: dict[str, Any], source: str, place: Place) -> str:
    """Of training_step.py's results, as Markdown."""
    origin = numbers["origin"]
    lines = [
        f"{place.what} on {origin['processor']}, {origin['threads']} threads, {versions_of(origin)} "
        f"([all figures]({source})).",
        "",
        f"| {' | '.join(TRAINING_HEADS)} |",
        f"|{' --- |' * 2}{' ---: |' * 6}",
    ]
    lines += [f"| {' | '.join(cells)} |" for result in numbers["results"] for cells in training_cells(result)]
    return "\n".join([*lines, "", place.floor])


def gpu_training_table(numbers: dict[str, Any], source: str, place: Place) -> str:
    """The training steps of one card's run of ``make gpu``, as Markdown."""
    machine, points = numbers["machine"], numbers["training"]["points"]
    card = f"{machine['device']} ({machine['processor']})"
    origin = {"processor": card, "threads": machine["threads"], "versions": numbers["versions"]}
    results = [point["step"] for point in points.values() if "step" in point]
    return training_table({"origin": origin, "results": results}, source, place)


def versions_of(origin: dict[str, Any]) -> str:
    """What a run was made with."""
    return ", ".join(f"{name} {origin['versions'][name]}" for name in ("torch", "conflictfree"))


def training_cells(result: dict[str, Any]) -> list[list[str]]:
    """Of a network a line for each way; then how much faster a step would be with nothing outside."""
    seconds = result["seconds"]
    theirs = seconds["conflictfree"]
    name = f"{result['network']}, {result['parameters']:,} in {result['tensors']} tensors"
    found = []
    for way in ("conflictfree", "import change", "fastconfig.backward"):
        step, passes, outside = (seconds[way][part] for part in ("step", "passes", "outside"))
        more = result["extra_vectors"][way]
        found.append(
            [
                name,
                way,
                *(duration(1e6 * part) for part in (step, passes, outside)),
                f"{theirs['outside'] / outside:.1f}",
                f"{theirs['step'] / step:.2f}",
                "–" if more is None else f"{more:.1f} N",
            ]
        )
    # the quickest: what is outside cools the caches for the rest of its step, too
    rest = min(way["step"] - way["outside"] for way in seconds.values())
    most = theirs["step"] / rest
    return [*found, [name, "nothing outside", *["–"] * 4, f"{most:.2f}", "–"]]


def ratio_of(row: dict[str, Any], of_setting: dict[str, Any], name: str) -> tuple[str, str]:
    """How many times faster than a peer, and a mark."""
    theirs = (p for p in of_setting["peers"] if (p["name"], p["operation"]) == (name, row["operation"]))
    peer = next(theirs, None)
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
    if microseconds < 1e6:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1e6:.3g} s"


def inserted(document: str, text: str, marker: str) -> str:
    """A document with ``text`` between the markers.

    Raises:
        ValueError: if the markers are missing.
    """
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"want {begin} and {end} around the table")
    return f"{before}{begin}\n{text}\n{end}{after}"


def generated(place: Place, *paths: Path) -> str:
    """The document of a place as it must be for the results in ``paths``."""
    document = ROOT / place.document
    up = "../" * (len(Path(place.document).parts) - 1)
    make = MAKERS.get(place, table)
    texts = []
    for path in paths:
        source = f"{up}benchmarks/results/{path.relative_to(RESULTS).as_posix()}"
        texts.append(make(json.loads(path.read_text(encoding="utf-8")), source, place))
    return inserted(document.read_text(encoding="utf-8"), "\n\n".join(texts), place.marker)


GPUS = (GPU, GPU_ALL, GPU_TRAINING)
MAKERS = {
    GPU: gpu_table,
    GPU_ALL: gpu_table,
    TRAINING: training_table,
    GPU_TRAINING: gpu_training_table,
}


def cards(place: Place | None = None) -> list[Path]:
    """The JSON files of ``make gpu``; for a table of training steps, of the runs that took some."""
    found = sorted(RESULTS.glob("gpu-*.json"))
    if place is not GPU_TRAINING:
        return found
    return [path for path in found if "training" in json.loads(path.read_text(encoding="utf-8"))]


def main() -> int:
    for place in (*PLACES, TRAINING):
        path = newest(place.results)
        if path is None:
            print(f"no JSON file in {place.results}; make one: fastconfig bench --json FILE")
            return 1
        (ROOT / place.document).write_text(generated(place, path), encoding="utf-8")
        print(f"{place.document}: table from {path.name}")
    for place in GPUS:
        if paths := cards(place):
            (ROOT / place.document).write_text(generated(place, *paths), encoding="utf-8")
            print(f"{place.document}: tables from {', '.join(path.name for path in paths)}")
    (ROOT / SUMMARY).write_text(summarised(), encoding="utf-8")
    print(f"{SUMMARY}: summary")
    return 0


if __name__ == "__main__":
    sys.exit(main())
