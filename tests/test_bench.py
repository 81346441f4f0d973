"""``fastconfig bench``: what it runs, checks, prints and writes. Nothing here asserts a time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fastconfig import cli
from fastconfig.bench import cases, floor, peers, plan, report, run, timing
from fastconfig.bench.cases import Setting, make_inputs
from fastconfig.bench.plan import Options
from fastconfig.bench.timing import Contestant

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few and as short samples as there can be."""
    monkeypatch.setattr(floor, "BANDWIDTH_BYTES", (1 << 12,))
    monkeypatch.setattr(floor, "SHARE", 1e-5)
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-6)
    monkeypatch.setattr(Options, "share", 1e-5)
    monkeypatch.setattr(Options, "least", 2)


def bench(*arguments: str, out: Path) -> tuple[int, dict[str, Any]]:
    path = out / "bench.json"
    code = cli.main(["bench", "--no-memory", "--json", str(path), *arguments])
    return code, json.loads(path.read_text())


def rows_of(numbers: dict[str, Any], key: str = "results") -> list[dict[str, Any]]:
    return [row for of_setting in numbers["settings"] for row in of_setting[key]]


def stack(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(rows)


def test_everything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a folder" / "bench.png"
    code, numbers = bench(
        "--m", "2,3", "--n", "64,1e3", "--threads", "2", "--plot", str(picture), out=tmp_path
    )
    assert code == 0
    assert torch.get_num_threads() == 1
    assert numbers["command"].startswith("fastconfig bench --no-memory --json ")
    assert torch.__version__.startswith(numbers["versions"]["torch"])  # the package has no +cu130
    assert {"processor", "cores", "device", "load_before", "load_after"} < set(numbers["machine"])
    assert numbers["machine"]["threads"] == 2
    assert {"commit", "date", "seconds", "options", "peers", "format"} < set(numbers)
    assert numbers["peers"]["plain torch"] == "installed"
    assert {"bytes", "read_gb_s", "read_way", "copy_gb_s"} == set(numbers["bandwidth"][0])
    assert [s["setting"] for s in numbers["settings"]] == [
        {"m": m, "n": n, "dtype": "float32", "form": "vectors"} for m in (2, 3) for n in (64, 1000)
    ]
    for of_setting in numbers["settings"]:
        assert of_setting["floor"]["read_us"] > 0
        setting = Setting(**of_setting["setting"])
        for row in of_setting["results"]:
            assert row["right"], row
            assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
            assert row["samples"] >= 2
            moved = cases.traffic(row["operation"], setting)
            assert row["moved_bytes"] == (None if moved is None else sum(moved))
        named = {row["operation"] for row in of_setting["results"] if row["backend"] == "numba"}
        assert set(cases.passes()) <= named
        assert ("conflict mask" in named) == (setting.n == 64)
    text = capsys.readouterr().out
    for wanted in ("plain torch", "over floor", "p20–p80", "GB/s", "command", "numba", "WRONG"):
        assert (wanted in text) == (wanted != "WRONG")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
def test_forms_and_dtypes(form: str, tmp_path: Path) -> None:
    code, numbers = bench(
        *("--m", "2", "--n", "300", "--form", form, "--dtype", "float64,bfloat16", "--only", "update,gram"),
        out=tmp_path,
    )
    assert code == 0
    assert {s["setting"]["dtype"] for s in numbers["settings"]} == {"float64", "bfloat16"}
    assert {row["operation"] for row in rows_of(numbers)} == {*cases.updates(), "gram"}
    plain = [row for row in rows_of(numbers, "peers") if row["name"] == "plain torch"]
    assert {row["operation"] for row in plain} == {*cases.updates(), "gram"}


def test_no_speed_up_for_a_wrong_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = cases.ConFIG_update
    wrongly = ("ConFIG_update", lambda grads: 1.0001 * right(grads))
    monkeypatch.setitem(cases.CALLS, "config", wrongly)
    code, numbers = bench("--m", "3", "--n", "500", "--only", "update", out=tmp_path)
    assert code == 1
    for row in rows_of(numbers):
        wrong = row["operation"] == "ConFIG_update"
        assert row["right"] != wrong
        assert bool(row["faster_than"]) != wrong
        if wrong:
            assert row["error"] == pytest.approx(1e-4, rel=1e-2)
    text = capsys.readouterr().out
    assert "refused" in text
    assert "WRONG: ConFIG_update on numba, m = 3, N = 500, float32, vectors: error 1.0e-04" in text


def test_a_result_that_goes_wrong_later_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = cases.ConFIG_update, []

    def sometimes(grads: Any) -> Any:
        calls.append(1)
        return right(grads) if len(calls) == 1 else torch.full_like(grads[0], torch.nan)

    monkeypatch.setitem(cases.CALLS, "config", ("ConFIG_update", sometimes))
    code, numbers = bench("--m", "3", "--n", "500", "--only", "update", "--backend", "numba", out=tmp_path)
    assert code == 1
    row = next(row for row in rows_of(numbers) if row["operation"] == "ConFIG_update")
    assert not row["right"]
    assert row["error"] is None  # not finite


def test_the_worst_of_all_errors_counts() -> None:
    contestant = Contestant("ConFIG_update", "fastconfig", lambda: None)
    judge: Any = SimpleNamespace(error=lambda operation, result: result)
    errors: dict[int, float] = {}
    for error in (1e-9, 1e-3, 1e-7):
        run.check(contestant, judge, error, errors)
    assert errors == {id(contestant): 1e-3}


def fake_peers(**merges: Callable[[Any], Any]) -> Callable[[], list[peers.Peer]]:
    return lambda: [
        peers.Peer("plain torch", "1", None, {"ConFIG_update": merges["plain"]}),
        peers.Peer("torchjd", "1", None, {"PCGradOperator": merges["random"]}, ("PCGradOperator",)),
        peers.Peer("conflictfree", missing="not installed"),
    ]


def test_a_peer_that_is_wrong_is_named_beside_the_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fake_peers(plain=lambda rows: 2 * rows[0], random=lambda rows: rows[0])
    monkeypatch.setattr(peers, "find_peers", found)
    code, numbers = bench("--m", "3", "--n", "500", "--only", "update", out=tmp_path)
    assert code == 0
    wrong, random = rows_of(numbers, "peers")
    assert wrong["right"] is False
    assert wrong["error"] > wrong["bound"]
    assert random["right"] is None
    text = capsys.readouterr().out
    assert f"× ({wrong['error']:.0e})" in text
    assert "× (order)" in text
    assert "conflictfree: not installed" in text


def test_a_peer_that_fails_or_takes_too_long_is_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(rows: Any) -> Any:
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(peers, "find_peers", fake_peers(plain=failing, random=stack))
    monkeypatch.setattr(Options, "call_limit", 0.0)
    _, numbers = bench("--m", "3", "--n", "500", "--only", "update", out=tmp_path)
    reasons = {skip["name"]: skip["reason"] for skip in rows_of(numbers, "skipped")}
    assert reasons["plain torch"] == "RuntimeError: no such thing"
    assert reasons["torchjd"].endswith("s a call, over 0 s")
    assert "skipped: plain torch ConFIG_update: RuntimeError" in capsys.readouterr().out


def test_a_large_case_is_tried_on_a_small_one_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LARGE", 64)
    monkeypatch.setattr(Options, "call_limit", 0.0)
    seen: list[int] = []

    def merge(rows: Any) -> Any:
        seen.append(len(rows[0]))
        return rows[0]

    found = [peers.Peer("plain torch", "1", None, {"ConFIG_update": merge})]
    setting = Setting(2, 640)
    skipped: list[dict[str, Any]] = []
    inputs = make_inputs(setting, CPU)
    left = run.peer_contestants(setting, inputs, {"ConFIG_update"}, Options(), found, CPU, skipped)
    assert left == []
    assert set(seen) == {10}
    assert "at N = 10: too slow for N = 640" in skipped[0]["reason"]


def test_peers_that_are_missing_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    plain, *others = peers.find_peers()
    assert plain.missing is None
    assert {peer.missing for peer in others} == {"not installed"}


def test_without_options_the_whole_matrix_runs() -> None:
    chosen = plan.settings(Options())
    main = [s for s in chosen if (s.dtype, s.form) == ("float32", "vectors")]
    assert {(s.m, s.n) for s in main} == {(m, 10**k) for m in (2, 3, 8, 16, 32) for k in (3, 4, 5, 6, 7)}
    assert {s.dtype for s in chosen} == {"float32", "float64", "bfloat16", "float16"}
    assert {s.form for s in chosen} == {"tensor", "vectors", "parameters"}


def test_filters_choose_settings_and_operations() -> None:
    options = Options(m=(5,), n=(70, 90), dtype=("float64",), only=("gram", "mask"))
    assert plan.settings(options) == [Setting(5, 70, "float64"), Setting(5, 90, "float64")]
    order = ["numba", "pytorch"]
    assert plan.operations(options, Setting(5, 70, "float64"), "numba", order) == ["gram", "conflict mask"]
    assert plan.operations(options, Setting(5, 90, "float64"), "numba", order) == ["gram"]
    assert plan.operations(options, Setting(5, 70, "float64"), "pytorch", order) == ["gram"]


def test_named_backends_do_everything(tmp_path: Path) -> None:
    code, numbers = bench("--m", "2", "--n", "50", "--backend", "pytorch", out=tmp_path)
    assert code == 0
    assert {row["backend"] for row in rows_of(numbers)} == {"pytorch"}
    assert {row["operation"] for row in rows_of(numbers)} == {
        *cases.passes(),
        "conflict mask",
        *cases.stages(),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--m", "2,x"], "argument --m: got 'x', want a whole number of at least 1"),
        (["--m", "0"], "argument --m: got '0', want a whole number of at least 1"),
        (["--n", "1.5"], "argument --n: got '1.5', want"),
        (["--n", "inf"], "argument --n: got 'inf', want"),
        (["--threads", "-1"], "argument --threads: got '-1', want"),
        (["--dtype", "float8"], "argument --dtype: got 'float8', want some of float32, float64"),
        (["--form", "list"], "argument --form: got 'list', want some of tensor, vectors, parameters"),
        (["--only", "update,all"], "argument --only: got 'all', want some of update, gram"),
        (["--only", "methods,gram"], "argument --only: 'methods' goes alone"),
        (["--backend", "magic"], "got 'magic', want one of"),
        (["--device", "cuda:99"], "got 'cuda:99'"),
        (["--plot", "x.png", "--only", "gram"], "argument --plot: draws the whole update"),
        (["--json", "/dev/null/x.json"], "argument --json: got '/dev/null/x.json', want a file to write"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["bench", *arguments])
    assert exit_info.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from fastconfig.cli import main\n"
        "try: main(['bench', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit(str({'torch', 'numba', 'matplotlib', 'rich'} & set(sys.modules) or ''))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not ran.stderr.strip()
    assert "--quick" in ran.stdout


def test_commit_is_known_in_a_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "__file__", str(tmp_path / "fastconfig" / "bench" / "run.py"))
    assert run.commit() is None


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.001, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12,346")]
)
def test_figures(value: float | None, text: str) -> None:
    assert report.figure(value) == text


@pytest.fixture
def readme_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_what_the_script_makes(readme_table: ModuleType) -> None:
    for place in (*readme_table.PLACES, readme_table.TRAINING):
        newest = readme_table.newest(place.results)
        assert newest is not None
        text = (ROOT / place.document).read_text(encoding="utf-8")
        assert readme_table.generated(place, newest) == text


def test_the_model_of_scaling_is_what_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scaling = importlib.import_module("scaling")
    assert scaling.documented() == (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("group", ["update", "momentum"])
def test_table_of_a_run(readme_table: ModuleType, tmp_path: Path, group: str) -> None:
    _, numbers = bench("--m", "2,3", "--n", "200", "--only", group, out=tmp_path)
    place = readme_table.PLACES[group == "momentum"]
    row = numbers["settings"][0]["results"][0]
    ratio = row["faster_than"]["plain torch"]
    text = readme_table.table(numbers, "results/x.json", place)
    (line,) = (line for line in text.splitlines() if line.startswith("| 2 | 200 |"))
    assert f"| {row['time_over_floor']:.2f} |" in line
    assert f"| {f'{ratio:,.0f}' if ratio >= 10 else f'{ratio:.1f}'}" in line
    marked = (f"<!-- {place.marker}:begin -->", f"<!-- {place.marker}:end -->")
    inserted = readme_table.inserted("a {}old{} b".format(*marked), text, place.marker)
    assert inserted == f"a {marked[0]}\n{text}\n{marked[1]} b"
    with pytest.raises(ValueError, match=f"{place.marker}:begin"):
        readme_table.inserted("no markers", text, place.marker)
    row["right"], row["faster_than"] = False, {}
    assert "| refused |" in readme_table.table(numbers, "results/x.json", place)


def test_newest_result_goes_by_its_date(readme_table: ModuleType, tmp_path: Path) -> None:
    assert readme_table.newest(tmp_path) is None
    for name, date in (("a", "2026-02-01T00:00:00Z"), ("b", "2026-01-01T00:00:00Z")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"date": date}))
    assert readme_table.newest(tmp_path).name == "a.json"
