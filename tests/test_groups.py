"""Groups of parameters: G, coefficients and a state for each, to the bit as calls group by group."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from grouping import (
    BY_MODULE,
    BY_PART,
    MAKERS,
    SHAPES,
    WAYS,
    M,
    assert_bits,
    assert_written,
    by_backward,
    by_lists,
    by_vectors,
    drawn,
    exact,
    grouped,
    losses_of,
    network,
    source,
)
from inputs import conflicting, relative_error, rows_of
from pairs import some
from torch import Tensor, nn

import fastconfig
from fastconfig import (
    ConFIGOperator,
    EveryOperator,
    GradientOperator,
    GradVacOperator,
    IMTLGOperator,
    LatestLossRecorder,
    LogLossesOperator,
    MomentumOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    aggregation,
    backward,
    mtl_backward,
    reference,
    use_backend,
    weights,
)
from fastconfig.methods import MGDA


@pytest.mark.parametrize("dtype", some([torch.float32, torch.float64, torch.bfloat16], quick=[torch.float32]))
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.usefixtures("backend")
def test_as_calls_group_by_group(name: str, dtype: torch.dtype) -> None:
    """Also the random numbers and the states; a gradient is missing, strided or transposed here and there."""
    torch.manual_seed(5)  # aggregation.GradVac draws from torch's own source
    mine, theirs = source(), source()
    operator, ones = grouped(MAKERS[name](mine)), [MAKERS[name](theirs) for _ in SHAPES]
    for step in range(3):
        rows, losses = drawn(dtype=dtype), [0.5, 2.0, 1.5]
        rows[1][0] = rows[2][3] = None
        for row in rows:
            row[5] = None
        if step:
            rows[0][4] = torch.randn(12).to(dtype)[::2]
        if step == 2:
            rows[2][0] = rows[2][0].T.contiguous().T
        state = torch.get_rng_state()
        found = operator.calculate_gradient(rows, losses)
        torch.set_rng_state(state)
        wanted: list[Tensor | None] = [None] * len(SHAPES)
        for p, one in enumerate(ones[:5]):
            wanted[p] = one.calculate_gradient([[row[p]] for row in rows], losses)[0]
        assert_bits(found, wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_and_small_groups(threads: int) -> None:
    shapes = [(400_000,), *[(n,) for n in range(1, 12_000, 800)], (90_000,)]
    rows, before = drawn(shapes), torch.get_num_threads()
    one, many = ConFIGOperator(), grouped(ConFIGOperator())
    wanted = [one.calculate_gradient([[row[p]] for row in rows])[0] for p in range(len(shapes))]
    torch.set_num_threads(threads)
    try:
        assert_bits(many.calculate_gradient(rows), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("take", [by_backward, by_lists, by_vectors])
def test_ways_to_group(take: Callable[..., None], way: str) -> None:
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    make, names = WAYS[way]
    operator = grouped(ConFIGOperator(), make(net))
    for _ in range(2):  # the second into the gradients that are there
        take(net, x, operator)
        assert_written(net, exact(net, x, names))


def test_wrapped_networks_and_accumulation() -> None:
    """Names are the network's own, whatever is around it."""
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    seen: list[str] = []
    operator = grouped(ConFIGOperator(), lambda name: seen.append(name) or "all")
    compiled: Any = torch.compile(net, backend="eager")
    wanted = exact(net, x, {"all": [name for name, _ in net.named_parameters()]})
    backward(losses_of(net, x), compiled, operator)
    backward(losses_of(net, x), compiled, operator, accumulate=True)
    assert seen == [name for name, par in net.named_parameters() if par.requires_grad]
    assert_written(net, wanted, 2)


def test_tied_parameters() -> None:
    """One is in the group of all its names."""
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    net.tied = nn.Linear(4, 3).double()
    net.tied.weight = net.decoder.weight
    operator = grouped(ConFIGOperator())
    operator.groups = {"a": ["encoder", "scale", "unused"], "b": ["tied", "decoder.bias"]}
    backward(losses_of(net, x), net, operator)
    names = {"a": BY_PART["encoder"] + ["scale"], "b": BY_PART["decoder"]}
    assert_written(net, exact(net, x, names))
    operator.groups = operator.groups | {"c": ["decoder.weight"]}
    with pytest.raises(ValueError, match=r"groups: got 'decoder.weight' in 'b' and 'c', want each parameter"):
        backward(losses_of(net, x), net, operator)


def test_kinds_of_gradients() -> None:
    """Of several dtypes, complex, sparse, empty: as each group alone."""
    rows = [
        [
            torch.randn(3, 4),
            torch.randn(5, 2, dtype=torch.bfloat16),
            torch.randn(6, 1, dtype=torch.float64),
            torch.randn(2, 3, dtype=torch.complex64),
            torch.empty(0, 3),
            torch.randn(4, 4).to_sparse(),
        ]
        for _ in range(M)
    ]
    for chosen in ((0, 1, 2), (0, 3, 4, 5)):
        some_rows = [[row[p] for p in chosen] for row in rows]
        found = grouped(PCGradOperator()).calculate_gradient(some_rows)
        for k, piece in enumerate(found):
            wanted = PCGradOperator().calculate_gradient([[row[k]] for row in some_rows])[0]
            assert piece.dtype is wanted.dtype
            assert torch.equal(piece, wanted)


def test_within_torch_compile() -> None:
    operator, rows = grouped(ConFIGOperator()), drawn()
    compiled: Any = torch.compile(lambda rows: operator.calculate_gradient(rows), backend="eager")
    assert_bits(compiled(rows), operator.calculate_gradient(rows))


def test_zero_and_broken_groups() -> None:
    """A group whose rows are all zero gives zeros; NaN stays within its group."""
    rows = drawn(dtype=torch.float64)
    for row in rows:
        row[1].zero_()
    rows[2][3].view(-1)[4] = torch.inf
    with use_backend("pytorch"):
        wanted = grouped(ConFIGOperator()).calculate_gradient(rows)
    found = grouped(ConFIGOperator()).calculate_gradient(rows)
    for update in (found, wanted):
        assert not update[1].any()
        assert update[3].isnan().all()
        assert all(update[p].isfinite().all() for p in (0, 1, 2, 4, 5))


def test_a_trunk_by_groups() -> None:
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    heads = [nn.Linear(4, 1).double() for _ in range(M)]

    def values() -> tuple[Tensor, list[Tensor]]:
        features = torch.tanh(net.encoder(x))
        return features, [(head(features) - i).square().mean() for i, head in enumerate(heads)]

    features, losses = values()
    pieces = []
    for layer in (net.encoder[0], net.encoder[2]):
        pieces.append(reference.config(rows_of(losses, list(layer.parameters()))))
    mtl_backward(losses, features, net.encoder, heads, grouped(ConFIGOperator(), "module"))
    grads = torch.cat([par.grad.reshape(-1) for par in net.encoder.parameters()])  # type: ignore[union-attr]
    assert relative_error(grads, torch.cat(pieces)) <= 1e-9
    features, losses = values()
    with pytest.raises(ValueError, match=r"groups: got no name of parameter 0 .* want the network itself"):
        mtl_backward(losses, features, operator=grouped(ConFIGOperator(), "module"))
    with pytest.raises(
        ValueError, match="operator: got one with groups, want groups = None: gram='features'"
    ):
        mtl_backward(losses, features, operator=grouped(ConFIGOperator()), gram="features")


@pytest.mark.parametrize("kind", [PseudoMomentumOperator, SeparateMomentumOperator])
@pytest.mark.parametrize("inner", [False, True], ids=["its own groups", "its operator's groups"])
@pytest.mark.usefixtures("backend")
def test_momentum_group_by_group(kind: Any, inner: bool) -> None:
    """Losses one by one, and one that never reaches the second parameter."""
    shapes = SHAPES[:4]
    operator = kind(M, gradient_operator=grouped(IMTLGOperator(), "parameter" if inner else None))
    if not inner:
        operator.groups = "parameter"
    ones = [kind(M, gradient_operator=IMTLGOperator()) for _ in shapes]
    for step in range(7):
        index = step % M
        row: list[Any] = drawn(shapes)[0]
        found = operator.calculate_gradient(index, row)
        for p, one in enumerate(ones):
            wanted = one.calculate_gradient(index, [row[p]])  # of one vector, a vector
            assert_bits(found[p : p + 1], [wanted] if isinstance(wanted, Tensor) else wanted)
        if step == 4:
            twin = kind(M, gradient_operator=IMTLGOperator())
            twin.groups = "parameter"
            twin.load_state_dict(copy.deepcopy(operator.state_dict()))
            operator = twin


def test_momentum_that_a_device_counts() -> None:
    """The device counts a step once, not once a group."""
    operators = [grouped(PseudoMomentumOperator(M)) for _ in range(2)]
    for step in range(5):
        rows = drawn(SHAPES[:3])
        found, wanted = (operator.calculate_gradient(range(M), rows) for operator in operators)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        clock = operators[0]._momenta.clock
        if not step:
            clock.set_steps(torch.tensor([*clock.counts, clock.updates, clock.updates]))
    assert operators[0].state_dict()["counts"] == operators[1].state_dict()["counts"] == [5] * M


def test_momentum_in_training() -> None:
    """By modules, with a parameter that no loss reaches and one that some do not."""
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    operator = grouped(PseudoMomentumOperator(M, beta_1=0.0, beta_2=0.0, dtype=torch.float64), "module")
    wanted = exact(net, x, BY_MODULE)
    backward(losses_of(net, x), net, operator)
    # without averages an update is u / |u| but for 1e-8
    assert_written(net, {name: u / (u.abs() + 1e-8) for name, u in wanted.items()})
    recorder = LatestLossRecorder(M)
    log = grouped(
        PseudoMomentumOperator(M, gradient_operator=LogLossesOperator(MGDA()), loss_recorder=recorder)
    )
    rows = drawn(SHAPES[:2])
    found = log.calculate_gradient(range(M), rows, [1.0, 2.0, 3.0])
    assert all(piece.isfinite().all() for piece in found)


def test_states_go_by_names() -> None:
    net = network()
    operator = grouped(GradVacOperator(shuffle=False), "module")
    backward(losses_of(net, torch.randn(6, 3, dtype=torch.float64)), net, operator)
    names = [f"groups.{name}.targets" for name in ("encoder.0", "encoder.2", "decoder", "")]
    assert sorted(operator.state_dict()) == sorted(names)
    others = [pickle.loads(pickle.dumps(operator)), copy.deepcopy(operator), copy.copy(operator)]
    others.append(grouped(GradVacOperator(shuffle=False), "module"))
    others[-1].load_state_dict(operator.state_dict())
    x = torch.randn(6, 3, dtype=torch.float64)
    updates = []
    for one in (operator, *others):
        assert one.groups == "module"
        twin = copy.deepcopy(net)
        backward(losses_of(twin, x), twin, one)
        updates.append([par.grad for par in twin.parameters()])
    for update in updates[1:]:
        assert_bits(update, updates[0])


def test_each_parameter_is_in_one_group() -> None:
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    cases: list[tuple[Any, str]] = [
        (
            {"a": ["encoder"]},
            r"groups: got none for parameter 'scale' of shape",
        ),
        (
            {"a": ["encoder", "scale", "unused"], "b": ["decoder", "encoder.0"]},
            "groups: got 'encoder.0.weight' in 'a' and 'b', want each parameter in one",
        ),
        ({"a": ["encoded"]}, r"groups\['a'\]: got 'encoded', want a parameter's or module's name"),
        (lambda name: None, "groups: got none for parameter 'scale'"),
        ({"a": [torch.zeros(2)]}, "groups: got none for parameter 'scale'"),
    ]
    for groups, message in cases:
        operator = grouped(ConFIGOperator(), groups)
        for take in (by_backward, by_lists):
            with pytest.raises(ValueError, match=message):
                take(net, x, operator)
    assert all(par.grad is None for par in net.parameters())
    for groups in ("module", lambda name: name, {"a": ["encoder"]}, {"a": list(net.parameters())[:-1]}):
        operator, parameters = grouped(ConFIGOperator(), groups), list(net.parameters())[:-1]
        if isinstance(groups, dict) and isinstance(groups["a"][0], Tensor):
            backward(losses_of(net, x), parameters, operator)
        else:
            with pytest.raises(ValueError, match=r"groups.*: got .*want the network itself"):
                backward(losses_of(net, x), parameters, operator)
        with pytest.raises(
            ValueError, match=r"groups: got .* for gradients without a network, want 'parameter'"
        ):
            operator.calculate_gradient(drawn())


def test_what_is_refused() -> None:
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    operator = ConFIGOperator()
    for wrong, error in (("layer", ValueError), ({}, ValueError), (3, TypeError), (nn.Linear, TypeError)):
        with pytest.raises(error, match=r"groups: got .*, want 'parameter', 'module', a dict"):
            operator.groups = wrong
    with pytest.raises(TypeError, match=r"groups\['a'\]: got 3, want a parameter, a name or a module"):
        operator.groups = {"a": [3]}
    assert operator.groups is None
    operator.groups = "parameter"
    with pytest.raises(ValueError, match="operator: got one with groups, want groups = None: a weighted sum"):
        weights(losses_of(net, x), net, operator)
    with pytest.raises(ValueError, match="grads: got vectors for an operator with groups"):
        operator.calculate_gradient(conflicting(M, 20))
    with pytest.raises(ValueError, match="grads: got vectors of 20 elements for an operator with groups"):
        operator.update_gradient(net, list(conflicting(M, 20)))
    every = EveryOperator(operator, 2)
    with pytest.raises(ValueError, match=r"operator: got one with groups, .* those of the EveryOperator"):
        every.calculate_gradient(drawn())

    class Own(GradientOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            return grads.sum(0)

    for call in (
        lambda own: backward(losses_of(net, x), net, own),
        lambda own: own.update_gradient(net, drawn()),
    ):
        with pytest.raises(
            TypeError, match="operator: got groups on a Own with a calculate_gradient of its own"
        ):
            call(grouped(Own()))
    aggregator = grouped(aggregation.UPGrad())
    aggregator.weighting.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="operator: got one with groups, want groups = None: forward hooks"):
        aggregator(drawn())

    class Mine(MomentumOperator):
        pass

    with pytest.raises(TypeError, match="groups: got some for a Mine, want them on its gradient_operator"):
        Mine(M).groups = "parameter"
    momentum = grouped(PseudoMomentumOperator(M))
    with pytest.raises(ValueError, match="grads: got vectors for an operator with groups"):
        momentum.calculate_gradient(0, torch.randn(5))
    assert momentum.state_dict()["counts"] == [0] * M
    assert all(par.grad is None for par in net.parameters())


def test_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "groups.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    net, x = network(), torch.randn(6, 3, dtype=torch.float64)
    exec(snippet, {"fastconfig": fastconfig, "network": net, "losses": losses_of(net, x)})
    assert_written(net, exact(net, x, BY_MODULE))
