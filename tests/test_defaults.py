"""torch.set_default_device, `with torch.device(...)` and torch.set_default_dtype change no answer."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import conflicting
from torch import Tensor, nn

import fastconfig
from fastconfig import ConFIG_update, ConFIG_update_double, ops, pcgrad, reference, utils
from fastconfig.momentum_operator import PseudoMomentumOperator, SeparateMomentumOperator

ROWS = conflicting(3, 100)
WIDE = torch.randn(2, 1 << 19)  # the memory of such results is kept
VECTORS = list(ROWS)
LISTS = [[row[:40].view(8, 5), None, row[40:]] for row in ROWS]
TRANSPOSED = [
    [row[:40].view(8, 5).mT, row[40:].view(4, 5, 3, 1).to(memory_format=torch.channels_last)] for row in ROWS
]
ORDER = torch.tensor([[2, 1, 0], [0, 2, 1], [1, 0, 2]])
GRAM = ROWS.double() @ ROWS.double().T


class Numbers(fastconfig.WeightModel):
    """Weights as plain numbers."""

    def get_weights(self, gradients: Any = None, losses: Any = None) -> Any:
        return [0.1, 0.7, 1.3]


class Own(fastconfig.GradientOperator):
    def calculate_gradient(self, grads: Any, losses: Any = None) -> Tensor:
        return grads.mean(0)  # type: ignore[no-any-return]


def network() -> tuple[nn.Linear, Tensor]:
    net = nn.Linear(4, 2, device="cpu", dtype=torch.float32)
    generator = torch.Generator("cpu").manual_seed(1)
    with torch.no_grad():
        for par in net.parameters():
            par.copy_(torch.rand(par.shape, generator=generator, device="cpu", dtype=torch.float32))
    return net, torch.rand(8, 4, generator=generator, device="cpu", dtype=torch.float32)


def trained(**keywords: Any) -> list[Any]:
    net, points = network()
    for _ in range(3):
        out = net(points)
        fastconfig.backward([out[:, 0].mean(), out[:, 1].square().mean()], net, **keywords)
    return [par.grad for par in net.parameters()]


def by_heads() -> list[Any]:
    net, points = network()
    features = net(points)
    fastconfig.mtl_backward(
        [features[:, 0].mean(), features.square().mean()], features, net.parameters(), [[], []]
    )
    return [par.grad for par in net.parameters()]


def weighted() -> list[Any]:
    net, points = network()
    features, operator = net(points), fastconfig.EveryOperator(fastconfig.ConFIGOperator(), 2)
    losses = [features[:, 0].mean(), features.square().mean()]
    found = [fastconfig.weights(losses, net), fastconfig.weights(losses, features, features_gram="batch_sum")]
    found += [fastconfig.weights(losses, net, operator), fastconfig.weights(losses, net, operator)]
    fastconfig.backward(losses, net, operator, retain_graph=True)
    fastconfig.backward(losses, net, operator, retain_graph=True)
    fastconfig.mtl_backward(losses, features, gram="features", accumulate=True)
    return [*found, *[par.grad for par in net.parameters()]]


def around_an_optimizer(kind: Any) -> list[Any]:
    net, points = network()
    wrapper = kind(torch.optim.SGD(net.parameters(), lr=0.1))
    out = net(points)
    wrapper.pc_backward([out[:, 0].mean(), out.square().mean(), out[:, 1].sum()])
    packed = kind().pack_grad([net(points)[:, 0].mean()], net.parameters())
    return [*[par.grad for par in net.parameters()], *packed[0], *packed[2]]


def vectors() -> list[Any]:
    net, points = network()
    net(points).sum().backward()
    vector = utils.get_gradient_vector(net)
    utils.apply_gradient_vector(net, 2 * vector)
    return [vector, utils.get_gradient_vector(net, "zero"), utils.get_para_vector(net)]


def stepped(kind: Any, rows: Any = VECTORS, **keywords: Any) -> list[Any]:
    operator = kind(3, **keywords)
    answers = [operator.calculate_gradient([0, 2], rows[:2]), operator.calculate_gradient([0, 1, 2], rows)]
    twin = kind(3, **keywords)
    twin.load_state_dict(operator.state_dict())
    return [*answers, operator.calculate_gradient(1, rows[1]), twin.calculate_gradient(1, rows[1])]


def drawn() -> Any:
    generator = torch.Generator("cpu").manual_seed(3)
    return fastconfig.PCGradOperator(shuffle=True, generator=generator).calculate_gradient(ROWS)


def exact() -> list[Any]:
    momentum = reference.Momentum(3)
    momenta = [momentum.step([0, 1, 2], ROWS), momentum.step([1], ROWS[1:2])]
    return [reference.config(ROWS), reference.pcgrad(ROWS, order=ORDER), reference.imtlg(ROWS), *momenta]


CALLS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: ConFIG_update(ROWS),
    "batch": lambda: ConFIG_update(torch.stack([ROWS, 2 * ROWS])),
    "strided": lambda: ConFIG_update(ROWS.mT.contiguous().mT),
    "vectors": lambda: ConFIG_update(VECTORS),
    "steps": lambda: ConFIG_update([row[::2] for row in VECTORS]),
    "lists": lambda: ConFIG_update(LISTS),
    "memory orders": lambda: ConFIG_update(TRANSPOSED),
    "wide": lambda: [ConFIG_update(WIDE), ConFIG_update([[row] for row in WIDE])],
    "half": lambda: [
        ConFIG_update(ROWS.to(dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float64)
    ],
    "double": lambda: ConFIG_update_double(*VECTORS[:2]),
    "numbers": lambda: ConFIG_update(ROWS, Numbers()),
    "lengths": lambda: [
        ConFIG_update(ROWS, length_model=model)
        for model in (fastconfig.TrackSpecific(1), fastconfig.TrackMinimum())
    ],
    "get_length": lambda: fastconfig.TrackHarmonicAverage().get_length(ROWS[0], gradients=ROWS),
    "get_weights": lambda: fastconfig.EqualWeight().get_weights(ROWS),
    "pcgrad": lambda: fastconfig.PCGradOperator().calculate_gradient(VECTORS),
    "order": lambda: fastconfig.PCGradOperator().calculate_gradient(VECTORS, order=ORDER),
    "drawn": drawn,
    "ppcgrad": lambda: fastconfig.PPCGradOperator().calculate_gradient(LISTS),
    "imtlg": lambda: fastconfig.IMTLGOperator().calculate_gradient(ROWS),
    "gram": lambda: [ops.gram(ROWS), ops.gram(LISTS)],
    "coefficients": lambda: [
        ops.coefficients(GRAM, method) for method in ("config", "pcgrad", "ppcgrad", "imtlg")
    ],
    "combine": lambda: ops.combine(LISTS, ORDER[0]),
    "conflict_mask": lambda: ops.conflict_mask(GRAM),
    "momentum": lambda: stepped(PseudoMomentumOperator),
    "momentum of lists": lambda: stepped(PseudoMomentumOperator, TRANSPOSED, dtype=torch.float64),
    "momentum by an own operator": lambda: stepped(PseudoMomentumOperator, gradient_operator=Own()),
    "separate momentum": lambda: stepped(SeparateMomentumOperator),
    "recorder": lambda: fastconfig.MomentumLossRecorder(2).record_all_losses([ROWS[0, 0], 0.25]),
    "PCGrad": lambda: around_an_optimizer(lambda o=None: pcgrad.PCGrad(o, shuffle=False)),
    "PPCGrad": lambda: around_an_optimizer(pcgrad.PPCGrad),
    "masks": lambda: pcgrad.PPCGrad().project_conflicting(ROWS, [row > 0 for row in ROWS]),
    "backward": trained,
    "backward, zero": lambda: trained(none_grad="zero", accumulate=True),
    "backward by momentum": lambda: trained(operator=PseudoMomentumOperator(2)),
    "mtl_backward": by_heads,
    "weights": weighted,
    "network vectors": vectors,
    "small functions": lambda: [
        utils.get_cos_similarity(*VECTORS[:2]),
        utils.unit_vector(ROWS[0]),
        utils.estimate_conflict(ROWS),
    ],
    "transfer": lambda: utils.transfer_coef_double(ROWS[0, :2], *VECTORS[:2], *VECTORS[1:]),
    "reference": exact,
}


@contextmanager
def default(dtype: torch.dtype | None = None, device: str | None = None) -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype or before)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "set_default_device": lambda: default(device="meta"),
    "with device": lambda: torch.device("meta"),
    "float64": lambda: default(torch.float64),
    "bfloat16": lambda: default(torch.bfloat16),
}


def text(answer: Any) -> str:
    if isinstance(answer, Tensor):
        assert answer.device.type == "cpu"
        flat = answer.double().reshape(-1)
        values = flat.tolist() if flat.numel() < 1000 else flat.sum().item()
        return f"{answer.dtype} {tuple(answer.shape)} {values}"
    return str([text(each) for each in answer]) if isinstance(answer, (list, tuple)) else str(answer)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_answers(backend: str, setting: str) -> None:
    for name, call in CALLS.items():
        wanted = text(call())
        with SETTINGS[setting]():
            answer = call()
        assert text(answer) == wanted, name


FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices",
    "triu_indices", "zeros",
}  # fmt: skip
FLOATING = {"empty", "empty_strided", "eye", "linspace", "logspace", "ones", "rand", "randn", "zeros"}


def test_every_allocation_names_its_device() -> None:
    """And its dtype, where torch's default would be taken; the bench and the demo draw in that."""
    package = Path(fastconfig.__file__).parent
    missing = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.")):
                continue
            name, given = ast.unparse(node.func)[6:], {keyword.arg for keyword in node.keywords}
            own = path.parent.name in ("bench", "demo")
            lacks = name in FACTORIES and "device" not in given
            lacks |= name in FLOATING and "dtype" not in given and not own
            lacks |= name == "Generator" and not node.args and not given
            if lacks:
                missing.append(f"{path.relative_to(package)}:{node.lineno}: {ast.unparse(node)}")
    assert not missing
