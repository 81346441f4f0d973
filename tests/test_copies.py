"""Every public object is copied, pickled, saved and sent to a process, before and after its first use."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import in_one_call
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fastconfig
from fastconfig import backends, pcgrad
from fastconfig.acceleration import Acceleration
from fastconfig.backends.numba_cpu import NumbaBackend
from fastconfig.distributed import CollectiveError
from fastconfig.gradients.shards import Shards
from fastconfig.methods import IMTLG, ConFIG
from fastconfig.utils import OrderedSliceSelector, RandomSliceSelector

ROWS = torch.randn(3, 50, generator=torch.Generator("cpu").manual_seed(1))  # the same in a spawned process
Use = Callable[[Any], Any]


def merged(operator: Any) -> Any:
    return operator.calculate_gradient(ROWS)


def recorded(recorder: Any) -> Any:
    return recorder.record_loss([0, 2], [torch.tensor(0.5), 2.0])


def momentum(operator: Any) -> Any:
    return operator.calculate_gradient([0, 1, 2], list(ROWS), losses=[1.0, 2.0, 3.0])


def length(model: Any) -> Any:
    by_operator = fastconfig.ConFIGOperator(length_model=model).calculate_gradient(ROWS)
    return [model.get_length(target_vector=ROWS[0], gradients=ROWS), by_operator]


def entered(held: Any) -> str:
    with held:
        return type(held).__name__


def _momentum(kind: Any, **keywords: Any) -> Any:
    return kind(3, loss_recorder=fastconfig.MomentumLossRecorder(3), **keywords)


def _generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(7)


def merged_with_losses(operator: Any) -> Any:
    return operator.calculate_gradient(ROWS, range(1, len(ROWS) + 1))


#: how to make one, or several kinds, of every public class, and what to do with it: the same for a copy
RECIPES: dict[Any, tuple[list[Callable[[], Any]], Use]] = {
    fastconfig.BackendUnavailable: ([lambda: fastconfig.BackendUnavailable("no")], str),
    CollectiveError: ([lambda: CollectiveError("gone")], str),
    fastconfig.ConFIGOperator: (
        [
            fastconfig.ConFIGOperator,
            lambda: fastconfig.ConFIGOperator(
                fastconfig.EqualWeight(), fastconfig.TrackSpecific(1), rcond=0.01
            ),
        ],
        merged,
    ),
    fastconfig.PCGradOperator: (
        [
            fastconfig.PCGradOperator,
            lambda: fastconfig.PCGradOperator(shuffle=True, generator=_generator(), reduction="mean"),
        ],
        merged,
    ),
    fastconfig.PPCGradOperator: ([fastconfig.PPCGradOperator], merged),
    fastconfig.IMTLGOperator: ([lambda: fastconfig.IMTLGOperator(rcond=1e-3)], merged),
    fastconfig.UPGradOperator: ([lambda: fastconfig.UPGradOperator([1, 2, 3])], merged),
    fastconfig.DualProjOperator: ([lambda: fastconfig.DualProjOperator([1, 2, 3])], merged),
    fastconfig.MGDAOperator: ([fastconfig.MGDAOperator], merged),
    fastconfig.CAGradOperator: ([lambda: fastconfig.CAGradOperator(2.0)], merged),
    fastconfig.NashMTLOperator: ([fastconfig.NashMTLOperator], merged),
    fastconfig.FairGradOperator: ([lambda: fastconfig.FairGradOperator(2.0)], merged),
    fastconfig.AlignedMTLOperator: ([lambda: fastconfig.AlignedMTLOperator([1, 2, 3], "median")], merged),
    fastconfig.MeanOperator: ([fastconfig.MeanOperator], merged),
    fastconfig.SumOperator: ([fastconfig.SumOperator], merged),
    fastconfig.ConstantOperator: ([lambda: fastconfig.ConstantOperator([1.0, 2.0, -3.0])], merged),
    fastconfig.RandomOperator: ([lambda: fastconfig.RandomOperator(generator=_generator())], merged),
    fastconfig.KrumOperator: ([lambda: fastconfig.KrumOperator(0, 2)], merged),
    fastconfig.GradVacOperator: ([lambda: fastconfig.GradVacOperator(generator=_generator())], merged),
    fastconfig.PCDOperator: ([fastconfig.PCDOperator], merged),
    fastconfig.EveryOperator: ([lambda: fastconfig.EveryOperator(IMTLG(), 2)], merged),
    fastconfig.LogLossesOperator: ([lambda: fastconfig.LogLossesOperator(IMTLG())], merged_with_losses),
    fastconfig.GramOperator: (
        [
            lambda: fastconfig.GramOperator(IMTLG(rcond=1e-3)),
            lambda: fastconfig.GramOperator(ConFIG(torch.tensor([1.0, 2.0, 3.0]).double())),
        ],
        merged,
    ),
    fastconfig.Rule: ([fastconfig.Rule], lambda r: r.cutoffs),
    fastconfig.GradientOperator: ([fastconfig.GradientOperator], vars),
    fastconfig.MomentumOperator: ([lambda: _momentum(fastconfig.MomentumOperator)], lambda o: o.num_vectors),
    fastconfig.PseudoMomentumOperator: (
        [
            lambda: _momentum(fastconfig.PseudoMomentumOperator),
            lambda: _momentum(
                fastconfig.PseudoMomentumOperator,
                gradient_operator=fastconfig.IMTLGOperator(),
                dtype=torch.float64,
            ),
        ],
        momentum,
    ),
    fastconfig.SeparateMomentumOperator: ([lambda: _momentum(fastconfig.SeparateMomentumOperator)], momentum),
    fastconfig.LossRecorder: ([lambda: fastconfig.LossRecorder(3)], lambda r: r.state_dict()),
    fastconfig.LatestLossRecorder: ([lambda: fastconfig.LatestLossRecorder(3)], recorded),
    fastconfig.MomentumLossRecorder: (
        [lambda: fastconfig.MomentumLossRecorder(3, [0.5, 0.9, 0.1])],
        recorded,
    ),
    fastconfig.WeightModel: ([fastconfig.WeightModel], vars),
    fastconfig.EqualWeight: ([fastconfig.EqualWeight], lambda m: m.get_weights(ROWS)),
    fastconfig.LengthModel: ([fastconfig.LengthModel], vars),
    fastconfig.TrackSpecific: ([lambda: fastconfig.TrackSpecific(-1)], length),
    **{
        kind: ([kind], length)
        for kind in (
            fastconfig.ProjectionLength,
            fastconfig.TrackArithmeticAverage,
            fastconfig.TrackGeometricAverage,
            fastconfig.TrackHarmonicAverage,
            fastconfig.TrackMaximum,
            fastconfig.TrackMinimum,
        )
    },
    OrderedSliceSelector: ([OrderedSliceSelector], lambda s: s.select(2, range(5))),
    RandomSliceSelector: ([RandomSliceSelector], lambda s: len(s.select(2, range(5)))),
    pcgrad.PCGrad: (
        [lambda: pcgrad.PCGrad(generator=_generator()), lambda: pcgrad.PCGrad("sum", shuffle=False)],
        lambda p: p.project_conflicting(ROWS),
    ),
    pcgrad.PPCGrad: ([pcgrad.PPCGrad], lambda p: p.project_conflicting(ROWS)),
    fastconfig.use_backend: ([lambda: fastconfig.use_backend("auto")], entered),
    backends.Backend: ([NumbaBackend], lambda b: b.name),
}
NOT_SENT = {Acceleration}  # there is one in a process


def public_classes() -> set[Any]:
    """All that an __all__ names, without TensorFlow's (tensorflow_cases.py)."""
    found = set()
    modules = ["fastconfig", "fastconfig.backends"]
    for source in Path(str(fastconfig.__file__)).parent.glob("*.py"):
        if not source.stem.startswith(("tensorflow", "__")) and "\n__all__ = " in source.read_text():
            modules.append(f"fastconfig.{source.stem}")
    for module in map(importlib.import_module, modules):
        objects = [getattr(module, name) for name in module.__all__]
        found |= {o for o in objects if inspect.isclass(o) and o.__module__.startswith("fastconfig")}
    return found


def test_every_public_class_has_a_recipe() -> None:
    assert public_classes() == {*RECIPES, *NOT_SENT}


def saved(thing: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


class Holder(nn.Module):
    """What a user keeps an object in."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.net, self.held = nn.Linear(3, 2), held


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": saved,
    "AveragedModel": lambda thing: AveragedModel(Holder(thing)).module.held,
    "twice": lambda thing: copy.deepcopy(saved(thing)),
}


def objects(kind: Any, used: bool) -> list[Any]:
    makes, use = RECIPES[kind]
    made = [make() for make in makes]
    if used:
        for held in made:
            use(held)
    return made


def text(answer: Any) -> str:
    """An answer with all digits."""
    return str(answer.tolist()) if isinstance(answer, Tensor) else str(answer)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_gives_the_same_answers(way: str, used: bool) -> None:
    for kind in RECIPES:
        for held in objects(kind, used):
            twin = WAYS[way](held)
            assert type(twin) is type(held)
            assert answers(kind, [twin]) == answers(kind, [held]), kind


def _child(connection: Any) -> None:
    for kind, twins in connection.recv():
        connection.send(answers(kind, twins))
    connection.close()


def answers(kind: Any, twins: list[Any]) -> list[list[str]]:
    return [[text(RECIPES[kind][1](twin)) for _ in range(2)] for twin in twins]


def test_in_a_spawned_process() -> None:
    """Operators go on here meanwhile: nothing is shared, though torch moves what is sent to shared memory."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(theirs,))
    child.start()
    sent = [(kind, objects(kind, used=True)) for kind in RECIPES]
    ours.send(sent)
    theirs.close()
    for kind, held in sent:
        assert ours.recv() == answers(kind, held), kind
    child.join(60)
    assert child.exitcode == 0


@in_one_call
def test_a_copy_is_as_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default models and the rules are found by their identity, and the compiled call serves them."""
    rows = list(ROWS)
    for kind in (fastconfig.ConFIGOperator, fastconfig.PPCGradOperator, fastconfig.PseudoMomentumOperator):
        held = kind(3) if kind is fastconfig.PseudoMomentumOperator else kind()
        operator = getattr(held, "gradient_operator", held)
        wanted = operator.calculate_gradient(rows)
        for way in WAYS.values():
            twin = way(held)
            operator = getattr(twin, "gradient_operator", twin)
            assert operator.fixed_rule is not None
            with monkeypatch.context() as patched:
                patched.setattr("fastconfig.config_update.Gradients", None)  # the long way's
                patched.setattr("fastconfig.methods.operator.Gradients", None)
                assert torch.equal(operator.calculate_gradient(rows), wanted)


@pytest.mark.parametrize("way", WAYS)
def test_a_generator_goes_on_and_stays_shared(way: str) -> None:
    generator = _generator()
    pair = [fastconfig.PCGradOperator(shuffle=True, generator=generator) for _ in range(2)]
    merged(pair[0])
    twins = WAYS[way](pair)
    assert twins[0].generator is twins[1].generator
    assert [text(merged(o)) for o in (*twins, *twins)] == [text(merged(o)) for o in (*pair, *pair)]


def test_a_wrapper_stays_tied_to_the_parameters_that_are_copied_with_it() -> None:
    for kind in (pcgrad.PCGrad, pcgrad.PPCGrad):
        net = nn.Linear(4, 2)
        wrapper = kind(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
        step(net, wrapper)
        for way in ("deepcopy", "pickle", "torch.save"):
            twin, other = WAYS[way]((net, wrapper))
            assert all(
                a is b
                for a, b in zip(twin.parameters(), other.optimizer.param_groups[0]["params"], strict=True)
            )
            before = twin.weight.clone()
            step(twin, other)
            assert not torch.equal(twin.weight, before)


def step(net: nn.Module, wrapper: Any) -> None:
    out = net(torch.randn(8, 4))
    wrapper.zero_grad()
    wrapper.pc_backward([out[:, 0].mean(), out[:, 1].square().mean()])
    wrapper.step()


class Group(torch.distributed.ProcessGroup):
    """Stands in for a process group, which can neither be copied nor pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle a group")


def grouped() -> list[Any]:
    group: Any = Group(0, 1)
    held = [
        fastconfig.ConFIGOperator(process_group=group),
        fastconfig.PCGradOperator(process_group=group),
        fastconfig.IMTLGOperator(process_group=group),
        fastconfig.PseudoMomentumOperator(2, process_group=group),
        fastconfig.SeparateMomentumOperator(
            2, gradient_operator=fastconfig.PPCGradOperator(process_group=group)
        ),
    ]
    held[-2]._momenta.shards = Shards(group)
    return held


def test_copies_keep_the_process_group() -> None:
    for held in grouped():
        for duplicate in (copy.copy, copy.deepcopy):
            twin = duplicate(held)
            assert twin is not held
            assert twin.process_group is held.process_group
            if isinstance(held, fastconfig.MomentumOperator):
                assert getattr(twin._momenta.shards, "group", None) is getattr(
                    held._momenta.shards, "group", None
                )


def test_a_process_group_is_not_pickled() -> None:
    for held in grouped():
        for write in (pickle.dumps, lambda o: torch.save(o, io.BytesIO())):
            with pytest.raises(TypeError, match=r"process_group: got .* want state_dict\(\) to be saved"):
                write(held)
    with pytest.raises(TypeError, match="process_group: got"):
        pickle.dumps(Shards(Group(0, 1)))  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(Shards())) == Shards()


def test_what_is_replaced_in_this_process_is_not_copied() -> None:
    held = Acceleration("conflictfree", ["utils.x"], [(inspect, "x", None)])
    assert copy.deepcopy(held) is held
    with pytest.raises(TypeError, match="Acceleration: cannot be pickled"):
        pickle.dumps(held)


def test_a_subclass_with_state_of_its_own() -> None:
    for kind in (Weighted, Slotted):
        held = kind(process_group=Group(0, 1))
        held.scale = 2.5
        twin = copy.deepcopy(held)
        assert twin.scale == 2.5
        assert twin.process_group is held.process_group


class Weighted(fastconfig.PCGradOperator, nn.Module):  # type: ignore[misc]
    """With torch's own __setstate__."""

    def __init__(self, **given: Any) -> None:
        nn.Module.__init__(self)
        fastconfig.PCGradOperator.__init__(self, **given)


class Slotted(fastconfig.PCGradOperator):
    """With attributes that are not in its dictionary."""

    __slots__ = ("scale",)
