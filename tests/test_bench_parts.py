"""The parts of ``fastconfig bench``: peers, oracle, turns, floor and memory. Nothing here asserts a time."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from inputs import METHODS, relative_error
from rich.console import Console

from fastconfig import reference
from fastconfig.bench import cases, memory, peers, plan, report, timing
from fastconfig.bench.accuracy import Exact
from fastconfig.bench.cases import Setting, flat, make_inputs, traffic, updates
from fastconfig.bench.momentum import MOMENTUM, PlainMomentum, Steps, ours, schedule

CPU = torch.device("cpu")
UPDATES = {
    "config": "config-projection",
    "pcgrad": "pcgrad",
    "ppcgrad": "ppcgrad",
    "imtlg": "imtlg",
}


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
def test_plain_torch_is_right_where_it_can_be(form: str) -> None:
    setting = Setting(4, 700, "float64", form)
    inputs = make_inputs(setting, CPU)
    exact = Exact(setting, inputs)
    plain = peers.find_peers()[0]
    for operation, merge in plain.merges.items():
        result = merge(inputs.grads)
        if form == "parameters" and operation in updates():
            assert [tuple(t.shape) for t in result] == cases.layer_shapes(700)
        assert exact.error(operation, result) < 1e-12


@pytest.mark.parametrize("n", [1, 2, 17, 1000, 70_001])
def test_layers_have_all_elements(n: int) -> None:
    assert sum(int(np.prod(shape)) for shape in cases.layer_shapes(n)) == n


@pytest.mark.parametrize("m", [1, 2, 5])
def test_exact_is_the_oracle_on_the_full_rows(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconfig.bench.accuracy.BLOCK", 100)
    setting = Setting(m, 1234, "float32", "parameters")
    inputs = make_inputs(setting, CPU)
    rows = torch.cat([torch.stack(segment) for segment in inputs.segments], dim=1)
    exact = Exact(setting, inputs)
    for operation, method in updates().items():
        oracle = METHODS[UPDATES[method]].oracle(rows)
        assert (exact.update(method) - oracle).norm() <= 1e-12 * oracle.norm()
        assert exact.error(operation, oracle) <= 1e-12
        assert exact.error(operation, 1.5 * oracle) == pytest.approx(0.5)
        assert exact.error(operation, torch.nan * oracle) == float("inf")
    full = rows.double()
    assert exact.error("gram", full @ full.T) <= 1e-12
    assert exact.error("conflict mask", full @ full.T < 0) == 0
    if m > 1:
        assert exact.error("conflict mask", torch.ones(m, m, dtype=torch.bool)) > 0
        assert (full @ full.T < 0).any()


def test_the_bound_is_that_of_the_accuracy_tests() -> None:
    from inputs import rounding_bound

    setting = Setting(4, 900)
    inputs = make_inputs(setting, CPU)
    exact = Exact(setting, inputs)
    wanted = rounding_bound(torch.stack(inputs.segments[0]), exact.update("config"))
    assert exact.bound("ConFIG_update") == pytest.approx(wanted, rel=1e-6)


class Turns:
    """A clock that notes whose turn it is."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.turns: list[str] = []

    def once(self, contestant: timing.Contestant) -> tuple[float, Any]:
        return self.seconds[contestant.name], None

    def prepare(self, contestant: timing.Contestant, seconds: float) -> None:
        assert seconds == self.seconds[contestant.name]

    def sample(self, contestant: timing.Contestant) -> list[float]:
        self.turns.append(contestant.name)
        return [self.seconds[contestant.name]]

    def release(self) -> None:
        self.turns.append("released")


def test_contestants_take_turns_and_slow_ones_fewer() -> None:
    clock = Turns({"quick": 1e-3, "slow": 1e-1})
    contestants = [timing.Contestant("x", name, lambda: None, least=4) for name in clock.seconds]
    timing.measure(contestants, clock, 0.02, lambda: None)
    assert clock.turns.count("quick") == 20
    assert clock.turns.count("slow") == 4
    gaps = "".join(name[0] for name in clock.turns).split("s")
    assert max(len(gap) for gap in gaps) <= 6  # spread over all rounds


def test_a_short_call_is_timed_in_a_row_after_others_that_are_not() -> None:
    clock, calls = timing.HostClock(), []
    contestant = timing.Contestant("x", "x", lambda: calls.append(1), calls=3)
    clock.prepare(contestant, timing.WARM_BELOW / 2)
    assert len(clock.sample(contestant)) == timing.IN_A_ROW
    assert len(calls) == timing.IN_A_ROW * (1 + 3)
    clock.prepare(contestant, timing.WARM_BELOW * 2)
    assert len(clock.sample(contestant)) == 1
    assert len(calls) == timing.IN_A_ROW * (1 + 3) + 3


def test_quantiles_are_of_the_samples() -> None:
    contestant = timing.Contestant("x", "x", lambda: None, samples=[5.0, 1.0, 4.0, 2.0, 3.0])
    assert (contestant.quantile(0.2), contestant.median, contestant.quantile(0.8)) == (1.0, 3.0, 4.0)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_floor_reads_and_writes_everything(threads: int) -> None:
    stream = pytest.importorskip("fastconfig.kernels.numba.stream")
    from fastconfig.backends.team import team_address

    words = torch.randint(-(2**62), 2**62, (stream.CHUNK // 8 * 2 + 8 * 13,))
    team = team_address()
    threads = threads if team else 1
    job = stream.job_of([(words.data_ptr(), 8 * len(words))])
    stream.run(job, stream.body("read"), threads, team)
    folds = [int(np.bitwise_xor.reduce(part)) for part in np.split(words.numpy(), [32768, 65536])]
    assert len(folds) == job[stream.CHUNKS] == 3
    if threads == 1:
        assert job[stream.SINK] == folds[0] ^ folds[1] ^ folds[2]
    job = stream.job_of([(words.data_ptr(), 8 * len(words))])
    stream.run(job, stream.body("write"), threads, team)
    assert not words.any()


def test_extra_memory_is_what_a_call_takes_beyond_its_result() -> None:
    size = 40 << 20

    def call() -> torch.Tensor:
        scratch = torch.ones(size // 4)
        return scratch[: size // 40].clone()

    extra = memory.extra_bytes(call, CPU)
    if extra is None:
        pytest.skip("this system does not tell")
    assert abs(extra - size) <= 1 << 20  # the system counts pages in batches


def test_an_update_takes_less_than_a_megabyte_beyond_its_result() -> None:
    requests = [
        {
            "setting": {"m": 3, "n": 1_000_000, "dtype": "float32", "form": "vectors"},
            "operation": "ConFIG_update",
            "name": name,
            "backend": backend,
            "device": "cpu",
            "threads": 2,
        }
        for name, backend in (("fastconfig", "numba"), ("plain torch", None))
    ]
    ours, plain = memory.extra_memory(requests)
    if ours is None:
        pytest.skip("this system does not tell")
    assert ours <= 1_000_000
    assert plain is not None
    assert plain >= 11_000_000  # the stack


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_the_momentum_oracle_is_the_transcription(m: int, form: str) -> None:
    setting = Setting(m, 503, "float64", form)
    inputs = make_inputs(setting, torch.device("cpu"))
    rows = torch.stack([torch.cat([part[i] for part in inputs.segments]) for i in range(m)])
    exact = reference.Momentum(m)
    for i, j in schedule(m):
        wanted = exact.step([i], rows[j : j + 1])
    assert relative_error(Exact(setting, inputs).momentum(), wanted) <= 1e-9
    plain = partial(PlainMomentum, merge=reference.config)
    for steps in (Steps(ours, inputs.grads, flat=False), Steps(plain, inputs.grads, flat=True)):
        assert relative_error(flat(steps.answer()), wanted) <= 1e-9
        assert torch.isfinite(flat(steps())).all()


def test_a_momentum_step_moves_its_state_in_float32_at_least() -> None:
    n = 1000
    assert traffic(MOMENTUM, Setting(3, n)) == (9 * 4 * n, 4 * 4 * n)
    assert traffic(MOMENTUM, Setting(3, n, "bfloat16")) == (8 * 4 * n + 2 * n, 3 * 4 * n + 2 * n)
    assert traffic(MOMENTUM, Setting(3, n, "float64")) == (9 * 8 * n, 4 * 8 * n)


def test_the_narrow_table_fits_a_terminal() -> None:
    head = ["PseudoMomentumOperator", "32", "10,000,000", "123,456", "100–200", "12.3", "45.6"]
    rows = [[*head, "10.50 (10 %)", "12.3× (1e-03)", "111×", "9,999× (order)", "0.1 MB"]]
    console = Console(width=80, file=io.StringIO())
    console.print(report.narrow_table("float32, vectors, numba", rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    for wanted in ("PseudoMomentumOperator", "10,000,000", "123,456", "10.50", "12.3×*", "111×", "9,999×†"):
        assert wanted in text


def test_a_run_says_how_long_it_takes() -> None:
    options = plan.Options()
    words = plan.expected(options, plan.settings(options), ["numba", "pytorch"])
    assert words.startswith("about ")
    assert "minutes" in words
    quick = plan.Options(quick=True, m=(3,), n=(1000,))
    assert "seconds" in plan.expected(quick, plan.settings(quick), ["numba"])
