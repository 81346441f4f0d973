"""Which backend serves, what happens when one cannot, and what importing the package loads."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pairs import slow
from processes import python, with_torch

import fastconfig
from fastconfig import ConFIG_update, backends
from fastconfig.backends import BackendUnavailable, choose, explain, use_backend
from fastconfig.gradients import Gradients

GRADS = torch.randn(3, 10)


def test_import_loads_nothing_heavy() -> None:
    names = ["", ".grad_operator", ".utils", ".length_model", ".weight_model", ".cli"]
    heavy = ["numba", "triton", "matplotlib", "rich", "scipy"]
    modules = ", ".join(f"fastconfig{name}" for name in names)
    run = python(f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])")
    assert run.stdout.strip() == "[]", run.stderr


def test_import_of_the_package_alone_does_not_load_torch() -> None:
    run = python("import sys, fastconfig; print('torch' in sys.modules, fastconfig.__version__)")
    assert run.stdout.split() == ["False", fastconfig.__version__], run.stderr


def test_every_public_name_resolves() -> None:
    for name in fastconfig.__all__:
        assert getattr(fastconfig, name) is not None
        assert name in dir(fastconfig)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fastconfig.nothing


def test_numba_serves_the_cpu() -> None:
    assert choose(Gradients(GRADS)).name == "numba"
    assert explain("cpu") == [("numba", None), ("pytorch", None)]
    assert explain("xpu") == [("pytorch", None)]


def test_use_backend_holds_until_changed_and_within_a_block() -> None:
    with use_backend("auto"):
        use_backend("pytorch")
        assert choose(Gradients(GRADS)).name == "pytorch"
        with use_backend("numba"):
            assert choose(Gradients(GRADS)).name == "numba"
        assert choose(Gradients(GRADS)).name == "pytorch"
    assert choose(Gradients(GRADS)).name == "numba"


def test_blocks_of_threads_and_tasks_do_not_meet() -> None:
    both = threading.Barrier(2, timeout=60)

    def chosen(name: str) -> str:
        with use_backend(name):
            both.wait()
            served = choose(Gradients(GRADS)).name
            both.wait()
        return served

    async def task(name: str) -> str:
        with use_backend(name):
            await asyncio.sleep(0)
            return choose(Gradients(GRADS)).name

    async def tasks() -> list[str]:
        return await asyncio.gather(task("pytorch"), task("numba"))

    names = ["pytorch", "numba"]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(chosen, names)) == names
    assert asyncio.run(tasks()) == names
    assert choose(Gradients(GRADS)).name == "numba"


def test_a_statement_holds_in_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "registry", backends.Registry())
    use_backend("pytorch")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: choose(Gradients(GRADS)).name).result() == "pytorch"
        with use_backend("numba"):  # this thread's alone
            assert pool.submit(lambda: choose(Gradients(GRADS)).name).result() == "pytorch"
            assert ConFIG_update(list(GRADS)).isfinite().all()  # the short way
            assert fastconfig.last_backend() == "numba"


def test_a_block_that_is_about_to_be_entered_is_seen_by_no_other_thread() -> None:
    def chosen() -> str:
        return choose(Gradients(GRADS)).name

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(chosen).result() == "numba"
        block = use_backend("pytorch")
        elsewhere = pool.submit(chosen)
        with block:
            assert chosen() == "pytorch"
            assert pool.submit(chosen).result() == "numba"
        assert elsewhere.result() == "numba"
        assert chosen() == "numba"


def test_a_statement_that_is_kept_holds_up_to_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "registry", backends.Registry())
    kept = use_backend("pytorch")
    assert fastconfig.ops.gram(GRADS).isfinite().all()
    assert fastconfig.last_backend() == "pytorch"
    with kept:
        use_backend("auto")  # in the block
        assert choose(Gradients(GRADS)).name == "numba"
    assert choose(Gradients(GRADS)).name == "numba"


def test_blocks_entered_at_once_leave_nothing_behind() -> None:
    """Between its two steps, what one thread asks for must not be what another one restores."""
    first, second = use_backend("pytorch"), use_backend("pytorch")
    with first, second:
        pass
    assert choose(Gradients(GRADS)).name == "numba"
    second = use_backend("pytorch")
    assert choose(Gradients(GRADS)).name == "pytorch"  # as a statement
    use_backend("auto")
    with second:
        assert choose(Gradients(GRADS)).name == "pytorch"
    assert choose(Gradients(GRADS)).name == "numba"


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="name: got 'cuda9', want one of 'auto', 'numba', 'cuda', 'triton', 'pytorch'"
    ):
        use_backend("cuda9")
    with pytest.raises(ValueError, match="backend: got 'cuda9'"):
        backends.load("cuda9")
    run = with_torch(
        "import torch, fastconfig; fastconfig.ConFIG_update(torch.eye(2))",
        FASTCONFIG_BACKEND="cuda9",
    )
    assert run.returncode == 1
    assert (
        "FASTCONFIG_BACKEND: got 'cuda9', want one of 'auto', 'numba', 'cuda', 'triton', 'pytorch'"
        in run.stderr
    )


def test_environment_chooses() -> None:
    code = (
        "import sys, torch, fastconfig; fastconfig.ConFIG_update(torch.eye(2)); print('numba' in sys.modules)"
    )
    assert with_torch(code, FASTCONFIG_BACKEND="pytorch").stdout.strip() == "False"
    assert with_torch(code, FASTCONFIG_BACKEND="numba").stdout.strip() == "True"


def test_a_backend_asked_for_that_cannot_run_raises_with_the_reason() -> None:
    code = (
        "import sys, torch, fastconfig; sys.modules['numba'] = None\n"
        "try:\n    fastconfig.use_backend('numba')\n"
        "except fastconfig.BackendUnavailable as error:\n    print(error)\n"
        "print(fastconfig.ConFIG_update(torch.eye(2)))"
    )
    run = with_torch(code)
    assert "backend 'numba' cannot run here: ModuleNotFoundError: " in run.stdout
    assert "tensor([1., 1.])" in run.stdout, run.stderr
    run = with_torch(code, FASTCONFIG_BACKEND="numba")
    assert run.returncode == 1
    assert "BackendUnavailable: backend 'numba' cannot run here" in run.stderr


def test_explain_says_what_serves() -> None:
    asked = "'pytorch' was asked for by name"
    for device in ("cpu", "cpu:0", torch.device("cpu")):
        with use_backend("pytorch"):
            assert explain(device) == [("numba", asked), ("pytorch", None)]
    with use_backend("pytorch"):
        for device in ("cuda", "cuda:0", torch.device("cuda")):
            assert explain(device) == [("cuda", asked), ("triton", asked), ("pytorch", None)]
    with use_backend("numba"):
        assert explain("cpu")[0] == ("numba", None)
        assert explain("meta") == [
            ("numba", "it serves the CPU, not meta"),
            ("pytorch", "'numba' was asked for by name"),
        ]
    with use_backend("auto"):
        assert [name for name, _ in explain("cuda:0")] == ["cuda", "triton", "pytorch"]


def test_explain_honours_the_variable() -> None:
    code = "import fastconfig; print(fastconfig.explain('cpu')[-1], fastconfig.last_backend())"
    assert with_torch(code, FASTCONFIG_BACKEND="pytorch").stdout.split() == ["('pytorch',", "None)", "None"]
    run = with_torch(code, FASTCONFIG_BACKEND="cuda9")
    assert "ValueError: FASTCONFIG_BACKEND: got 'cuda9', want one of" in run.stderr


def test_an_empty_variable_counts_as_none() -> None:
    code = (
        "import torch, fastconfig; fastconfig.ConFIG_update(torch.eye(2)); print(fastconfig.last_backend())"
    )
    assert with_torch(code, FASTCONFIG_BACKEND="").stdout.split() == ["numba"]


def test_explain_looks_without_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is read where a call first needs it."""
    monkeypatch.setattr(backends, "registry", backends.Registry())
    monkeypatch.setenv("FASTCONFIG_BACKEND", "pytorch")
    assert dict(explain("cpu"))["numba"] == "'pytorch' was asked for by name"
    monkeypatch.delenv("FASTCONFIG_BACKEND")
    assert explain("cpu")[0] == ("numba", None)


def test_last_backend_says_who_served() -> None:
    network = torch.nn.Linear(3, 2)

    def backward() -> None:
        y = network(torch.ones(4, 3))
        fastconfig.backward([y[:, 0].sum(), y[:, 1].square().sum()], network)

    calls = (
        lambda: ConFIG_update(list(GRADS)),
        lambda: ConFIG_update(GRADS),
        lambda: fastconfig.PCGradOperator(shuffle=True).calculate_gradient(torch.randn(3, 100_000)),
        lambda: fastconfig.ops.gram(GRADS),
        lambda: fastconfig.PseudoMomentumOperator(3).calculate_gradient([0, 1, 2], GRADS),
        backward,
    )
    for call in calls:
        for name in ("pytorch", "numba", "pytorch"):
            with use_backend(name):
                call()
            assert fastconfig.last_backend() == name
    with use_backend("auto"):
        ConFIG_update(GRADS.to("meta"))
    assert fastconfig.last_backend() == "pytorch"


def test_a_choice_that_was_withdrawn_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "registry", backends.Registry())
    with use_backend("numba"):
        with use_backend("auto"):
            ConFIG_update(GRADS)
            assert fastconfig.last_backend() == "numba"
            backends.registry.withdraw("numba", "it broke")
            ConFIG_update(GRADS)
            assert fastconfig.last_backend() == "pytorch"
        assert explain("cpu")[0] == ("numba", "it broke")
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="'numba' cannot run here: it broke"):
                ConFIG_update(GRADS)
    with pytest.raises(BackendUnavailable, match="it broke"):
        use_backend("numba")


def test_numba_asked_for_another_device_raises() -> None:
    with (
        use_backend("numba"),
        pytest.raises(BackendUnavailable, match=r"serves the CPU, .* on meta"),
    ):
        ConFIG_update(GRADS.to("meta"))


def test_auto_falls_back_and_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "registry", backends.Registry())
    backends.registry.loaded["numba"] = "ImportError: no such luck"
    with caplog.at_level(logging.WARNING, logger="fastconfig"):
        for _ in range(3):
            assert choose(Gradients(GRADS)).name == "pytorch"
    assert [record.message for record in caplog.records] == [
        "backend 'numba' cannot run here and is passed over: ImportError: no such luck"
    ]
    assert explain("cpu") == [("numba", "ImportError: no such luck"), ("pytorch", None)]


def test_a_device_without_float64_is_served_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastconfig.numbers import float64_device

    assert float64_device(torch.device("mps")) == torch.device("cpu")
    assert float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


@slow
def test_processors_without_avx512_have_kernels_too() -> None:
    code = """
import llvmlite.binding as llvm
features = llvm.get_host_cpu_features()
features["avx512f"] = False
llvm.get_host_cpu_features = lambda: features
import torch
from fastconfig import ConFIG_update, reference
from fastconfig.kernels.numba import ir as ir_numba
for m in (2, 3, 5, 9):
    rows = torch.randn(m, 10007)
    exact = reference.config(rows)
    error = (ConFIG_update(list(rows)).double() - exact).norm() / exact.norm()
    print(ir_numba.LANES, bool(error < 1e-6))
"""
    run = with_torch(code, FASTCONFIG_BACKEND="numba")
    assert run.stdout.split() == ["4", "True"] * 4, run.stderr


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_tensor_without_memory_of_its_own_is_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        rows = torch.randn(2, 10)
    with use_backend("numba"), pytest.raises(TypeError, match="got a FakeTensor without memory of its own"):
        ConFIG_update(rows)


def test_a_checkout_that_is_not_built_computes_by_torch() -> None:
    """And says what it lacks."""
    code = (
        "import sys\n"
        "sys.modules['fastconfig._C'] = None\n"
        "import torch, fastconfig\n"
        "from fastconfig import methods\n"
        "rows = torch.randn(3, 50, dtype=torch.float64)\n"
        "for name in ('config', 'upgrad', 'mgda', 'imtlg'):\n"
        "    rule = methods.RULES[name]()\n"
        "    update = fastconfig.GramOperator(rule).calculate_gradient(rows)\n"
        "    torch.testing.assert_close(update, rule.oracle(rows))\n"
        "print(fastconfig.last_backend())\n"
    )
    done = with_torch(code)
    assert done.stdout.strip() == "pytorch", done.stderr
    assert "C++ code is not built, want: pip install" in done.stderr
