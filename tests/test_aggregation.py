"""TorchJD's names: Jacobians and Gramians, settings, hooks, state, and an unedited script of its."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import types
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import conflicting, relative_error
from torch import Tensor, nn

import fastconfig
from fastconfig import GramOperator, aggregation, methods, ops
from fastconfig.aggregation import Aggregator, Weighting

JACOBIAN = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])

#: how to make each with two gradients, and the paper's answer to JACOBIAN where there is one; TorchJD's
#: documentation has the same numbers, but for the third digit of UPGrad and DualProj: it adds 1e-4 I
MADE: dict[str, tuple[dict[str, Any], list[float] | None]] = {
    "AlignedMTL": ({}, [0.2133, 0.9673, 0.9673]),
    "CAGrad": ({"c": 0.5}, [0.1835, 1.2041, 1.2041]),
    "ConFIG": ({}, [0.1588, 2.0706, 2.0706]),
    "Constant": ({"weights": torch.tensor([1.0, 2.0])}, [8.0, 3.0, 3.0]),
    "DualProj": ({}, [5 / 9, 10 / 9, 10 / 9]),
    "FairGrad": ({"alpha": 1.0}, [0.0766, 0.9985, 0.9985]),
    "GradVac": ({}, [0.5848, 3.8012, 3.8012]),
    "IMTLG": ({}, [0.0767, 1.0, 1.0]),
    "Krum": ({"n_byzantine": 0}, None),
    "MGDA": ({}, [0.0, 1.0, 1.0]),
    "Mean": ({}, [1.0, 1.0, 1.0]),
    "NashMTL": ({"n_tasks": 2}, [0.0542, 0.7061, 0.7061]),
    "PCD": ({}, None),
    "PCGrad": ({}, [0.5848, 3.8012, 3.8012]),
    "Random": ({}, None),
    "Sum": ({}, [2.0, 2.0, 2.0]),
    "UPGrad": ({}, [0.2924, 1.9006, 1.9006]),
}
THREE: dict[str, Any] = {"Constant": {"weights": [1.0, 2.0, -1.0]}, "NashMTL": {"n_tasks": 3}}
BASES = ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator")
NAMES = [
    name
    for name in aggregation.__all__
    if name not in BASES and name != "jac_to_grad" and not name.endswith("Weighting")
]


def make(name: str, **more: Any) -> Aggregator:
    aggregator: Aggregator = getattr(aggregation, name)(**MADE[name][0], **more)
    return aggregator


def test_every_name_is_tested_and_has_its_weighting() -> None:
    assert sorted(MADE) == sorted(NAMES)
    for name in NAMES:
        kinds = (getattr(aggregation, name), getattr(aggregation, f"{name}Weighting"))
        signatures = [list(inspect.signature(kind).parameters) for kind in kinds]
        assert signatures[0] == signatures[1]


def test_every_method_has_an_aggregator() -> None:
    assert set(methods.METHODS.values()) - {"PPCGrad"} == set(NAMES)
    rows = conflicting(3, 50)  # of one that TorchJD does not have, it is made
    aggregator = pickle.loads(pickle.dumps(aggregation.PPCGrad(reduction="mean")))
    wanted = methods.PPCGradOperator(reduction="mean").calculate_gradient(rows)
    assert torch.equal(aggregator(rows), wanted)
    weights = aggregation.PPCGradWeighting(reduction="mean")(rows.double() @ rows.double().T)
    torch.testing.assert_close(weights @ rows.double(), wanted.double(), rtol=1e-6, atol=1e-6)
    assert repr(aggregator) == "PPCGrad(reduction='mean')"
    assert not hasattr(aggregation, "TrimmedMean")


def test_the_table_in_the_docs_has_every_method() -> None:
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    table = text.partition("<!-- methods:begin -->")[2].partition("<!-- methods:end -->")[0]
    listed = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    assert set(methods.METHODS.values()) <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", [name for name, (_, wanted) in MADE.items() if wanted])
def test_documented_example(name: str) -> None:
    wanted = torch.tensor(MADE[name][1])
    torch.testing.assert_close(make(name)(JACOBIAN), wanted, rtol=0, atol=6e-5)
    weighting = getattr(aggregation, f"{name}Weighting")(**MADE[name][0])
    weights = weighting(JACOBIAN @ JACOBIAN.T)
    torch.testing.assert_close(weights @ JACOBIAN, wanted, rtol=0, atol=6e-5)


def test_documented_examples_of_krum_and_random() -> None:
    rows = torch.tensor([[1.0, 1, 1], [1, 0, 1], [75, -666, 23], [1, 2, 3], [2, 0, 1]])
    assert torch.equal(aggregation.Krum(1, 4)(rows), torch.tensor([1.25, 0.75, 1.5]))
    weights = aggregation.KrumWeighting(1, 4)(rows @ rows.T)
    assert torch.equal(weights, torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25]))
    torch.manual_seed(0)
    wanted = torch.tensor([-2.6229, 1.0, 1.0])
    torch.testing.assert_close(aggregation.Random()(JACOBIAN), wanted, rtol=0, atol=6e-5)


@pytest.mark.parametrize("name", NAMES)
def test_both_faces_and_all_forms(name: str) -> None:
    rows = conflicting(3, 50)
    more = THREE.get(name, {})
    seeds = {"generator"} & set(inspect.signature(getattr(aggregation, name)).parameters)

    def fresh() -> Aggregator:
        source = {seed: torch.Generator().manual_seed(5) for seed in seeds}
        kind: Any = getattr(aggregation, name)
        return kind(**{**MADE[name][0], **more, **source})  # type: ignore[no-any-return]

    update = fresh()(rows)
    assert isinstance(update, Tensor)
    assert update.dtype is rows.dtype
    assert torch.equal(fresh().calculate_gradient(list(rows)), update)
    pieces = fresh()([[row[:20], row[20:]] for row in rows])
    assert torch.allclose(torch.cat(list(pieces)), update, rtol=1e-5, atol=1e-6)
    batch = fresh()(torch.stack([rows, rows]))
    assert batch.shape == (2, 50)
    c = fresh().gramian_weighting(ops.gram(rows))
    torch.testing.assert_close(c @ rows.double(), update.double(), rtol=1e-5, atol=1e-6)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert fresh().gramian_weighting(torch.eye(3, dtype=dtype)).dtype is dtype
    other = pickle.loads(pickle.dumps(fresh()))
    assert torch.equal(copy.deepcopy(other)(rows), update)


@pytest.mark.parametrize("name", NAMES)
def test_in_backward_and_momentum(name: str) -> None:
    more = THREE.get(name, {})
    aggregator = getattr(aggregation, name)(**{**MADE[name][0], **more})
    net = nn.Linear(4, 3)
    y = net(torch.randn(8, 4))
    fastconfig.backward([y[:, 0].mean(), -y[:, 1].square().mean(), y[:, 2].sum()], net, aggregator)
    assert all(par.grad is not None and par.grad.isfinite().all() for par in net.parameters())
    momentum = fastconfig.PseudoMomentumOperator(3, gradient_operator=aggregator)
    assert momentum.calculate_gradient([0, 1, 2], conflicting(3, 20)).isfinite().all()
    aggregator.update_gradient(net, torch.randn(3, 15))


def test_settings() -> None:
    rows = torch.randn(6, 9)
    krum = aggregation.Krum(1, n_selected=2)
    assert (krum.n_byzantine, krum.gramian_weighting.n_selected) == (1, 2)
    assert repr(krum) == "Krum(n_byzantine=1, n_selected=2)"
    assert repr(aggregation.PCGrad()) == "PCGrad()"
    krum.n_selected = 3
    assert torch.equal(krum(rows), aggregation.Krum(1, 3)(rows))
    with pytest.raises(ValueError, match="n_byzantine: got -1"):
        krum.n_byzantine = -1
    assert torch.equal(krum(rows), aggregation.Krum(1, 3)(rows))
    solver = object()
    assert torch.equal(aggregation.UPGrad(projector=solver)(rows), aggregation.UPGrad()(rows))
    assert torch.equal(aggregation.MGDA(0.5, 1)(rows), aggregation.MGDA()(rows))
    with pytest.raises(AttributeError, match="alpha"):
        _ = krum.alpha
    preferred = aggregation.UPGrad(torch.tensor([1.0, 0, 0, 0, 0, 2.0]))
    assert not torch.equal(preferred(rows), aggregation.UPGrad()(rows))
    with pytest.raises(ValueError, match="pref_vector: got 6 numbers, want 2"):
        preferred.gramian_weighting(torch.eye(2))


def test_short_names_are_torchjds() -> None:
    weights = torch.tensor([1.0, 2.25, -0.5])
    for name in ("UPGrad", "DualProj", "AlignedMTL", "ConFIG"):
        kind = getattr(aggregation, name)
        assert (str(kind()), str(kind(weights.abs()))) == (name, f"{name}([1., 2.25, 0.5])")
    assert str(aggregation.Constant(weights)) == "Constant([1., 2.25, -0.5])"
    assert [str(aggregation.CAGrad(c)) for c in (0.5, 1.0, 2)] == ["CAGrad0.5", "CAGrad1", "CAGrad2"]
    assert str(aggregation.FairGrad(1.0)) == "1.0-FairGrad"
    assert str(aggregation.Krum(1, n_selected=2)) == "Krum1-2"
    assert str(aggregation.MGDA()) == "MGDA"


def test_preferences_of_config_are_direction_weights() -> None:
    rows, weights = torch.randn(3, 20).double(), torch.tensor([1.0, 2.0, 0.5])
    update = aggregation.ConFIG(weights)(rows)
    along = rows @ update / rows.norm(dim=1)
    torch.testing.assert_close(along / along.sum(), (weights / weights.sum()).double())


def test_state() -> None:
    for kind in (aggregation.GradVac, aggregation.PCD):
        aggregator, rows = kind(), [conflicting(3, 20) for _ in range(3)]
        first = [aggregator(row) for row in rows]
        within = nn.ModuleList([aggregator])
        saved = within.state_dict()
        other = nn.ModuleList([kind()])
        other.load_state_dict(saved)
        state = aggregator.gramian_weighting.operator.state_dict()
        for name, value in other[0].gramian_weighting.operator.state_dict().items():
            assert torch.equal(state[name], value)
        aggregator.beta = 0.25
        assert aggregator.gramian_weighting.operator.state_dict().keys() == state.keys()
        aggregator.reset()
        assert not aggregator.gramian_weighting.operator.state_dict()
        if kind is aggregation.PCD:
            aggregator.beta = 0.999
            assert all(torch.equal(aggregator(row), old) for row, old in zip(rows, first, strict=True))


def test_nash_keeps_its_weights_and_cuts_the_length() -> None:
    rows = [conflicting(3, 20).double() for _ in range(4)]
    free, kept = aggregation.NashMTL(3, None), aggregation.NashMTL(3, max_norm=0, update_weights_every=2)
    for step, each in enumerate(rows):
        weights = free.gramian_weighting(ops.gram(rows[step - step % 2]))
        torch.testing.assert_close(kept(each), weights @ each)
    kept.reset()
    torch.testing.assert_close(kept(rows[1]), free(rows[1]))
    for scale in (1e-4, 1, 1e4):  # the length is the paper's, whatever the gradients'
        assert float(free(scale * rows[0]).norm()) == pytest.approx(3**0.5)
        assert float(aggregation.NashMTL(3)(scale * rows[0]).norm()) == pytest.approx(1)
    cut = aggregation.NashMTL(3, 1e-3, 2)
    for each in rows:
        assert float(cut(each).norm()) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="matrix: got 2 gradients, want 3"):
        free(rows[0][:2])
    with pytest.raises(ValueError, match="update_weights_every: got 0"):
        aggregation.NashMTL(3, update_weights_every=0)
    with pytest.raises(ValueError, match="optim_niter: got 0, want at least 1"):
        kept.optim_niter = 0  # though it has no effect, as in TorchJD


def test_settings_are_those_of_all_its_modules() -> None:
    aggregator = aggregation.NashMTL(3)
    aggregator.weighting.max_norm, aggregator.n_tasks = 1e-3, 2
    for module in (aggregator, aggregator.weighting, aggregator.gramian_weighting):
        assert (module.n_tasks, module.max_norm, module.update_weights_every) == (2, 1e-3, 1)
    assert float(aggregator(conflicting(2, 20)).norm()) == pytest.approx(1e-3)
    with pytest.raises(AttributeError):
        aggregator.weighting.beta  # type: ignore[attr-defined]


def test_hooks() -> None:
    rows = conflicting(3, 20)
    aggregator, seen = aggregation.UPGrad(), []
    plain = aggregator(rows)
    handle = aggregator.weighting.register_forward_hook(lambda module, given, weights: seen.append(weights))
    assert torch.allclose(aggregator(rows), plain, rtol=1e-6)
    assert seen[0].dtype is rows.dtype
    handle.remove()
    aggregator.gramian_weighting.register_forward_hook(lambda module, given, weights: 2 * weights)
    assert torch.allclose(aggregator(rows), 2 * plain, rtol=1e-6)


class Half(Weighting):
    """A user's own, in TorchJD's form."""

    def forward(self, gramian: Tensor) -> Tensor:
        return torch.full((len(gramian),), 0.5, dtype=gramian.dtype)


def test_own_weighting_is_a_rule() -> None:
    rows = torch.randn(3, 20)
    assert torch.allclose(GramOperator(Half()).calculate_gradient(rows), rows.sum(0) / 2, atol=1e-6)
    upgrad = GramOperator(aggregation.UPGradWeighting()).calculate_gradient(rows)
    torch.testing.assert_close(upgrad, aggregation.UPGrad()(rows))


def test_jac_to_grad() -> None:
    given = [torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.randn(4))]
    jacobians = [torch.randn(3, 2, 3), torch.randn(3, 4)]
    rows = torch.cat([jac.flatten(1) for jac in jacobians], 1)
    exact = aggregation.UPGrad()(rows)
    for times in (1, 2):
        for par, jac in zip(given, jacobians, strict=True):
            par.jac = jac  # type: ignore[attr-defined]
        weights = aggregation.jac_to_grad(given, aggregation.UPGrad(), retain_jac=times == 1)
        torch.testing.assert_close(weights @ rows, exact, rtol=1e-5, atol=1e-6)
        found = torch.cat([par.grad.flatten() for par in given])  # type: ignore[union-attr]
        torch.testing.assert_close(found, times * exact)
    assert not hasattr(given[0], "jac")
    with pytest.raises(ValueError, match=r"got one without \.jac"):
        aggregation.jac_to_grad(given, aggregation.UPGrad())
    with pytest.raises(ValueError, match="tensors: got none"):
        aggregation.jac_to_grad([], aggregation.UPGrad())
    for tensor in (torch.zeros(3), given[1] * 2):
        tensor.jac = JACOBIAN  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"got one that takes no \.grad"):
            aggregation.jac_to_grad([tensor], aggregation.UPGrad())
        assert tensor.jac is JACOBIAN  # type: ignore[attr-defined]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Modules as TorchJD has them, and a script that has imported from them."""

    class Theirs(nn.Module, ABC):
        @abstractmethod
        def forward(self, matrix: Tensor) -> Tensor: ...

    def module(name: str, **names: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        for key, value in names.items():
            value.__module__ = name
            setattr(made, key, value)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    bases = {name: type(name, (Theirs,), {}) for name in (*BASES, "Weighting")}
    mean = type("UPGrad", (bases["GramianWeightedAggregator"],), {"forward": lambda self, j: j.mean(0)})
    other = type("Own", (bases["Aggregator"],), {"forward": lambda self, j: j.sum(0)})
    module("torchjd")
    module("torchjd.aggregation", UPGrad=mean, **bases)

    def jac_to_grad(tensors: Any, /, aggregator: Any, *, retain_jac: bool = False) -> str:
        return "theirs"

    module("torchjd.autojac", jac_to_grad=jac_to_grad)
    script = types.ModuleType("script_for_torchjd")
    vars(script).update(UPGrad=mean, jac_to_grad=jac_to_grad, Own=other, **bases)
    monkeypatch.setitem(sys.modules, script.__name__, script)
    return script


def test_accelerate(tree: Any) -> None:
    before = dict(vars(tree))
    with fastconfig.accelerate("torchjd") as acceleration:
        assert acceleration.names == ["aggregation.UPGrad", "autojac.jac_to_grad"]
        assert "2 names of torchjd, also in script_for_torchjd" in str(acceleration)
        assert tree.UPGrad is aggregation.UPGrad
        aggregator = tree.UPGrad()
        assert isinstance(aggregator, tree.GramianWeightedAggregator)
        assert isinstance(aggregator.gramian_weighting, tree.Weighting)
        par = nn.Parameter(torch.zeros(3))
        par.jac = JACOBIAN  # type: ignore[attr-defined]
        weights = tree.jac_to_grad([par], aggregator)
        torch.testing.assert_close(weights @ JACOBIAN, par.grad)
        assert tree.jac_to_grad([par], tree.Own()) == "theirs"
        assert not fastconfig.accelerate("torchjd").names
    assert dict(vars(tree)) == before
    with pytest.raises(ValueError, match="package: got 'libmtl', want one of 'conflictfree', 'torchjd'"):
        fastconfig.accelerate("libmtl")


def test_accelerate_a_torchjd_without_a_base(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["torchjd.aggregation"], "GramianWeightedAggregator")
    with fastconfig.accelerate("torchjd"):
        assert tree.UPGrad is aggregation.UPGrad


def test_an_unedited_script_of_torchjd() -> None:
    pytest.importorskip("torchjd")
    param = torch.tensor([1.0, 2.0], requires_grad=True)
    with fastconfig.accelerate("torchjd"):
        from torchjd.aggregation import GramianWeightedAggregator, UPGrad
        from torchjd.autojac import backward, jac_to_grad

        assert UPGrad is aggregation.UPGrad
        for times in (1, 2):
            y1 = torch.tensor([-1.0, 1.0]) @ param
            y2 = (param**2).sum()
            backward([y1, y2])
            weights = jac_to_grad([param], UPGrad(), optimize_gramian_computation=times == 2)
            torch.testing.assert_close(param.grad, times * torch.tensor([0.5, 2.5]))
            torch.testing.assert_close(weights, torch.tensor([0.5, 0.5]))
        assert isinstance(UPGrad(), GramianWeightedAggregator)
    from torchjd.aggregation import UPGrad as theirs

    assert theirs is not aggregation.UPGrad


def test_against_torchjd() -> None:
    theirs = pytest.importorskip("torchjd.aggregation")
    rows = torch.randn(5, 40).double() + 0.3
    for name in ("Mean", "Sum", "IMTLG", "ConFIG", "UPGrad", "DualProj", "PCD", "AlignedMTL"):
        assert relative_error(make(name)(rows), getattr(theirs, name)()(rows)) <= 2e-3
