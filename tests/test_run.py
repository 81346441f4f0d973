"""``fastconfig run``: a script or module as python runs it, and its child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pairs import cases

from fastconfig import cli
from fastconfig.commands.script import STARTUP

CHILDREN = """
import subprocess, sys
import torch.multiprocessing as mp
from conflictfree.grad_operator import ConFIG_update

class Mine:
    pass

def worker(rank, queue, mine):
    queue.put((ConFIG_update.__module__, type(mine).__name__))

if __name__ == "__main__":
    method = sys.argv[1]
    context = mp.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=worker, args=(0, queue, Mine()))
    process.start()
    print(method, *queue.get(), flush=True)
    process.join()
    code = "import conflictfree.utils as utils; print(utils.has_zero.__module__)"
    subprocess.run([sys.executable, "-c", code], check=True)
"""
SHOWN = """
import sys
import beside
print(sys.argv, sys.path[0], __file__, __name__, __package__, __spec__ and __spec__.name)

def fails():
    raise ArithmeticError("of the script")

match sys.argv[1:]:
    case ["number"]:
        sys.exit(7)
    case ["text"]:
        sys.exit("a message")
    case ["interrupt"]:
        raise KeyboardInterrupt
    case ["error"]:
        fails()
"""


SCRIPTS = (  # without conflictfree, which takes seconds to import
    "-c",
    "import sys; from fastconfig.commands import script\n"
    "run = script.run_module if sys.argv[1] == '-m' else script.run_script\n"
    "del sys.argv[1 : 1 + (sys.argv[1] == '-m')]\n"
    "try: code = run(sys.argv[1], sys.argv[2:])\n"
    "except script.NotRunnable as error: sys.exit(f'not runnable: {error}')\n"
    "sys.exit(code)",
)
WHOLE = ("-m", "fastconfig", "run")


def run(
    *arguments: str, cwd: Path, command: tuple[str, ...] = WHOLE, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=os.environ | variables,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A script and a package of the same content, each beside a module of its own."""
    for name in ("scripts", "package"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shown.py").write_text(
            SHOWN.replace("import beside", "from package import beside")
        )
        (tmp_path / name / "beside.py").touch()
    (tmp_path / "scripts" / "shown.py").write_text(SHOWN)
    (tmp_path / "package" / "__main__.py").write_text("print('the package itself', __package__)")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "method"), cases([["train.py"], ["-m", "train"]], ["spawn", "forkserver"], together=1)
)
def test_children_are_served(tmp_path: Path, target: list[str], method: str) -> None:
    (tmp_path / "train.py").write_text(CHILDREN)
    done = run(*target, method, cwd=tmp_path)
    wanted = [f"{method} fastconfig.config_update Mine", "fastconfig.utils"]
    assert done.stdout.splitlines() == wanted, done.stderr
    assert done.returncode == 0


def test_a_sitecustomize_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("print('own', __name__)")
    code = "import sitecustomize as s, sys; print(s.__file__); print([p for p in sys.path if 'startup' in p])"
    for path in ([STARTUP, str(tmp_path / "own")], [STARTUP]):
        done = run("-c", code, cwd=tmp_path, command=(), PYTHONPATH=os.pathsep.join(path))
        assert done.returncode == 0
        assert "Error" not in done.stderr
        if len(path) == 2:
            assert done.stdout.splitlines()[0] == "own sitecustomize"
            assert str(tmp_path / "own" / "sitecustomize.py") in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


def test_a_child_without_this_package_says_so(tmp_path: Path) -> None:
    code = "import sys; sys.modules['fastconfig'] = None; import conflictfree.utils"
    done = run("-c", code, cwd=tmp_path, command=(), PYTHONPATH=STARTUP)
    assert "this child of `fastconfig run` is served by conflictfree: " in done.stderr
    assert done.returncode == 0


def test_options_that_hide_it_from_children_are_named(folder: Path) -> None:
    done = run("scripts/shown.py", cwd=folder, command=("-E", "-m", "fastconfig", "run"))
    assert "hide it from child processes" in done.stderr


@pytest.mark.parametrize("target", [["scripts/shown.py"], ["-m", "package.shown"]])
def test_runs_as_python_does(folder: Path, target: list[str]) -> None:
    """What the script sees, how it ends, and the traceback, which is the script's own."""
    for argument in ("--help", "number", "text", "interrupt", "error"):
        plain = run(*target, argument, cwd=folder, command=())
        served = run(*target, argument, cwd=folder, command=SCRIPTS)
        assert served.stdout == plain.stdout
        assert served.returncode == (130 if argument == "interrupt" else plain.returncode)
        if target[0] != "-m":
            assert served.stderr == plain.stderr
        else:  # python has frames of runpy
            assert served.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]
            assert served.stderr.count("File") == 2 * (argument == "error") + (argument == "interrupt")


def test_folders_zip_files_packages_and_syntax_errors(folder: Path) -> None:
    with zipfile.ZipFile(folder / "app.zip", "w") as archive:
        archive.writestr("__main__.py", "import sys; print('zip', sys.argv)")
    (folder / "wrong.py").write_text("x = = 1")
    for target in (["app.zip", "a"], ["package"], ["-m", "package"], ["wrong.py"]):
        plain = run(*target, cwd=folder, command=())
        served = run(*target, cwd=folder, command=SCRIPTS)
        assert (served.stdout, served.stderr) == (plain.stdout, plain.stderr)
        assert served.returncode == plain.returncode


def test_the_whole_command(folder: Path) -> None:
    done = run("scripts/shown.py", "number", cwd=folder)
    assert done.stdout.startswith("['scripts/shown.py', 'number']")
    assert done.stderr.startswith("fastconfig serves 34 names")
    assert done.returncode == 7


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["nowhere.py"], "argument SCRIPT.py: got 'nowhere.py', want a file"),
        ([], "got nothing to run, want SCRIPT.py or -m MODULE"),
        (["-m"], "argument -m: got none, want a module"),
    ],
)
def test_what_cannot_be_run(capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *arguments])
    assert ended.value.code == 2
    assert wanted in capsys.readouterr().err


def test_modules_that_are_not_there(folder: Path) -> None:
    for target, wanted in {
        ("-m", "nowhere.at.all"): "got 'nowhere.at.all', want a module: No module named 'nowhere'",
        ("-m", "nowhere"): "got 'nowhere', want a module",
        ("-m", "scripts"): "got 'scripts', want a module, or a package with a __main__.py",
        ("scripts",): "got 'scripts', which has no __main__.py",
    }.items():
        done = run(*target, cwd=folder, command=SCRIPTS)
        assert f"not runnable: {wanted}" in done.stderr
    assert "argument -m: got 'nowhere'" in run("-m", "nowhere", cwd=folder).stderr
