"""What a monitor keeps is what the full rows say in float64, on every way through an operator."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inputs import rows_of
from watching import FORMS, NAMES, OPERATORS, Net, by_hand, check, some

import fastconfig
from fastconfig import reference
from fastconfig.methods import ConFIG
from fastconfig.monitor import Monitor
from fastconfig.pcgrad import PCGrad, PPCGrad


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
        rows = rows_of(losses, list(net.parameters()))
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
