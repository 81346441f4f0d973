"""``make gpu-wheel``: the wheel that ``make gpu`` installs, built where there is a network and no GPU.

    python3.12 benchmarks/gpu/wheel.py --out wheels

Beside it come the peers' wheels. The wheel's build tag names the sources that it was made of, so that a
machine with a GPU can tell whether it is of the checkout that is there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS, SUFFIXES = ("fastconfig", "kernels", "csrc"), {".py", ".cu", ".cuh", ".cpp", ".hpp", ".def"}
ARCHITECTURE = "90-real"  # H100 and H200
PEERS = ("conflictfree", "torchjd")
COMMIT = "commit.txt"


def build_tag(root: Path = ROOT) -> str:
    """A wheel's build tag, which starts with a digit: a digest of the sources."""
    found = hashlib.sha256()
    files = [root / name for name in ("CMakeLists.txt", "pyproject.toml")]
    for folder in FOLDERS:
        for path, _, names in os.walk(root / folder):
            files += [Path(path, name) for name in names if Path(name).suffix in SUFFIXES]
    for file in sorted(files):
        found.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return f"0{found.hexdigest()[:12]}"


def commit(root: Path = ROOT) -> str | None:
    """The checkout's commit, with "+" where files differ; where git does not tell, what was noted here."""
    git = ["git", "-C", str(root)]
    try:
        run = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        run = None
    if run is not None and run.returncode == 0:
        return run.stdout.strip() + ("+" if changed.stdout.strip() else "")
    noted = root / "wheels" / COMMIT
    return noted.read_text(encoding="utf-8").strip() if noted.exists() else None


def missing() -> list[str]:
    """What this Python and this machine lack for a build."""
    found = []
    if sys.version_info[:2] != (3, 12):
        found.append(
            f"Python 3.12, which the GPU's machine has: {sys.executable} is {sys.version.split()[0]}"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        found.append(f"Python's headers: there is no {header}")
    if shutil.which(os.environ.get("CUDACXX", "nvcc")) is None:
        found.append("nvcc 12.8 or newer on the PATH, or CUDACXX")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        found.append(f"pip: {sys.executable} -m ensurepip")
    return found


def contents(wheel: Path) -> list[str]:
    """What was built: the extensions, and how large they are.

    Raises:
        RuntimeError: if one is missing.
    """
    with zipfile.ZipFile(wheel) as archive:
        sizes = {i.filename: i.file_size for i in archive.infolist() if i.filename.endswith(".so")}
    for name in ("_C", "_cuda"):
        if not any(file.startswith(f"fastconfig/{name}.") for file in sizes):
            raise RuntimeError(f"{wheel.name} has no fastconfig/{name}")
    return [f"{wheel.stat().st_size:>10,} {wheel.name}", *(f"{n:>10,}   {file}" for file, n in sizes.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the wheel for the GPU's machine.")
    parser.add_argument("--out", type=Path, default=ROOT / "wheels")
    out: Path = parser.parse_args().out
    lacks = missing()
    if lacks:
        print("make gpu-wheel: missing here:", *lacks, sep="\n  ", file=sys.stderr)
        print("`make gpu` builds on the GPU's machine where there is no wheel.", file=sys.stderr)
        return 1
    shutil.rmtree(out, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    made = ["-C", f"wheel.build-tag={build_tag()}", "-C", "cmake.define.FASTCONFIG_CUDA=ON"]
    environment = {**os.environ, "CUDAARCHS": ARCHITECTURE}
    subprocess.run([*pip, "wheel", "--no-deps", "-w", out, *made, ROOT], check=True, env=environment)
    (out / COMMIT).write_text(f"{commit()}\n", encoding="utf-8")
    print(*contents(next(out.glob("fastconfig-*.whl"))), sep="\n")
    for peer in PEERS:
        subprocess.run([*pip, "download", "--no-deps", "-d", out, peer], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
