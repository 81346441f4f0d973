"""Every way in, with whatever may come: the formula's answer or an error with a name, and never a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st
from inputs import BACKENDS, LENGTH_MODELS
from odd import (
    DTYPES,
    LAYOUTS,
    NAMED,
    SHAPES,
    Given,
    broken,
    dtypes,
    gradients,
    judge,
    junk,
    layouts,
    new,
    outcome,
    real,
)
from torch import Tensor, nn

from fastconfig import (
    ConFIG_update,
    ConFIG_update_double,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PPCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    TrackSpecific,
    backward,
    mtl_backward,
    ops,
    use_backend,
    utils,
)
from fastconfig.pcgrad import PCGrad, PPCGrad

# torch tells of what it supports in part only
pytestmark = pytest.mark.filterwarnings("ignore")
SEED = int(os.environ.get("FASTCONFIG_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
OPERATORS: dict[str, Any] = {
    "config": ConFIGOperator(),
    "pcgrad": PCGradOperator(),
    "ppcgrad": PPCGradOperator(),
    "imtlg": IMTLGOperator(),
}


def fuzz(examples: int, **given: Any) -> Callable[[Any], Any]:
    """Run a test on examples that FASTCONFIG_TEST_SEED repeats; FASTCONFIG_TEST_EXAMPLES has more of them."""
    settings = hypothesis.settings(
        max_examples=examples * int(os.environ.get("FASTCONFIG_TEST_EXAMPLES", "1")),
        deadline=None,
        database=None,
        print_blob=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: hypothesis.seed(SEED)(settings(hypothesis.given(**given)(test)))


@pytest.fixture(autouse=True)
def _says_its_seed() -> None:
    print(f"FASTCONFIG_TEST_SEED={SEED} for hypothesis")


def copied(grads: Any) -> Any:
    if isinstance(grads, Tensor):
        return real(grads)
    return None if grads is None else [copied(each) for each in grads]


def same(before: Any, after: Any) -> bool:
    if isinstance(before, list):
        return all(map(same, before, after))
    return before is after if before is None else torch.equal(before, after)


@fuzz(
    150,
    given=gradients(),
    method=st.sampled_from([*OPERATORS]),
    backend=st.sampled_from([*BACKENDS]),
)
def test_gradients_that_are_served(given: Given, method: str, backend: str) -> None:
    before = copied(given.grads)
    with use_backend(backend):
        judge(given, method, OPERATORS[method].calculate_gradient(given.grads))
    assert same(before, copied(given.grads))


def flat(grads: Any) -> Any:
    """What has no per-parameter tensors."""
    per_parameter = isinstance(grads, list) and any(isinstance(row, list | tuple) for row in grads)
    return torch.eye(3) if per_parameter else grads


MERGES: dict[str, Callable[[Any], Any]] = {
    **{name: operator.calculate_gradient for name, operator in OPERATORS.items()},
    "function": ConFIG_update,
    "double": ConFIG_update_double,
    "specific": lambda grads: ConFIG_update(grads, length_model=TrackSpecific(1)),
    "gram": ops.gram,
    "momentum": lambda grads: PseudoMomentumOperator(3).calculate_gradient([0, 1, 2], grads),
    "one momentum": lambda grads: PseudoMomentumOperator(3).calculate_gradient(1, grads),
    "separate momentum": lambda grads: SeparateMomentumOperator(2).calculate_gradient([1, 0], grads),
    "projected": lambda grads: PCGrad().project_conflicting(flat(grads)),
    "projected in parallel": lambda grads: PPCGrad().project_conflicting(flat(grads)),
}


@fuzz(
    150,
    grads=broken(),
    name=st.sampled_from([*MERGES]),
    backend=st.sampled_from(["auto", "numba", "pytorch"]),
)
def test_anything_for_gradients(grads: Any, name: str, backend: str) -> None:
    with use_backend(backend):
        outcome(lambda: MERGES[name](grads))


@fuzz(60, given=gradients(), data=st.data())
def test_anything_beside_gradients(given: Given, data: st.DataObject) -> None:
    grads, other = given.grads, data.draw(junk)
    masks = data.draw(st.one_of(junk, st.lists(junk, max_size=4)))
    rows = grads if isinstance(grads, Tensor) or isinstance(grads[0], Tensor) else torch.ones(3, 3)
    calls: dict[str, Callable[[], Any]] = {
        "c": lambda: ops.combine(grads, other),
        "losses": lambda: ConFIG_update(grads, losses=other),
        "order": lambda: PCGradOperator().calculate_gradient(grads, order=other),
        "masks": lambda: PCGrad().project_conflicting(rows, masks),
        "indexes": lambda: PseudoMomentumOperator(3).calculate_gradient(other, grads),
        "second": lambda: ConFIG_update_double(grads, other),
        "like": lambda: PseudoMomentumOperator(3).allocate(other),
        "rcond": lambda: ConFIG_update(grads, rcond=other),
    }
    outcome(calls[data.draw(st.sampled_from([*calls]))], NAMED)


@fuzz(60, data=st.data())
def test_anything_for_a_gram_matrix(data: st.DataObject) -> None:
    m = data.draw(st.integers(0, 20))
    shape = data.draw(st.sampled_from([(m, m), (3, m, m), (0, m, m), (m, m + 1), (m,)]))
    dtype = data.draw(st.sampled_from([torch.float64] * 4 + [torch.float32, torch.int64]))
    gram = torch.randn(shape).to(dtype)
    given: dict[str, Any] = {
        "method": data.draw(st.sampled_from(["config", "pcgrad", "ppcgrad", "imtlg", "none"])),
        "length": data.draw(st.sampled_from([*LENGTH_MODELS, "none", "longest"])),
        "track_id": data.draw(st.integers(-25, 25)),
        "reduction": data.draw(st.sampled_from(["sum", "mean", "max"])),
        "weights": data.draw(st.one_of(st.none(), st.just(torch.ones(m)), junk)),
        "order": data.draw(st.one_of(st.none(), st.just(torch.arange(m).expand(m, m)), junk)),
        "dtype": data.draw(dtypes),
    }
    outcome(lambda: ops.conflict_mask(gram))
    c = outcome(lambda: ops.coefficients(gram, **given), NAMED)
    if isinstance(c, Tensor):
        assert c.shape == gram.shape[:-1]
        assert c.dtype == torch.float64


@fuzz(60, data=st.data())
def test_momentum_steps(data: st.DataObject) -> None:
    """Also after a step that was refused."""
    operator = data.draw(st.sampled_from([PseudoMomentumOperator, SeparateMomentumOperator]))(3)
    n, dtype = data.draw(st.sampled_from([0, 1, 33])), data.draw(st.sampled_from(DTYPES))
    for _ in range(data.draw(st.integers(1, 5))):
        indexes = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
        rows = [new((n,), dtype, data.draw(layouts)) for _ in indexes]
        before = str(operator.state_dict())
        wrong = data.draw(st.one_of(st.just(indexes), junk)), data.draw(broken())
        if isinstance(outcome(lambda wrong=wrong: operator.calculate_gradient(*wrong)), Exception):
            assert before == str(operator.state_dict())
        update = outcome(lambda rows=rows, indexes=indexes: operator.calculate_gradient(indexes, rows))
        if isinstance(update, Tensor):
            assert update.shape == (n,)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """With parameters, and gradients of them, of any kind."""
    network = nn.Module()
    for p in range(draw(st.integers(0, 4))):
        # no complex ones: their part of a vector must begin at an even place
        shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
        tensor = new(shape, dtype, draw(st.sampled_from(sorted(LAYOUTS.keys() - {"expanded"})))).detach()
        parameter = nn.Parameter(tensor.as_subclass(Tensor), requires_grad=draw(st.booleans()))
        network.register_parameter(f"p{p}", parameter)
        if draw(st.booleans()):
            gradient = new(shape, dtype, draw(layouts)).detach().as_subclass(Tensor)
            parameter.grad = gradient.to_sparse() if draw(st.integers(0, 9)) == 0 else gradient
    return network


@fuzz(100, network=networks(), data=st.data())
def test_networks_and_vectors(network: nn.Module, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["raise", "zero", "skip", "all"]))
    zero = data.draw(st.sampled_from(["skip", "pad_zero", "pad_value", "pad"]))
    n = sum(p.numel() for p in network.parameters())
    size = st.sampled_from([n, n, n, n + 1, max(0, n - 1), 0])
    vectors = st.builds(lambda n, dtype, how: (new((n,), dtype, how), NAMED), size, dtypes, layouts)
    vector, errors = data.draw(st.one_of(vectors, junk.map(lambda other: (other, NAMED))))
    other = data.draw(junk)
    found = outcome(lambda: utils.get_gradient_vector(network, mode), (*NAMED, RuntimeError))  # none is there
    outcome(lambda: utils.get_para_vector(network))
    outcome(lambda: utils.apply_gradient_vector(network, vector, mode, zero), errors)
    outcome(lambda: utils.apply_gradient_vector_para_based(network, vector), errors)
    outcome(lambda: utils.apply_para_vector(network, vector), errors)
    if isinstance(found, Tensor):
        outcome(lambda: utils.apply_gradient_vector(network, found, mode))
    outcome(lambda: utils.get_para_vector(other))


@fuzz(100, network=networks(), data=st.data())
def test_losses_and_parameters(network: nn.Module, data: st.DataObject) -> None:
    parameters = [*network.parameters()]

    def loss() -> Any:
        used = [p for p in parameters if data.draw(st.booleans())]
        return sum([p.double().square().sum() for p in used], torch.zeros(()).double())

    losses: Any = [loss() for _ in range(data.draw(st.integers(0, 3)))]
    learned = [p for p in parameters if p.requires_grad]
    given, other, place = learned, data.draw(junk), data.draw(st.integers(0, 5))
    if place == 0:
        losses = other
    elif place == 1:
        losses.append(other)
    elif place == 2:
        given = other
    operator = data.draw(st.sampled_from([*OPERATORS.values(), PseudoMomentumOperator(2), None]))
    calls: dict[str, Callable[[], Any]] = {
        "backward": lambda: backward(losses, given, operator),
        "accumulated": lambda: backward(losses, network, operator, accumulate=True),
        "trunk": lambda: mtl_backward(losses, given, given),
        "pcgrad": lambda: PCGrad().pc_backward(losses, given),
        "ppcgrad": lambda: PPCGrad().pack_grad(losses, given),
    }
    outcome(calls[data.draw(st.sampled_from([*calls]))], NAMED)


@fuzz(10, problems=st.lists(gradients(), min_size=2, max_size=4))
def test_threads(problems: list[Given]) -> None:
    def merged(given: Given) -> Tensor:
        return given.flat(ConFIG_update(given.grads))

    wanted = [merged(given) for given in problems]
    with ThreadPoolExecutor(4) as pool:
        for result, exact in zip(pool.map(merged, 3 * problems), 3 * wanted, strict=True):
            assert torch.equal(result, exact)
