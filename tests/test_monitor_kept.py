"""What a monitor keeps: the last steps, over a restart, on a device; and what it refuses."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synchronisation import Watched
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from watching import NAMES, Net, by_hand, check, some

import fastconfig
from fastconfig import reference
from fastconfig.monitor import Monitor, pairs
from fastconfig.monitor.ring import DeviceRing, HostRing, split


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
        with Watched():
            device.record(rows @ rows.T, c, losses)
        device.fetch_block(fetched)
        host.record(rows @ rows.T, c, None if losses is None else losses.tolist())
    device.pass_step()
    host.step += 1
    device.fetch(fetched)
    for one, other in zip(split(fetched.rows(), 3), split(host.rows(), 3), strict=True):
        np.testing.assert_array_equal(one, other)
    assert fetched.step == host.step == 101


@pytest.mark.parametrize("every", [1, 2])
def test_replays_of_a_graph_are_steps(every: int) -> None:
    """What is recorded once, and replayed, takes the gradients of then; the recording itself is no step."""
    ring, fetched, host = (
        DeviceRing(3, every, 100, torch.device("cpu"), 0),
        HostRing(3, every, 100),
        HostRing(3, every, 100),
    )
    rows, c = some(), torch.randn(3, dtype=torch.float64)
    ring.record(rows @ rows.T, c, None)  # the step before the capture
    host.record(rows @ rows.T, c, None)
    before = [tensor.clone() for tensor in (ring.values, ring.counters)]
    replay = make_fx(lambda gram, c: ring.record(gram, c, None))(rows @ rows.T, c)
    for tensor, kept in zip((ring.values, ring.counters), before, strict=True):
        tensor.copy_(kept)  # a capture runs nothing
    for _ in range(5):
        rows, c = some(), torch.randn(3, dtype=torch.float64)
        replay(rows @ rows.T, c)
        host.record(rows @ rows.T, c, None)
    ring.fetch(fetched)
    np.testing.assert_array_equal(fetched.rows(), host.rows())
    assert fetched.step == host.step == 6


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
