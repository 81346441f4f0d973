"""A method costs one file and its test: the diff in docs/extend.md, applied to a copy of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import fastconfig
from fastconfig import _C, kernels

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fastconfig.__file__).parent

#: run with the copy's folder; an editable installation would come before it
FOUND = """
import sys
from pathlib import Path
folder, root = Path(sys.argv[1]), Path(sys.argv[2])
sys.meta_path[:] = [each for each in sys.meta_path if "Redirecting" not in type(each).__name__]
sys.path[:0] = [str(folder), str(root / "benchmarks")]
import pytest
import torch
import fastconfig
from fastconfig import aggregation, methods, ops
assert Path(fastconfig.__file__).parent.parent == folder
assert list(methods.METHODS.items())[-1] == ("milder", "Milder")
rows = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
for update in (
    fastconfig.MilderOperator().calculate_gradient(rows),
    aggregation.Milder()(rows),
    aggregation.MilderWeighting()(rows @ rows.T) @ rows,
    ops.coefficients(ops.gram(rows), "milder").float() @ rows,
):
    torch.testing.assert_close(update, torch.ones(2))
from fastconfig.demo.training import COMPARED
assert COMPARED["milder"] == "Milder"
import methods_table
assert methods_table.row("Milder")[:2] == ["Milder", methods.Milder.words[0]]
from rich.console import Console
from fastconfig.bench.plan import Options
from fastconfig.bench.methods import bench_methods
methods.METHODS = {"milder": "Milder"}
numbers = bench_methods(Options(m=(3,), n=(100,), quick=True), "a test", Console(quiet=True))
assert [row["method"] for row in numbers["methods"]] == ["Milder"]
assert numbers["methods"][0]["error"] < 1e-12
methods.METHODS = {"mean": "Mean", "milder": "Milder"}
tests = [str(root / "tests" / "test_every_method.py"), str(folder / "tests" / "test_milder.py")]
assert pytest.main(["-q", "-x", "-k", "milder", "-p", "no:cacheprovider", *tests]) == 0
"""


def added() -> dict[str, str]:
    """The files that the diff adds, by their paths."""
    text = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    diff = text.partition("<!-- added:begin -->")[2].partition("<!-- added:end -->")[0]
    files = {}
    for part in diff.split("--- /dev/null\n")[1:]:
        name, lines, body = re.match(r"\+\+\+ b/(\S+)\n@@ -0,0 \+1,(\d+) @@\n(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        kept = [line[1:] for line in body.splitlines() if line.startswith("+")]
        assert len(kept) == int(lines), f"{name} has {len(kept)} lines"
        files[name] = "\n".join(kept) + "\n"
    return files


def test_the_diff_in_the_docs_is_all(tmp_path: Path) -> None:
    copied = tmp_path / "fastconfig"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__", "kernels", "*.so", "*.pyd"))
    for compiled in Path(_C.__file__).parent.glob("*.so"):
        (copied / compiled.name).symlink_to(compiled)
    (copied / "kernels").symlink_to(Path(kernels.__path__[0]).resolve())
    files = added()
    assert list(files) == ["fastconfig/methods/milder.py", "tests/test_milder.py"]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", FOUND, str(tmp_path), str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "......." in ended.stdout  # six of every method, and its own
