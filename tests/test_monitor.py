"""What a monitor keeps is what the full rows say in float64, on every way through an operator."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastconfig
from fastconfig import reference
from fastconfig.methods import IMTLG, ConFIG, UPGrad
from fastconfig.monitor import Monitor, pairs
from fastconfig.monitor.ring import DeviceRing, HostRing, split
from fastconfig.pcgrad import PCGrad, PPCGrad

NAMES = ["residual", "initial", "boundary"]


def some(n: int = 60, m: int = 3) -> Tensor:
    """(m, n) float64 rows of which some conflict, of unlike lengths."""
    return (torch.randn(m, n, dtype=torch.float64) - 0.3) * torch.tensor([0.1, 1, 30] + [2] * (m - 3))[
        :, None
    ]


def by_hand(rows: Tensor, update: Tensor) -> dict[str, Any]:
    """The figures of a step, from the full rows and the update."""
    norms = rows.norm(dim=1)
    m = len(rows)
    cosines = [float(rows[i] @ rows[j] / (norms[i] * norms[j])) for i, j in combinations(range(m), 2)]
    return {
        "norms": norms,
        "cosines": cosines,
        "conflict_rate": np.mean(np.array(cosines) < 0),
        "alignment": 2 * (m + 2 * sum(cosines)) / m**2 - 1,
        "coefficients": torch.linalg.lstsq(rows.T, update).solution,
        "update_cosines": rows @ update / (norms * update.norm()),
        "norm_ratio": norms.max() / norms.min(),
        "update_norm": update.norm(),
        "update_ratio": update.norm() / rows.sum(0).norm(),
    }


def check(monitor: Monitor, steps: list[dict[str, Any]], numbers: Any = None, **known: float) -> None:
    """Whether the history is that of the steps; of these numbers, if they are not 0, 1, ..."""
    history = monitor.history()
    assert len(monitor) == len(steps)
    assert history["step"].tolist() == list(range(len(steps)) if numbers is None else numbers)
    for n, step in enumerate(steps):
        for name, value in step.items():
            np.testing.assert_allclose(history[name][n], value, rtol=1e-9, atol=1e-12, err_msg=name)


class Doubled(fastconfig.LengthModel):
    """A user's own length: twice that of the first gradient."""

    def get_length(self, target_vector: Tensor, **given: Any) -> Tensor:
        return 2 * given["gradients"][0].norm()


class Descending(fastconfig.WeightModel):
    def get_weights(self, gradients: Tensor, **given: Any) -> Tensor:
        return torch.arange(len(gradients), 0, -1, dtype=gradients.dtype)


def by_weights(rows: Tensor) -> Tensor:
    return reference.config(rows, weights=torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


OPERATORS: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor]]] = {
    "config": (fastconfig.ConFIGOperator, reference.config),
    "minimum": (
        lambda: fastconfig.ConFIGOperator(length_model=fastconfig.TrackMinimum()),
        lambda rows: reference.config(rows, length="minimum"),
    ),
    "user's length": (
        lambda: fastconfig.ConFIGOperator(length_model=Doubled()),
        lambda rows: 2 * rows[0].norm() * torch.nn.functional.normalize(reference.config(rows), dim=0),
    ),
    "user's weights": (lambda: fastconfig.ConFIGOperator(Descending()), by_weights),
    "pcgrad": (lambda: fastconfig.PCGradOperator(reduction="mean"), lambda r: reference.pcgrad(r) / len(r)),
    "ppcgrad": (fastconfig.PPCGradOperator, reference.ppcgrad),
    "upgrad": (fastconfig.UPGradOperator, UPGrad.oracle),
    "function": (
        lambda: fastconfig.GramOperator(lambda G: 1 / G.diagonal()),
        lambda r: (r / r.square().sum(1, True)).sum(0),
    ),
    "every": (lambda: fastconfig.EveryOperator(IMTLG(), 1), reference.imtlg),
    "operator within": (lambda: fastconfig.EveryOperator(fastconfig.IMTLGOperator(), 1), reference.imtlg),
}
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "vectors": lambda rows: list(rows),
    "tensor": lambda rows: rows,
    "lists": lambda rows: [[row[:7].view(7), row[7:]] for row in rows],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_figures_are_those_of_the_rows(name: str, backend: str) -> None:
    make, oracle = OPERATORS[name]
    operator = make()
    operator.monitor = monitor = Monitor(NAMES)
    wanted, losses = [], []
    for form in [*FORMS.values()] * 2:
        rows = some()
        losses.append(torch.rand(3, dtype=torch.float64).tolist() if len(wanted) % 2 else [np.nan] * 3)
        operator.calculate_gradient(form(rows), losses[-1] if len(wanted) % 2 else None)
        wanted.append(by_hand(rows, oracle(rows)) | {"losses": losses[-1]})
    check(monitor, wanted)


@pytest.mark.parametrize("name", ["config", "pcgrad", "upgrad"])
def test_the_update_is_that_without_a_monitor(name: str, backend: str) -> None:
    """To the bit; in the short way, too."""
    plain, told = OPERATORS[name][0](), OPERATORS[name][0]()
    told.monitor = Monitor()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for form in FORMS.values():
            rows = form(some().to(dtype))
            for _ in range(2):
                one, other = plain.calculate_gradient(rows), told.calculate_gradient(rows)
                assert str(one) == str(other) if isinstance(one, list) else torch.equal(one, other)


def test_short_vectors_are_told_of_in_the_compiled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, rows = fastconfig.ConFIGOperator(), [row.float() for row in some()]
    operator.monitor = monitor = Monitor(every=2)
    calls = []
    monkeypatch.setattr(Monitor, "record", lambda *args, record=Monitor.record: calls.append(record(*args)))
    with fastconfig.use_backend("numba"):
        for _ in range(7):
            operator.calculate_gradient(rows)
    short = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    assert len(calls) == (1 if short else 7)
    exact = torch.stack(rows).double()
    check(monitor, [by_hand(exact, reference.config(exact))] * 4, [0, 2, 4, 6])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def losses(self) -> list[Tensor]:
        out = self.layers(torch.randn(9, 4, dtype=torch.float64)) * torch.tensor([1.0, -3.0, 0.2])
        return [out[:, 0].square().mean(), (out[:, 1] - out[:, 0]).square().mean(), out[:, 2].exp().mean()]


def rows_of(losses: list[Tensor], net: nn.Module) -> Tensor:
    grads = [
        torch.autograd.grad(v, list(net.parameters()), retain_graph=True, materialize_grads=True)
        for v in losses
    ]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in grads])


@pytest.mark.parametrize("way", ["backward", "weights", "pc_backward", "momentum"])
def test_loops(way: str, backend: str) -> None:
    """With the losses, in memory that is new and in that of the step before."""
    net = Net()
    monitor = Monitor(NAMES)
    operator: Any = fastconfig.ConFIGOperator()
    oracle, wanted = reference.config, []
    if way == "pc_backward":
        operator = PPCGrad(torch.optim.SGD(net.parameters(), 0.1))
        oracle = lambda rows: reference.ppcgrad(rows) / 3
    elif way == "momentum":
        operator = fastconfig.PseudoMomentumOperator(3, loss_recorder=fastconfig.LatestLossRecorder(3))
    operator.monitor = monitor
    held = torch.zeros(3, sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    for step in range(1, 4):
        losses = net.losses()
        rows = rows_of(losses, net)
        if way == "weights":
            fastconfig.weights(losses, net, operator)
        elif way == "pc_backward":
            operator.pc_backward(losses)
        else:
            fastconfig.backward(losses, net, operator)
        if way == "momentum":
            held = 0.9 * held + 0.1 * rows
            rows = held / (1 - 0.9**step)
        wanted.append(by_hand(rows, oracle(rows)) | {"losses": [float(v.detach()) for v in losses]})
    check(monitor, wanted)


@pytest.mark.parametrize("kind", [fastconfig.PseudoMomentumOperator, fastconfig.SeparateMomentumOperator])
@pytest.mark.parametrize("inner", ["config", "upgrad", "user's length"])
def test_momenta(kind: Any, inner: str, backend: str) -> None:
    """Of the momenta, corrected, and of those that are rescaled; steps before all have come are counted."""
    make, oracle = OPERATORS[inner]
    operator = kind(3, gradient_operator=make())
    operator.monitor = monitor = Monitor(NAMES)
    state = [[torch.zeros(40, dtype=torch.float64) for _ in range(3)] for _ in range(2)]
    rescaled, wanted = torch.zeros(3, 40, dtype=torch.float64), []
    counts = [0] * 3
    for step in range(7):
        i = step % 3
        gradient = some(40)[i]
        operator.calculate_gradient(i, gradient)
        counts[i] += 1
        for k, power in enumerate((1, 2)):
            beta = (0.9, 0.999)[k]
            state[k][i] = beta * state[k][i] + (1 - beta) * gradient**power
        first = state[0][i] / (1 - 0.9 ** counts[i])
        rescaled[i] = first / ((state[1][i] / (1 - 0.999 ** counts[i])).sqrt() + 1e-8)
        if step < 2:
            continue
        rows = rescaled.clone()
        if kind is fastconfig.PseudoMomentumOperator:
            rows = torch.stack([state[0][k] / (1 - 0.9 ** counts[k]) for k in range(3)])
        wanted.append(by_hand(rows, oracle(rows)))
    check(monitor, wanted, range(2, 7))


def test_pcgrad_of_parameters_of_two_dtypes() -> None:
    """One Gram matrix over all of them."""
    parameters = [torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(4, requires_grad=True)]
    losses = [
        (p.double() * torch.randn(len(p), dtype=torch.float64)).sum() for p in parameters for _ in range(2)
    ]
    losses = [losses[0] + losses[2], losses[1] + losses[3]]
    rows = torch.stack(
        [
            torch.cat([g.double() for g in torch.autograd.grad(v, parameters, retain_graph=True)])
            for v in losses
        ]
    )
    for reduction, factor in (("sum", 1), ("mean", 2)):
        merging = PCGrad(reduction=reduction, shuffle=False)
        merging.monitor = monitor = Monitor()
        merging.pc_backward(losses, parameters)
        check(monitor, [by_hand(rows, reference.pcgrad(rows) / factor)])


def test_kept_coefficients_count_as_steps() -> None:
    net, operator = Net(), fastconfig.EveryOperator(ConFIG(), 3)
    operator.monitor = monitor = Monitor()
    for _ in range(7):
        fastconfig.backward(net.losses(), net, operator)
    assert monitor.history()["step"].tolist() == [0, 3, 6]
    assert monitor.step == 7


def test_only_the_last_are_kept() -> None:
    operator = fastconfig.IMTLGOperator()
    operator.monitor = monitor = Monitor(keep=4, every=3)
    wanted = []
    for step in range(25):
        rows = some()
        operator.calculate_gradient(list(rows))
        if step % 3 == 0:
            wanted.append(by_hand(rows, reference.imtlg(rows)))
    check(monitor, wanted[-4:], [15, 18, 21, 24])


def test_a_run_that_is_resumed_has_the_history_of_one_that_went_through(tmp_path: Path) -> None:
    rows = [some() for _ in range(9)]
    path = tmp_path / "run.npz"

    def go_on(monitor: Monitor, part: list[Tensor]) -> Monitor:
        operator = fastconfig.ConFIGOperator()
        operator.monitor = monitor
        for each in part:
            operator.calculate_gradient(list(each), [1.0, 2.0, float(each[0, 0])])
        return monitor

    go_on(Monitor(NAMES, keep=6), rows[:5]).save(path)
    go_on(Monitor.load(path), rows[5:]).save(path)
    resumed, through = Monitor.load(path), go_on(Monitor(NAMES, keep=6), rows)
    assert list(tmp_path.iterdir()) == [path]
    for way in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing)), lambda thing: thing):
        twin = way(resumed)
        for name, values in through.history().items():
            np.testing.assert_array_equal(twin.history()[name], values)
        assert repr(twin) == repr(through)
        assert twin.step == 9
    check(resumed, [by_hand(each, reference.config(each)) for each in rows[3:]], range(3, 9))


def test_an_empty_monitor(tmp_path: Path) -> None:
    for monitor in (Monitor(), Monitor(NAMES)):
        monitor.save(tmp_path / "run.npz")
        loaded = Monitor.load(tmp_path / "run.npz")
        assert len(loaded) == 0
        assert loaded.names == monitor.names
        assert loaded.last() == {}
        assert loaded.history()["step"].shape == (0,)
    loaded.step = 12
    operator = fastconfig.ConFIGOperator()
    operator.monitor = loaded
    operator.calculate_gradient(some())
    assert loaded.last()["step"] == 12


def test_zero_and_bad_gradients() -> None:
    """No cosine with a zero gradient, nothing but NaN of what is not finite; extreme norms are no matter."""
    operator = fastconfig.ConFIGOperator()
    operator.monitor = monitor = Monitor()
    units = torch.nn.functional.normalize(some(), dim=1)
    for rows in (units * 1e-150, units * 1e150, units * torch.tensor([[1.0], [0], [1]]), units / 0):
        operator.calculate_gradient(rows)
    history = monitor.history()
    exact = by_hand(units, reference.config(units))
    for n in range(2):
        for name in ("cosines", "update_cosines", "update_ratio", "alignment"):
            np.testing.assert_allclose(history[name][n], exact[name], rtol=1e-9)
    assert np.isnan(history["cosines"][2]).tolist() == [True, False, True]
    assert np.isnan(history["update_cosines"][2]).tolist() == [False, True, False]
    for name in ("cosines", "conflict_rate", "alignment", "update_cosines", "update_ratio", "norm_ratio"):
        assert np.isnan(history[name][3]).all(), name


def test_last_and_frame() -> None:
    operator = fastconfig.ConFIGOperator()
    operator.monitor = monitor = Monitor(NAMES)
    rows = some()
    operator.calculate_gradient(rows, [1.0, 2.0, 3.0])
    last, exact = monitor.last(), by_hand(rows, reference.config(rows))
    assert last["loss/initial"] == 2
    assert last["cosine/initial,boundary"] == pytest.approx(exact["cosines"][pairs(3).index((1, 2))])
    assert last["norm/boundary"] == pytest.approx(float(exact["norms"][2]))
    pandas = pytest.importorskip("pandas")
    frame = monitor.history(frame=True)
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc[0].to_dict() == {name: value for name, value in last.items() if name != "step"}


class NoWait(TorchDispatchMode):
    """What a device would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [1, 3])
def test_a_ring_on_a_device(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for nothing, keeps what the host's keeps, and is fetched before it is full."""
    monkeypatch.setattr("fastconfig.monitor.ring._LEAST", 8)
    monkeypatch.setattr("fastconfig.monitor.ring._DEVICE_BYTES", 1)
    device, fetched, host = (
        DeviceRing(3, every, 100, torch.device("cpu"), 0),
        HostRing(3, every, 100),
        HostRing(3, every, 100),
    )
    for step in range(100):
        rows, c = some(), torch.randn(3, dtype=torch.float64)
        losses = torch.rand(3, dtype=torch.float64) if step % 2 else None
        with NoWait():
            device.record(rows @ rows.T, c, losses)
        device.fetch_block(fetched)
        host.record(rows @ rows.T, c, None if losses is None else losses.tolist())
    device.pass_step()
    host.step += 1
    device.fetch(fetched)
    for one, other in zip(split(fetched.rows(), 3), split(host.rows(), 3), strict=True):
        np.testing.assert_array_equal(one, other)
    assert fetched.step == host.step == 101


def test_what_cannot_be_told_is_refused() -> None:
    operator: Any = fastconfig.ConFIGOperator()
    operator.monitor = monitor = Monitor(NAMES)
    with pytest.raises(ValueError, match="monitor: got 2 gradients for 3 names"):
        operator.calculate_gradient(some()[:2])
    for form in (some(), list(some())):
        operator.calculate_gradient(form)
    with pytest.raises(ValueError, match="monitor: got 4 gradients, want 3"):
        operator.calculate_gradient(list(some(m=4)))
    with pytest.raises(ValueError, match=r"monitor: got 5 problems in a batch \(B, m, N\)"):
        operator.calculate_gradient(torch.randn(5, 3, 10))
    assert len(monitor) == 2
    for wrong in ("run.npz", Monitor, 3):
        operator.monitor = wrong
        with pytest.raises(
            TypeError, match=r"operator\.monitor: got .*, want a fastconfig\.monitor\.Monitor"
        ):
            operator.calculate_gradient(list(some()))

    class Own(fastconfig.GradientOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            return grads.sum(0)

    own, net = Own(), Net()
    own.monitor = Monitor()
    with pytest.raises(TypeError, match="operator: got a Own with a monitor that must see the gradients"):
        fastconfig.backward(net.losses(), net, own)
    momentum = fastconfig.PseudoMomentumOperator(3)
    momentum.monitor = Monitor(["a", "b"])
    with pytest.raises(ValueError, match="monitor: got 3 gradients for 2 names"):
        momentum.calculate_gradient(0, torch.ones(4))
    assert not momentum._momenta.clock.updates


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"names": "ab"}, TypeError, "names: got 'ab', want one different name a loss"),
        ({"names": [1, 2]}, TypeError, "names: got"),
        ({"names": ["a", "a"]}, ValueError, r"names: got \['a', 'a'\]"),
        ({"names": []}, ValueError, r"names: got \[\]"),
        ({"every": 0}, ValueError, "every: got 0, want at least 1"),
        ({"keep": 1.5}, TypeError, "keep: got 1.5, want an integer"),
    ],
)
def test_mistaken_arguments(given: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Monitor(**given)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    with pytest.raises(FileNotFoundError):
        Monitor.load(path)
    for content in (b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="want a file that Monitor"):
            Monitor.load(path)
    np.savez(path, a=1)
    with pytest.raises(ValueError, match="want a file that Monitor"):
        Monitor.load(path)


def test_compiled_code_breaks_the_graph() -> None:
    operator = fastconfig.ConFIGOperator()
    operator.monitor = monitor = Monitor()
    rows = some()
    compiled = torch.compile(operator.calculate_gradient, backend="eager")
    torch.testing.assert_close(compiled(rows), reference.config(rows))
    check(monitor, [by_hand(rows, reference.config(rows))])


@pytest.mark.parametrize("inner", ["config", "upgrad", "pcgrad"])
def test_a_momentum_step_is_that_without_a_monitor(inner: str) -> None:
    """To the bit, whether the monitor comes at first or later."""
    make = OPERATORS[inner][0]
    plain, first, later = (fastconfig.PseudoMomentumOperator(3, gradient_operator=make()) for _ in range(3))
    first.monitor = Monitor()
    with fastconfig.use_backend("numba"):
        for step in range(9):
            if step == 5:
                later.monitor = Monitor()
            row = some()[step % 3]
            update = plain.calculate_gradient(step % 3, row)
            assert torch.equal(first.calculate_gradient(step % 3, row), update)
            assert torch.equal(later.calculate_gradient(step % 3, row), update)
    one, other = first.monitor.history(), later.monitor.history()
    for name in ("norms", "coefficients", "update_cosines"):
        np.testing.assert_array_equal(one[name][-4:], other[name])


@pytest.mark.parametrize("way", ["backward", "lists", "momentum", "user's length"])
def test_groups(way: str, tmp_path: Path) -> None:
    """A monitor for each group of parameters."""
    net, operator = Net(), OPERATORS["user's length" if way == "user's length" else "config"][0]()
    oracle = OPERATORS["user's length" if way == "user's length" else "config"][1]
    if way == "momentum":
        operator = fastconfig.PseudoMomentumOperator(3)
    operator.groups = "parameter"
    operator.monitor = monitor = Monitor(NAMES)
    names = [name for name, _ in net.named_parameters()]
    wanted: dict[str, list[Any]] = {name: [] for name in names}
    for _ in range(1 if way == "momentum" else 2):
        losses = net.losses()
        grads = [torch.autograd.grad(v, list(net.parameters()), retain_graph=True) for v in losses]
        if way == "lists":
            operator.update_gradient(net, grads, losses)
        else:
            fastconfig.backward(losses, net, operator)
        for name, column in zip(names, zip(*grads, strict=True), strict=True):
            rows = torch.stack([g.reshape(-1) for g in column])
            wanted[name].append(by_hand(rows, oracle(rows)))
    monitor.save(tmp_path / "run.npz")
    for found in (monitor, Monitor.load(tmp_path / "run.npz"), copy.deepcopy(monitor)):
        assert list(found.groups) == names
        for name in names:
            check(found.groups[name], wanted[name])
    assert monitor.last()[f"{names[0]}/cosine/residual,initial"] == pytest.approx(
        wanted[names[0]][-1]["cosines"][0]
    )
    with pytest.raises(ValueError, match="monitor: got steps of groups"):
        monitor.history()
