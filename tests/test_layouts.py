"""``.grad`` as torch's own backward pass leaves it: every layout, every way, optimizers that read memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastconfig
from fastconfig import PCGradOperator, PseudoMomentumOperator, SeparateMomentumOperator
from fastconfig.pcgrad import PCGrad
from fastconfig.utils import apply_gradient_vector, apply_gradient_vector_para_based, get_gradient_vector

pytestmark = pytest.mark.usefixtures("backend")


class Heads(nn.Module):
    """A projection to heads, as many attention layers write it: autograd.grad gives it transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.to_heads = nn.Parameter(torch.randn(2, 4, 3))
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.einsum("bnd,hde->bhne", x.view(5, 2, 4), self.to_heads)
        return self.out(torch.tanh(heads.mean(2).flatten(1)))


class Images(nn.Module):
    """A convolution of images as NumPy has them, permuted without a copy; or in channels-last memory."""

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.out = nn.Linear(3, 2)
        self.order = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        images = x.view(5, 2, 2, 2).permute(0, 3, 1, 2)
        if self.order is torch.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.out(torch.tanh(self.conv(images)).mean((2, 3)))


class Transposed(nn.Module):
    """A weight that is stored by columns, and one with a dimension of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6).T)
        self.scale = nn.Parameter(torch.randn(1, 6).T)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x @ self.weight.T * self.scale.T))


class Experts(nn.Module):
    """Each example takes its own slice of a stack of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.experts.index_select(0, torch.tensor([0, 2, 2, 1, 0]))
        return torch.einsum("bd,bde->be", x, chosen)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "einsum heads": Heads,
    "permuted images": Images,
    "channels last": lambda: Images(channels_last=True),
    "transposed": Transposed,
    "experts": Experts,
}
OPTIMIZERS: dict[str, Any] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Adagrad": torch.optim.Adagrad,
}


def losses_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients in one direction: no method changes their sum."""
    loss = (net(x) - torch.tensor([0.0, 1.0])).square().mean()
    return [loss, 0.5 * loss]


def layout(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have any."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def by_backward(net: nn.Module, x: Tensor) -> None:
    fastconfig.backward(losses_of(net, x), net, PCGradOperator())


def by_projection(net: nn.Module, x: Tensor) -> None:
    PCGrad(torch.optim.SGD(net.parameters(), lr=0.1), "sum").pc_backward(losses_of(net, x))


def by_trunk(net: nn.Module, x: Tensor) -> None:
    features = net(x)
    loss = (features - torch.tensor([0.0, 1.0])).square().mean()
    fastconfig.mtl_backward([loss, 0.5 * loss], features, operator=PCGradOperator())


def by_vectors(net: nn.Module, x: Tensor, apply: Callable[..., None] = apply_gradient_vector) -> None:
    rows = []
    for loss in losses_of(net, x):
        net.zero_grad()
        loss.backward(retain_graph=True)
        rows.append(get_gradient_vector(net))
    apply(net, PCGradOperator().calculate_gradient(rows))


def by_vectors_anew(net: nn.Module, x: Tensor) -> None:
    def apply(network: nn.Module, vector: Tensor) -> None:
        network.zero_grad()
        apply_gradient_vector_para_based(network, vector)

    by_vectors(net, x, apply)


def by_update_gradient(net: nn.Module, x: Tensor) -> None:
    parameters = list(net.parameters())
    rows = [torch.autograd.grad(v, parameters, retain_graph=True) for v in losses_of(net, x)]
    PCGradOperator().update_gradient(net, rows)


WAYS = {
    "backward": by_backward,
    "pc_backward": by_projection,
    "mtl_backward": by_trunk,
    "vectors": by_vectors,
    "vectors, new gradients": by_vectors_anew,
    "update_gradient": by_update_gradient,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_optimizers_that_read_memory_take_the_step_of_the_others(model: str, way: str) -> None:
    start, x = MODELS[model](), torch.randn(5, 8)
    for kind in OPTIMIZERS.values():
        net, twin = copy.deepcopy(start), copy.deepcopy(start)
        ours, plain = kind(net.parameters(), lr=0.1, fused=True), kind(twin.parameters(), lr=0.1, fused=False)
        for _ in range(2):  # gradients are new, then there
            WAYS[way](net, x)
            plain.zero_grad(set_to_none=False)
            sum(losses_of(twin, x)).backward()  # type: ignore[union-attr]
            for par, like in zip(net.parameters(), twin.parameters(), strict=True):
                assert par.grad is not None
                assert like.grad is not None
                assert layout(par.grad) == layout(like.grad)
                torch.testing.assert_close(par.grad, like.grad, rtol=1e-4, atol=1e-6)
                with torch.no_grad():
                    par.grad.copy_(like.grad)  # rounding is the only other difference
            ours.step()
            plain.step()
        for par, like in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(par, like)


@pytest.mark.parametrize("make", [PseudoMomentumOperator, SeparateMomentumOperator])
@pytest.mark.parametrize("model", MODELS)
def test_momentum_operators_keep_the_layout(model: str, make: Any) -> None:
    net, x = MODELS[model](), torch.randn(5, 8)
    twin = copy.deepcopy(net)
    sum(losses_of(twin, x)).backward()  # type: ignore[union-attr]
    operator = make(2)
    for _ in range(2):
        fastconfig.backward(losses_of(net, x), net, operator)
    for par, like in zip(net.parameters(), twin.parameters(), strict=True):
        assert par.grad is not None
        assert like.grad is not None
        assert layout(par.grad) == layout(like.grad)


@pytest.mark.parametrize("way", WAYS)
def test_lbfgs_gathers_what_is_written(way: str) -> None:
    net, x = Heads(), torch.randn(5, 8)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        WAYS[way](net, x)
        return sum(losses_of(net, x)).detach()  # type: ignore[union-attr]

    before = closure()
    for _ in range(3):
        optimizer.step(closure)
    assert closure() < before


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda par: torch.full(par.shape, 7.0),
    "another order": lambda par: torch.full(par.shape[::-1], 7.0).permute(*range(par.dim())[::-1]),
    "strided": lambda par: torch.full((*par.shape, 2), 7.0)[..., 0],
}


@pytest.mark.parametrize("way", [way for way in WAYS if "vectors" not in way])
@pytest.mark.parametrize("kept", KEPT)
def test_a_gradient_that_is_there_is_written_in_its_own_layout(kept: str, way: str) -> None:
    net, x = Images(), torch.randn(5, 8)
    before = []
    for par in net.parameters():
        par.grad = KEPT[kept](par.detach())
        before.append((par.grad, par.grad.stride(), par.grad._version))
    twin = copy.deepcopy(net)
    twin.zero_grad()
    sum(losses_of(twin, x)).backward()  # type: ignore[union-attr]
    WAYS[way](net, x)
    for par, like, (grad, stride, version) in zip(net.parameters(), twin.parameters(), before, strict=True):
        assert par.grad is grad
        assert grad.stride() == stride
        assert grad._version > version
        assert like.grad is not None
        torch.testing.assert_close(grad, like.grad, rtol=1e-4, atol=1e-6)


REPLACED: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda par: torch.full((1,), 7.0).expand(par.shape),
    "part of a graph": lambda par: torch.full(par.shape, 7.0, requires_grad=True),
    "sparse": lambda par: torch.full(par.shape, 7.0).to_sparse(),
}


@pytest.mark.parametrize("replaced", REPLACED)
def test_a_gradient_that_cannot_be_written_to_is_replaced(replaced: str) -> None:
    net, x = Images(), torch.randn(5, 8)
    by_backward(net, x)
    wanted = get_gradient_vector(net)
    for accumulate in (False, True):
        for par in net.parameters():
            par.grad = REPLACED[replaced](par.detach())
        kept = [par.grad for par in net.parameters()]
        fastconfig.backward(losses_of(net, x), net, PCGradOperator(), accumulate=accumulate)
        torch.testing.assert_close(get_gradient_vector(net), wanted + 7 * accumulate)
        for par, old in zip(net.parameters(), kept, strict=True):
            assert par.grad is not old
            assert old is not None
            assert (old.detach().to_dense() == 7).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("there", [False, True])
def test_hooks_run_once_when_all_gradients_are_there(way: str, there: bool) -> None:
    net, x = Heads(), torch.randn(5, 8)
    twin = copy.deepcopy(net)
    sum(losses_of(twin, x)).backward()  # type: ignore[union-attr]
    if there:
        WAYS[way](net, x)
    seen: list[tuple[int, Tensor]] = []

    def hook(par: Tensor) -> None:
        assert par.grad is not None
        seen.append((id(par), par.grad.clone()))

    for par in net.parameters():
        par.register_post_accumulate_grad_hook(hook)
    WAYS[way](net, x)
    count = len(list(net.parameters()))
    if "vectors" not in way:  # whose loop runs torch's own backward passes as well
        assert len(seen) == count
    last = dict(seen[-count:])
    for par, like in zip(net.parameters(), twin.parameters(), strict=True):
        assert like.grad is not None
        torch.testing.assert_close(last[id(par)], like.grad, rtol=1e-4, atol=1e-6)


def test_an_optimizer_step_in_the_hooks() -> None:
    """Each parameter is stepped as soon as its gradient is there, which is freed then."""
    net, x = Heads(), torch.randn(5, 8)
    twin = copy.deepcopy(net)
    optimizers = {par: torch.optim.SGD([par], lr=0.1) for par in net.parameters()}

    def step(par: Tensor) -> None:
        optimizers[par].step()  # type: ignore[index]
        optimizers[par].zero_grad()  # type: ignore[index]

    for par in net.parameters():
        par.register_post_accumulate_grad_hook(step)
    by_backward(net, x)
    sum(losses_of(twin, x)).backward()  # type: ignore[union-attr]
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    for par, like in zip(net.parameters(), twin.parameters(), strict=True):
        assert par.grad is None
        torch.testing.assert_close(par, like, rtol=1e-4, atol=1e-6)


def test_a_vector_of_another_kind_is_refused() -> None:
    net = Heads()
    size = sum(par.numel() for par in net.parameters())
    for vector, error in (
        (torch.ones(size, dtype=torch.complex64), TypeError),
        (torch.ones(size, dtype=torch.int64), TypeError),
        (torch.ones(size).to_sparse(), TypeError),
        (torch.ones(size, device="meta"), ValueError),
        ([1.0] * size, TypeError),
    ):
        with pytest.raises(error, match="grad_vec: got"):
            apply_gradient_vector_para_based(net, vector)  # type: ignore[arg-type]
    assert all(par.grad is None for par in net.parameters())
