"""Plant the faults one at a time, and write down which test finds each.

    python tests/planted/plant.py                   all of them, a good half hour on two cores
    python tests/planted/plant.py --only NAME ...   some of them; their rows of the table are renewed
    python tests/planted/plant.py --all-tests       survivors meet all that `make test` runs

The tree is copied to a temporary folder, with an environment of its own that shares the installed packages.
There each edit is made, ``fastconfig._C`` is built again where it is one of csrc/ (pybind11 must be
installed), and the tests that the fault names are run up to the first that fails. In the end all of those
must pass without any edit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__:
    from . import ALL, Fault
else:  # run as a script
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from planted import ALL, Fault

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("README.md")
SURVIVED = "**survived**"
CXX = os.environ.get("CXX", "g++")
NATIVE = ("bindings", "networks", "results", "steps", "vectors")  # sources of fastconfig._C
LIMIT = 300  # seconds of a run: a fault may hang
ALL_LIMIT = 3600
RESULT = re.compile(r"^(tests/\S+?::.+?)\s+(PASSED|FAILED|ERROR|SKIPPED|XFAIL)")


class Copy:
    """The sources in a folder of their own, to be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
            "\0"
        )
        for name in filter(None, names):
            if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / "fastconfig" / "kernels").symlink_to("../kernels")
        venv.create(folder / ".venv", with_pip=False, symlinks=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        paths = folder / ".venv" / "lib" / version / "site-packages" / "copy.pth"
        paths.write_text("\n".join([str(folder), *packages]))
        if (ROOT / "build" / "tests").is_dir():  # by the contents of the sources: good for those that stay
            shutil.copytree(ROOT / "build" / "tests", folder / "build" / "tests")
        self._objects = self._compiled([folder / "csrc" / f"{name}.cpp" for name in NATIVE], "clean")
        self._link(self._objects)
        self._kept = self.module.read_bytes()

    @property
    def module(self) -> Path:
        return self.folder / "fastconfig" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

    def _compiled(self, sources: list[Path], into: str) -> dict[str, Path]:
        """Objects of sources of ``fastconfig._C``, by their names."""
        import pybind11

        (self.folder / "objects" / into).mkdir(parents=True, exist_ok=True)
        include = [f"-I{path}" for path in ("csrc", pybind11.get_include(), sysconfig.get_path("include"))]
        flags = ["-O1", "-DNDEBUG", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-MMD", *include]

        def one(source: Path) -> tuple[str, Path]:
            target = self.folder / "objects" / into / f"{source.stem}.o"
            subprocess.run([CXX, *flags, "-c", source, "-o", target], cwd=self.folder, check=True)
            return source.stem, target

        with ThreadPoolExecutor(2) as pool:
            return dict(pool.map(one, sources))

    def _link(self, objects: dict[str, Path]) -> None:
        target = self.module.with_suffix(".new")
        subprocess.run([CXX, "-shared", *objects.values(), "-o", target], check=True)
        target.replace(self.module)  # never over a file that is mapped

    def _build(self, changed: str) -> None:
        """``fastconfig._C`` after a change of one file of csrc/."""
        objects = self.folder / "objects" / "clean"
        read = {name: (objects / f"{name}.d").read_text().split() for name in NATIVE}  # files that each reads
        names = [name for name in NATIVE if any(file.endswith(changed) for file in read[name])]
        sources = [self.folder / "csrc" / f"{name}.cpp" for name in names]
        self._link(self._objects | self._compiled(sources, "changed"))

    def plant(self, fault: Fault) -> None:
        """Make the edit.

        Raises:
            ValueError: if its text does not occur once.
        """
        text = (self.folder / fault.file).read_text()
        if text.count(fault.old) != 1:
            raise ValueError(f"{fault.name}: got {text.count(fault.old)} places in {fault.file}, want one")
        self._clean = text
        self._write(fault.file, text.replace(fault.old, fault.new))
        if fault.file.startswith("csrc/"):
            self._build(fault.file)

    def take_back(self, fault: Fault) -> None:
        self._write(fault.file, self._clean)
        if fault.file.startswith("csrc/"):
            self.module.unlink()  # never over a file that is mapped
            self.module.write_bytes(self._kept)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()  # Python looks at whole seconds and sizes only

    def first_failure(self, tests: list[str], cache: str, limit: int = LIMIT) -> str | None:
        """The first test that fails, and how, if it is not as tests fail; None if all pass."""
        python = self.folder / ".venv" / "bin" / "python"
        options = ["-x", "-vv", "--tb=no", "-p", "no:cacheprovider"]
        if not all(test.endswith("]") for test in tests):  # one case by its name may be a slow one
            options += ["-m", "not slow"]
        command = [str(python), "-m", "pytest", *options, *tests]
        variables = {"NUMBA_CACHE_DIR": str(self.folder / "cache" / cache), "PYTHONPATH": ""}
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                print(f"{' '.join(tests)}: cut off after {limit} s")
                return None  # which found nothing
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            printed = output.read()
        if code in (2, 4, 5):  # of pytest: nothing was run
            raise RuntimeError(f"{' '.join(tests)}: {printed[-3000:]}")
        if code == 0:
            return None
        results = [match for match in map(RESULT.match, printed.splitlines()) if match]
        failed = [match[1] for match in results if match[2] in ("FAILED", "ERROR")]
        if failed:
            return failed[0]
        started = re.findall(r"^(tests/\S+?::\S+)", printed, re.MULTILINE)
        return f"{started[-1] if started else tests[0]} -- ends with {code}"


def found_by(copy: Copy, fault: Fault, all_tests: bool) -> str:
    """The first test that finds a fault, or SURVIVED."""
    cache = fault.name if fault.file.startswith("kernels/numba/") else "clean"
    copy.plant(fault)
    try:
        found = copy.first_failure([f"tests/{test}" for test in fault.tests], cache)
        if found is None and all_tests:
            found = copy.first_failure(["tests"], cache, ALL_LIMIT)
    finally:
        copy.take_back(fault)
    return SURVIVED if found is None else found.removeprefix("tests/")


def fails_without(copy: Copy, tests: set[str]) -> str | None:
    """A test that fails without any fault, of those that are said to find some."""
    return (
        copy.first_failure([f"tests/{test}" for test in sorted(tests)], "clean", ALL_LIMIT) if tests else None
    )


def rows_before() -> dict[str, str]:
    """What the table says, by the names of the faults."""
    if not TABLE.exists():
        return {}
    rows = [line.strip("|").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): row[-1].strip(" `") for row in rows}


def write_table(rows: dict[str, str]) -> None:
    """README.md, of all faults that were planted so far."""
    known = [fault for fault in ALL if fault.name in rows]
    survivors = [fault for fault in known if rows[fault.name] == SURVIVED]
    share = 100 * (len(known) - len(survivors)) / max(1, len(known))
    lines = [
        "# Planted faults",
        "",
        "`python tests/planted/plant.py` wrote this table. It plants the faults of this folder one at a time",
        "in a copy of the sources, and runs the tests that each names up to the first that fails; that one",
        "passes without the fault. `tests/test_planted.py` sees to it that every fault fits the sources.",
        "",
        f"**{len(known)} faults, {len(known) - len(survivors)} found ({share:.0f} %).**",
        "",
        "| fault | in | what it breaks | found by |",
        "|---|---|---|---|",
    ]
    for fault in known:
        found = rows[fault.name]
        told = found if found == SURVIVED else f"`{found}`"
        lines.append(f"| `{fault.name}` | {fault.file} | {fault.breaks} | {told} |")
    if survivors:
        lines += ["", "## Survivors", ""]
        lines += [f"- `{fault.name}`: {fault.argument or 'to be found'}" for fault in survivors]
    TABLE.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults; by default all")
    parser.add_argument("--all-tests", action="store_true", help="survivors meet all that `make test` runs")
    given = parser.parse_args()
    unknown = sorted(set(given.only or ()) - {fault.name for fault in ALL})
    if unknown:
        parser.error(f"--only: got {', '.join(unknown)}, want names of planted faults")
    chosen = [fault for fault in ALL if not given.only or fault.name in given.only]
    rows = rows_before()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Copy(Path(folder))
        for fault in chosen:
            rows[fault.name] = found_by(copy, fault, given.all_tests)
            print(f"{time.monotonic() - began:5.0f} s  {fault.name}: {rows[fault.name]}", flush=True)
            write_table(rows)
        found = {rows[fault.name].partition(" -- ")[0] for fault in chosen} - {SURVIVED}
        wrong = fails_without(copy, found)
    if wrong is not None:
        print(f"{wrong} fails without a fault as well")
    missed = [fault for fault in chosen if rows[fault.name] == SURVIVED and not fault.argument]
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
