"""What tests build, in build/tests: once for a state of its sources, by one of the processes side by side."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "tests"


def sources(*folders: Path) -> list[Path]:
    """The C++ and CUDA files in these folders."""
    kinds = (".cu", ".cuh", ".hpp", ".h", ".cpp", ".def")
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in kinds]


def once(name: str, state: Iterable[Path], options: Sequence[object], make: Callable[[Path], object]) -> Path:
    """The file that ``make`` writes at the path it is given, made anew when a file or an option changes.

    Args:
        name: of the file; a digest is put before its suffix.
        state: files it depends on.
        options: what else it depends on.
        make: writes it; where it raises, nothing is kept.
    """
    digest = hashlib.sha256(repr(options).encode())
    for path in state:
        digest.update(path.read_bytes())
    FOLDER.mkdir(parents=True, exist_ok=True)
    plain = FOLDER / name
    target = plain.with_name(f"{plain.stem}-{digest.hexdigest()[:16]}{plain.suffix}")
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_name("unfinished-" + target.name)
            make(unfinished)
            unfinished.rename(target)
    return target
