"""``make gpu`` as far as it needs no GPU: time limits, files, the installation, every step on the CPU."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastconfig

ROOT = Path(__file__).parents[1]
FAKE_STEPS = '''
import json, os, time
from pathlib import Path

def fine(points, machine):
    for i in range(2):
        points.run(str(i), lambda i=i: {"value": i})

def hangs(points, machine):
    points.run("quick", lambda: {})
    points.run("hangs", lambda: time.sleep(60))
    points.run("behind it", lambda: {})

def dies(points, machine):
    points.run("quick", lambda: {})
    points.run("dies", lambda: os._exit(11))
    points.run("behind it", lambda: {})

def fails(points, machine):
    points.run("fails", lambda: 1 / 0)
    points.run("behind it", lambda: {})

def overruns(points, machine):
    for i in range(600):
        points.run(str(i), lambda: time.sleep(0.1) or {})

def breaks(points, machine):
    raise KeyError("nothing")

def looks(points, machine):
    """At what came back before this step, and where it runs."""
    (merged,) = Path(os.environ["OUT_OF_THE_TEST"]).glob("gpu-*.json")
    points.note("seen", json.loads(merged.read_text())["steps"])
    points.note("folder", os.getcwd())
'''


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package of the script's parts."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"gpu.{name}")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "packages").mkdir(parents=True)
    (folder / "packages" / "fake_steps.py").write_text(FAKE_STEPS)
    return folder


def alive(marker: Path) -> bool:
    """Whether a process goes on writing a file."""
    before = marker.read_text()
    time.sleep(0.3)
    return marker.read_text() != before


def test_the_plan_takes_nine_minutes(gpu: Any) -> None:
    plan = gpu("plan")
    assert sum(step.seconds for step in plan.STEPS) + plan.CLOSING == plan.WHOLE == 540
    assert f"{plan.CLOSING:7} {plan.WHOLE:6}" in plan.table(plan.STEPS)
    for step in plan.STEPS:
        module, _, function = step.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    assert [step.name for step in plan.chosen(["ncu", "smoke"])] == ["smoke", "ncu"]
    with pytest.raises(ValueError, match="got 'smoky', want some of ceilings"):
        plan.chosen(["smoky"])


@pytest.mark.parametrize("how", ["sleeps", "ends"])
def test_a_command_is_killed_with_all_that_it_started(gpu: Any, tmp_path: Path, how: str) -> None:
    marker, log = tmp_path / "marker", tmp_path / "log"
    child = f"while true; do date +%N > {marker}; sleep 0.02; done"
    rest = "sleep 60" if how == "sleeps" else f"while ! test -s {marker}; do sleep 0.02; done; exit 3"
    ended = gpu("runner").run(["bash", "-c", f"({child}) & echo begun; {rest}"], 1.0, log)
    assert log.read_text() == "begun\n"
    assert not alive(marker)
    if how == "sleeps":
        assert (ended.code, ended.why) == (None, "killed over its 1 s")
    else:
        assert (ended.code, ended.why) == (3, "failed with exit status 3")
    assert ended.seconds < 5


def test_a_silent_command_is_killed_early(gpu: Any, tmp_path: Path) -> None:
    file, calls = tmp_path / "alive", []
    command = ["bash", "-c", f"for i in 1 2 3 4; do sleep 0.2; date +%N > {file}; done; sleep 60"]
    ended = gpu("runner").run(
        command, 50, tmp_path / "log", alive=file, silence=0.5, meanwhile=lambda: calls.append(0)
    )
    assert ended.why == "killed after 0.5 s without a result"
    assert 1.0 < ended.seconds < 10
    assert len(calls) > 3


def test_no_step_stops_the_next(
    gpu: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, steps = gpu("plan"), gpu("steps")
    monkeypatch.setattr(steps, "SLOWER", 1)
    monkeypatch.setattr(steps, "LEAST", 0.1)
    monkeypatch.setenv("OUT_OF_THE_TEST", str(tmp_path))
    names = ["overruns", "fine", "hangs", "dies", "fails", "breaks", "looks"]
    seconds, silence = {"overruns": 2}, {"hangs": 4}
    fakes = [
        plan.Step(name, seconds.get(name, 60), f"fake_steps:{name}", silence.get(name, 60), "")
        for name in names
    ]
    began = time.monotonic()
    assert steps.run(fakes, tmp_path, work, tmp_path, "dry-run") == 1
    assert time.monotonic() - began < 60
    merged = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    ended = {name: how["ended"] for name, how in merged["steps"].items()}
    assert ended == {
        "overruns": "killed over its 2 s",
        "fine": "done",
        "hangs": "failed with exit status 1",  # its second process, behind the point that hung
        "dies": "failed with exit status 1",
        "fails": "failed with exit status 1",
        "breaks": "failed beside its points: its log says how",
        "looks": "done",
    }
    for name, why in (("hangs", "killed after 4 s without a result"), ("dies", "failed with exit status 11")):
        points = merged[name]["points"]
        assert list(points) == ["quick", name, "behind it"]
        assert points[name] == {"error": why}
    assert merged["fine"]["points"]["1"]["value"] == 1
    assert merged["fails"]["points"]["fails"]["error"] == "ZeroDivisionError: division by zero"
    assert any("ZeroDivisionError" in line for line in merged["failed"])
    assert len(merged["overruns"]["points"]) < 100
    # what came back was there as soon as the step before had ended
    assert list(merged["looks"]["seen"]) == names[:-1]
    assert merged["looks"]["folder"] == str(work)
    with zipfile.ZipFile(tmp_path / "gpu-dry-run-steps.zip") as archive:
        assert {f"{name}.{kind}" for name in names for kind in ("json", "log")} == set(archive.namelist())
        assert b"KeyError: 'nothing'" in archive.read("breaks.log")
    assert "-- looks: done" in capsys.readouterr().out


def a_wheel(folder: Path, tag: str) -> Path:
    """Of the package as it is imported here, extension included; made by hand."""
    folder.mkdir()
    package = Path(fastconfig.__file__).parent
    wheel = folder / f"fastconfig-{fastconfig.__version__}-{tag}-py3-none-any.whl"
    info = f"fastconfig-{fastconfig.__version__}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in [*package.rglob("*.py"), *package.glob("_C.*.so")]:
            if "kernels" not in path.parts:
                archive.write(path, f"fastconfig/{path.relative_to(package)}")
        native = importlib.import_module("fastconfig._C").__file__
        archive.write(native, f"fastconfig/{Path(native).name}") if Path(native).parent != package else None
        for path in (ROOT / "kernels").rglob("*.py"):
            archive.write(path, f"fastconfig/kernels/{path.relative_to(ROOT / 'kernels')}")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: fastconfig\nVersion: {fastconfig.__version__}\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def test_a_dry_run_from_an_environment_within_an_environment(gpu: Any, tmp_path: Path) -> None:
    """The package comes from the wheel: neither from the checkout nor from what lies beside torch."""
    inner, out = tmp_path / "inner", tmp_path / "out"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", inner], check=True)
    (packages,) = inner.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith("-packages")]
    (packages / "outer.pth").write_text("\n".join(outer) + "\n")
    if not any((Path(path) / "pip").exists() for path in outer):
        pytest.skip("needs pip beside torch")
    wheel = a_wheel(tmp_path / "wheels", gpu("wheel").build_tag())
    asked = f"--dry-run --steps=install,ncu --wheels={wheel.parent}"
    run = subprocess.run(
        ["make", "gpu", f"GPU_PYTHON={inner}/bin/python", f"GPU_OUT={out}", f"GPU_ARGS={asked}"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "install           75     75  a wheel" in run.stdout
    merged = json.loads((out / "gpu-dry-run.json").read_text())
    assert merged["failed"] == []
    assert merged["install"]["installed"] == wheel.name
    found = Path(merged["install"]["points"][wheel.name]["package"])
    assert found.parts[-3:-1] == ("attempt", "fastconfig")
    assert not found.is_relative_to(ROOT)
    assert sorted(path.name for path in out.iterdir()) == ["gpu-dry-run-steps.zip", "gpu-dry-run.json"]


def test_every_step_on_the_cpu(gpu: Any, work: Path, readme_table: ModuleType, tmp_path: Path) -> None:
    merge = gpu("merge")
    files = work / "steps"
    files.mkdir()
    machine = gpu("points").Machine("cpu", work, tmp_path, time.time() + 100)
    folder = merge.Folder(tmp_path, files, "dry-run", "a test")
    for step in gpu("plan").STEPS:
        if step.name in ("ceilings", "smoke", "ours", "host", "peers", "triton"):
            module, _, function = step.function.partition(":")
            points = gpu("points").Points(files / f"{step.name}.json")
            getattr(importlib.import_module(module), function)(points, machine)
            folder.while_running()
    merged = json.loads(json.dumps(folder.numbers(), allow_nan=False))
    assert merged["failed"] == []
    assert len(merged["bandwidth"]) == 2
    assert {row["backend"] for place in merged["settings"] for row in place["results"]} == {"pytorch"}
    (plain,) = (place for place in merged["settings"] if place["setting"]["form"] == "vectors")
    row = plain["results"][0]
    largest = max(merged["bandwidth"], key=lambda r: r["bytes"])
    assert row["percent_of_copy"] == pytest.approx(100 * row["gb_s"] / largest["copy_gb_s"])
    theirs = {peer["name"]: peer["median_us"] for peer in plain["peers"]}
    assert row["faster_than"] == {name: us / row["eager_us"] for name, us in theirs.items()}
    text = readme_table.gpu_table(merged, "results/gpu-x.json", readme_table.GPU_ALL)
    (line,) = (
        line
        for line in text.splitlines()
        if line.startswith("| 3 | 1,000 | float32, vectors | ")
        and "×" not in line
        and line.split("|")[7].strip()
    )
    assert readme_table.duration(row["eager_us"]) in line
    row["right"] = False
    assert "| wrong |" in readme_table.gpu_table(merged, "results/gpu-x.json", readme_table.GPU_ALL)
    assert any("is wrong" in line for line in merge.failures({"ours": {"x": plain}}))


@pytest.fixture
def readme_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_predictions_is_what_its_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    predicted = importlib.import_module("gpu_predicted")
    assert predicted.generated() == predicted.DOCUMENT.read_text(encoding="utf-8")


def test_the_cards_tables_are_what_the_script_makes(readme_table: ModuleType) -> None:
    for place in readme_table.GPUS:
        text = (ROOT / place.document).read_text(encoding="utf-8")
        if paths := readme_table.cards(place):
            assert readme_table.generated(place, *paths) == text
        marks = [text.count(f"<!-- {place.marker}:{end} -->") for end in ("begin", "end")]
        assert marks == [1, 1]


def test_the_gpu_tests_run_is_told_line_by_line(
    gpu: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist")
    (work / "steps").mkdir()
    file = work / "test_some.py"
    file.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False, 'so it is'\n"
        "def test_triton(): assert False\n"
        "@pytest.mark.skip(reason='for once')\n"
        "def test_not(): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))
    suite = gpu("suite")
    machine = gpu("points").Machine("cpu", work, work, time.time() + 100)
    with pytest.raises(RuntimeError, match=r"exit status 1.*test_bad"):
        suite.pytest("not triton", [file], machine)
    lines = json.loads((work / "steps" / "tests-not-triton.json").read_text())
    assert lines["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert lines["running"] == []
    ((name, text),) = lines["failed"].items()
    assert name.endswith("test_bad")
    assert "so it is" in text
    assert (work / "steps" / "tests-not-triton.xml").read_text().count("<testcase") == 3


def test_a_wheel_names_its_sources(gpu: Any, tmp_path: Path) -> None:
    wheel = gpu("wheel")
    for name in ("CMakeLists.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cpp").write_text("1")
    before = wheel.build_tag(tmp_path)
    assert before[0].isdigit()
    assert "-" not in before
    (tmp_path / "csrc" / "notes.txt").write_text("no source")
    assert wheel.build_tag(tmp_path) == before
    (tmp_path / "csrc" / "a.cpp").write_text("2")
    assert wheel.build_tag(tmp_path) != before
    without = a_wheel(tmp_path / "wheels", before)
    with pytest.raises(RuntimeError, match="has no fastconfig/_cuda"):
        wheel.contents(without)
    names = [name for name, _, _ in gpu("install").candidates(without.parent)]
    assert names == ["build", f"{without.name}, of other sources"]


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="this Python is the one that is wanted")
def test_gpu_wheel_says_what_is_missing() -> None:
    run = subprocess.run(
        ["make", "gpu-wheel", f"GPU_PYTHON={sys.executable}"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode != 0
    assert "Python 3.12, which the GPU's machine has" in run.stderr
    run = subprocess.run(
        ["make", "gpu-wheel", "GPU_PYTHON=no-python"], capture_output=True, text=True, cwd=ROOT
    )
    assert "no-python does not run" in run.stderr


def test_counters_of_ncu(gpu: Any) -> None:
    lines = ('"ID","Kernel Name","gpu__time_duration.sum"', '"","","us"', '"0","gram, small","1,234.5"')
    text = "\n".join(("==PROF== Connected", *lines, ""))
    assert gpu("tools").rows_of(text) == [
        {"ID": "0", "Kernel Name": "gram, small", "gpu__time_duration.sum us": "1,234.5"}
    ]
    assert gpu("tools").rows_of("==ERROR== no permission") == []


def test_numbers_that_json_has_not(gpu: Any, tmp_path: Path) -> None:
    gpu("points").write_json(
        tmp_path / "x.json", {"a": [float("nan"), (float("inf"), 1.5)], "path": tmp_path}
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": ["nan", ["inf", 1.5]],
        "path": str(tmp_path),
    }
