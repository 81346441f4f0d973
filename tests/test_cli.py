"""The command line: ``info``, ``demo``, and what it says about bad arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fastconfig
from fastconfig import backends, cli
from fastconfig.demo import command, training


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"fastconfig {fastconfig.__version__}\n"


def test_a_command_is_required(capsys: pytest.CaptureFixture[str]):
    assert "COMMAND" in refused(capsys)


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]):
    code = (
        "import sys; from fastconfig.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numba', 'triton', 'matplotlib', 'scipy', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "usage: fastconfig" in ran.stdout


def test_module_runs():
    ran = subprocess.run([sys.executable, "-m", "fastconfig", "--version"], capture_output=True, check=False)
    assert ran.returncode == 0


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTCONFIG_BACKEND", "pytorch")
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for wanted in (
        "fastconfig",
        "python",
        "numba",
        "numpy",
        "triton",
        "conflictfree",
        fastconfig.__version__,
        torch.__version__.partition("+")[0],
        "CPU",
        "CUDA" if not torch.cuda.is_available() else "cuda:0",
        "backend for cpu",
        "FASTCONFIG_BACKEND",
    ):
        assert wanted in text


def test_info_as_json_names_no_backend_for_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["fastconfig"] == fastconfig.__version__
    assert found["backends"]["cpu"]["backend"] in ("numba", "pytorch")
    assert ("cuda" in found["backends"]) == torch.cuda.is_available() == bool(found["cuda_devices"])


def test_warmup_compiles_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba")
    assert cli.main(["warmup", "--dtype", "float64"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("float64: ready after ")
    assert Path(last.removeprefix("kept in ")).is_dir()


def test_demo_writes_its_picture_and_its_figures(tmp_path: Path):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    out = tmp_path / "a folder" / "inside"
    assert cli.main(["demo", "--steps", "2", "--seed", "3", "--out", str(out)]) == 0
    head = (out / "demo.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1920, 1080)
    numbers = json.loads((out / "demo.json").read_text())
    assert numbers["settings"]["steps"] == 2
    assert numbers["settings"]["seed"] == 3
    assert numbers["command"].startswith("fastconfig demo --steps 2 --seed 3 --out ")
    assert numbers["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"processor", "cores", "device", "torch_threads"} <= set(numbers["machine"])
    assert set(numbers["results"]) == {"ConFIG", "plain sum"}
    for figures in numbers["results"].values():
        assert figures["relative_l2_error"] > 0
        assert list(figures["final_losses"]) == ["residual", "initial", "boundary"]
        assert figures["median_step_ms"] > 0
    assert 0 < numbers["results"]["ConFIG"]["operator_share_of_step"] < 1
    assert numbers["operators"]["fastconfig"]["compared_steps"] == 1
    assert numbers["operators"]["fastconfig"]["worst_relative_error"] < 1e-5
    assert 0 < numbers["training_seconds"] < numbers["total_seconds"]


def test_demo_trains_with_momentum_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    assert cli.main(["demo", "--momentum", "--steps", "7", "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "demo.json").read_text())
    assert list(numbers["results"]) == ["ConFIG", "plain sum", "M-ConFIG"]
    figures = numbers["results"]["M-ConFIG"]
    assert figures["relative_l2_error"] > 0
    assert figures["median_step_ms"] > figures["median_operator_ms"] > 0
    assert "M-ConFIG" in capsys.readouterr().out
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_demo_compares_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    compared = ["--compare", "upgrad,gradvac", "--momentum"]
    assert cli.main(["demo", *compared, "--steps", "5", "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "demo.json").read_text())
    names = ["ConFIG", "plain sum", "UPGrad", "GradVac", "M-ConFIG"]
    assert list(numbers["results"]) == names
    assert numbers["settings"]["compare"] == ["upgrad", "gradvac"]
    share = "share_of_measured_steps_with_a_negative_cosine"
    assert numbers["results"]["UPGrad"][share] == 0
    assert "median_operator_ms" in numbers["results"]["GradVac"]
    text = capsys.readouterr().out
    assert all(name in text for name in names)
    assert "…" not in text.partition("after 5 steps")[2].partition("ConFIG's update")[0]
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_methods_that_the_demo_does_not_compare(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--compare", "upgrad,constant"])
    assert "argument --compare: got 'constant', want some of pcgrad" in capsys.readouterr().err
    with pytest.raises(ValueError, match="compare: got 'config', want some of pcgrad"):
        training.Settings(compare=("config",))


def test_demo_without_conflictfree_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(training, "peer_operator", lambda: None)
    monkeypatch.setattr(command, "draw", lambda result, path: None)
    assert cli.main(["demo", "--steps", "2", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "conflictfree is not installed" in text
    assert "relative L2 error" in text
    assert set(json.loads((tmp_path / "demo.json").read_text())["operators"]) == {"fastconfig"}


def interrupted_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    """Ctrl-C in that call of a function."""
    plain, calls = getattr(owner, name), []

    def function(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(owner, name, function)


def test_an_interrupted_demo_keeps_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    interrupted_at(monkeypatch, training, "step_plain_sum", 4)
    assert cli.main(["demo", "--momentum", "--steps", "50", "--out", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert captured.err == "fastconfig demo: interrupted: 3 of 50 steps were trained\n"
    assert "after 3 steps" in captured.out
    numbers = json.loads((tmp_path / "demo.json").read_text())
    assert (numbers["trained_steps"], numbers["settings"]["steps"]) == (3, 50)
    assert not (tmp_path / "demo.png").exists()


def test_a_demo_that_is_interrupted_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    interrupted_at(monkeypatch, training, "step_plain_sum", 1)
    assert cli.main(["demo", "--steps", "5", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "fastconfig demo: interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("measured", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupted_bench_keeps_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, measured: int
) -> None:
    pytest.importorskip("matplotlib")
    from fastconfig.bench import run

    interrupted_at(monkeypatch, run, "run_setting", measured + 1)
    files = tmp_path / "bench.json", tmp_path / "bench.png"
    options = ["--quick", "--m", "2,3", "--n", "64", "--only", "update", "--backend", "numba", "--no-memory"]
    assert cli.main(["bench", *options, "--json", str(files[0]), "--plot", str(files[1])]) == 130
    wanted = f"fastconfig bench: interrupted: {measured} of 2 settings were measured\n"
    assert capsys.readouterr().err == wanted
    numbers = json.loads(files[0].read_text())
    assert numbers["interrupted"] == f"{measured} of 2 settings were measured"
    assert len(numbers["settings"]) == measured
    assert files[1].exists() == bool(measured)


def test_an_interrupt_while_things_are_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastconfig import environment

    interrupted_at(monkeypatch, environment, "versions", 1)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "fastconfig info: interrupted\n"


def test_info_says_who_serves(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with fastconfig.use_backend("pytorch"):
        cli.main(["info"])
    text = " ".join(capsys.readouterr().out.split())
    assert "backend for cpu pytorch not numba: 'pytorch' was asked for by name" in text
    monkeypatch.setattr(backends, "registry", backends.Registry())
    monkeypatch.setenv("FASTCONFIG_BACKEND", "cuda9")
    assert cli.main(["info"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "backend for cpu none: FASTCONFIG_BACKEND: got 'cuda9'" in text
    monkeypatch.setenv("FASTCONFIG_BACKEND", "")
    cli.main(["info"])
    text = " ".join(capsys.readouterr().out.split())
    assert "backend for cpu numba" in text
    assert "FASTCONFIG_BACKEND empty, which counts as unset" in text


@pytest.mark.parametrize("steps", ["0", "-3", "2.5", "many"])
def test_bad_steps(capsys: pytest.CaptureFixture[str], steps: str):
    message = refused(capsys, "demo", "--steps", steps)
    assert f"argument --steps: got {steps!r}, want a whole number of at least 1" in message


def test_bad_seed(capsys: pytest.CaptureFixture[str]):
    message = refused(capsys, "demo", "--seed", "-1")
    assert "argument --seed: got '-1', want a whole number of at least 0" in message


@pytest.mark.parametrize("device", ["cuda:99", "mps", "gpu"])
def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str):
    out = tmp_path / "out"
    message = refused(capsys, "demo", "--device", device, "--out", str(out))
    assert f"argument --device: got {device!r}" in message
    assert "want cpu, cuda or cuda:N" in message
    assert not out.exists()


def test_out_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    taken = tmp_path / "taken"
    taken.touch()
    message = refused(capsys, "demo", "--steps", "1", "--out", str(taken))
    assert f"argument --out: got {str(taken)!r}, want a folder" in message


def test_demo_says_what_it_misses_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "matplotlib" else name)
    message = refused(capsys, "demo", "--out", str(tmp_path / "out"))
    assert "needs matplotlib: pip install matplotlib" in message
    assert not (tmp_path / "out").exists()


def test_settings_refuse_no_steps():
    with pytest.raises(ValueError, match="steps: got 0, want at least 1"):
        training.Settings(steps=0)
