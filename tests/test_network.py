"""Parameters of a network, and between them and one vector: the quick ways, and when they stand back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from inputs import in_one_call
from torch import Tensor, nn

import fastconfig
from fastconfig import network as network_module
from fastconfig.network import joined, joined_gradients, overwritten, parameters_of, plain_leaves
from fastconfig.utils import apply_gradient_vector, get_gradient_vector


def same(found: list[Tensor], wanted: Any) -> bool:
    wanted = list(wanted)
    return len(found) == len(wanted) and all(a is b for a, b in zip(found, wanted, strict=True))


class Nested(nn.Module):
    """Own parameters beside modules, shared ones, a missing module, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.scale = nn.Parameter(torch.ones(()))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), self.first), nn.BatchNorm1d(3)])
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.blocks[0][0].weight
        self.register_module("nothing", None)
        self.register_parameter("missing", None)


class OnlyScale(Nested):
    def named_parameters(self, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        yield "scale", self.scale


class Hidden(nn.Module):
    """A module that shows nothing of what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(2, 2)

    def named_modules(self, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    "make", [Nested, OnlyScale, lambda: nn.Sequential(nn.Linear(2, 2), Hidden()), nn.ReLU]
)
def test_parameters_are_those_of_the_module(make: Any) -> None:
    module = make()
    assert same(parameters_of(module), module.parameters())


def test_parameters_of_something_like_a_network() -> None:
    class Bare:
        def parameters(self) -> Iterator[Tensor]:
            return iter([weight])

    weight = nn.Parameter(torch.ones(2))
    assert same(parameters_of(Bare()), [weight])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:Warning")
def test_parameters_of_a_script() -> None:
    module = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    assert [par.shape for par in parameters_of(module)] == [par.shape for par in module.parameters()]


@pytest.mark.parametrize("others", [[], [torch.ones(2)]])
def test_plain_leaves(others: list[Tensor]) -> None:
    first, second = nn.Parameter(torch.ones(2)), torch.ones(3, requires_grad=True)
    assert same(plain_leaves([first, *others, second, first]), [first, second])  # type: ignore[arg-type]
    assert plain_leaves(others) == []
    assert plain_leaves([first, 2 * first]) is None
    assert plain_leaves([first, 3.0]) is None  # type: ignore[list-item]
    assert plain_leaves([nn.Buffer(torch.ones(2))] if hasattr(nn, "Buffer") else []) is not None


def pieces(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        torch.randn(3, 2).to(dtype),
        torch.randn(()).to(dtype),
        torch.randn(0, 4).to(dtype),
        torch.randn(5).to(dtype),
    ]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32])
def test_joined(dtype: torch.dtype, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not quick:
        monkeypatch.setattr(network_module, "_SHORT", 0)
    tensors = [
        *pieces(dtype),
        torch.randn(4, 3).to(dtype).T,
        torch.randn(1, 2, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last),
    ]
    vector = joined(tensors)
    assert torch.equal(vector, torch.cat([tensor.reshape(-1) for tensor in tensors]))
    assert not vector.requires_grad
    contiguous = pieces(dtype)
    assert torch.equal(joined(contiguous), torch.cat([piece.reshape(-1) for piece in contiguous]))


def test_joined_leaves_the_graph_and_the_memory() -> None:
    leaf = torch.randn(3, requires_grad=True)
    vector = joined([leaf * 2])
    assert not vector.requires_grad
    tensor = torch.randn(4)
    joined([tensor]).zero_()
    assert tensor.all()
    assert torch.equal(joined([torch._neg_view(tensor)]), -tensor)  # kernels read memory, not flags


def with_gradients(grads: list[Tensor | None]) -> list[nn.Parameter]:
    parameters = []
    for grad in grads:
        shape, dtype = ((2,), torch.float32) if grad is None else (grad.shape, grad.dtype)
        parameters.append(nn.Parameter(torch.ones(shape, dtype=dtype)))
        parameters[-1].grad = grad
    return parameters


@in_one_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_joined_gradients(dtype: torch.dtype) -> None:
    grads = pieces(dtype)
    wanted = torch.cat([grad.reshape(-1) for grad in grads])
    for every in (False, True):
        vector = joined_gradients(with_gradients(grads), every)  # type: ignore[arg-type]
        assert vector is not None
        assert torch.equal(vector, wanted)
    some = with_gradients([None, *grads, None])
    vector = joined_gradients(some, False)
    assert vector is not None
    assert torch.equal(vector, wanted)
    assert joined_gradients(some, True) is None
    assert joined_gradients(with_gradients([None]), False) is None
    assert joined_gradients(with_gradients([torch.randn(4, 3).T]), False) is None


@in_one_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_overwritten(dtype: torch.dtype) -> None:
    grads = pieces(dtype)
    versions = [grad._version for grad in grads]
    vector = torch.randn(12).to(dtype)
    assert overwritten(with_gradients([*grads, None]), False, vector)
    assert torch.equal(torch.cat([grad.reshape(-1) for grad in grads]), vector)
    assert all(grad._version > before for grad, before in zip(grads, versions, strict=True))


@in_one_call
def test_overwritten_by_a_vector_that_the_gradients_are_parts_of() -> None:
    vector = torch.arange(12.0)
    grads: list[Tensor | None] = [vector[6:].view(2, 3), vector[:6]]
    assert overwritten(with_gradients(grads), True, vector)
    assert torch.equal(vector, torch.arange(12.0).roll(6))


STAND_BACK: dict[str, Any] = {
    "another length": lambda: (pieces(), torch.randn(13)),
    "another dtype": lambda: (pieces(), torch.randn(12, dtype=torch.float64)),
    "a missing one": lambda: ([*pieces(), None], torch.randn(12)),
    "not contiguous": lambda: ([torch.randn(3, 4).T], torch.randn(12)),
    "a strided vector": lambda: (pieces(), torch.randn(24)[::2]),
    "part of a graph": lambda: ([torch.randn(12, requires_grad=True)], torch.randn(12)),
}


@pytest.mark.parametrize("case", STAND_BACK)
def test_overwritten_stands_back(case: str) -> None:
    tensors, vector = STAND_BACK[case]()
    before = [None if tensor is None else tensor.detach().clone() for tensor in tensors]
    assert not overwritten(with_gradients(tensors), True, vector)
    for tensor, old in zip(tensors, before, strict=True):
        assert old is None or torch.equal(tensor.detach(), old)


def network() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(8, 3)


def losses_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    return [(net(x)[:, i] - i).square().mean() for i in range(2)]


@in_one_call
def test_backward_writes_to_the_gradients_that_are_there(backend: str) -> None:
    net, x = network()
    fastconfig.backward(losses_of(net, x), net)
    wanted = get_gradient_vector(net)
    before = [par.grad for par in net.parameters()]
    fastconfig.backward([10 * value for value in losses_of(net, x)], net)
    assert all(par.grad is old for par, old in zip(net.parameters(), before, strict=True))
    torch.testing.assert_close(get_gradient_vector(net), 10 * wanted)


def test_backward_leaves_gradients_of_another_kind(backend: str) -> None:
    """Those of a graph stay as they are for whoever holds them."""
    net, x = network()
    weight = net[0].weight
    (own,) = torch.autograd.grad(losses_of(net, x)[0], weight, create_graph=True)
    weight.grad = own
    values = own.detach().clone()
    fastconfig.backward(losses_of(net, x), net)
    assert torch.equal(own.detach(), values)


def by_losses(net: nn.Module, x: Tensor) -> None:
    fastconfig.backward(losses_of(net, x), net)


def by_vectors(net: nn.Module, x: Tensor) -> None:
    apply_gradient_vector(net, torch.randn_like(get_gradient_vector(net)))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("way", [by_losses, by_vectors])
@pytest.mark.parametrize("large", [False, True])  # too large for the short way
def test_a_graph_that_has_saved_a_gradient_notices(
    way: Any, missing: bool, large: bool, backend: str
) -> None:
    net, x = network()
    if large:
        net, x = nn.Sequential(nn.Linear(3, 100_000)), torch.randn(2, 3)
    fastconfig.backward(losses_of(net, x), net)
    weight = net[0].weight
    assert weight.grad is not None
    product = (weight * weight.grad).sum()
    if missing:  # which is made again, beside the others that are written to
        net[-1].bias.grad = None
    way(net, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("way", [by_losses, by_vectors])
def test_hooks_run_where_gradients_are_written_over(way: Any, backend: str) -> None:
    net, x = network()
    fastconfig.backward(losses_of(net, x), net)
    seen: list[Tensor] = []
    for par in net.parameters():
        par.register_post_accumulate_grad_hook(seen.append)
    way(net, x)
    assert same(seen, net.parameters())


def test_a_vector_of_inference_mode_becomes_gradients_that_can_be_written() -> None:
    net, _ = network()
    with torch.inference_mode():
        vector = torch.ones(sum(par.numel() for par in net.parameters()))
    apply_gradient_vector(net, vector, none_grad_mode="zero")
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    assert all(par.grad is not None and 0 < par.grad.max() < 1 for par in net.parameters())


def test_hooks_see_all_new_gradients(backend: str) -> None:
    net, x = network()
    seen: list[bool] = []
    for par in net.parameters():
        par.register_post_accumulate_grad_hook(
            lambda _: seen.append(all(par.grad is not None for par in net.parameters()))
        )
    by_losses(net, x)
    assert seen == [True] * len(list(net.parameters()))


@in_one_call
def test_a_short_vector_is_copied_to_the_gradients() -> None:
    net, x = network()
    losses_of(net, x)[0].backward()
    before = [par.grad for par in net.parameters()]
    vector = torch.randn(sum(par.numel() for par in net.parameters()))
    apply_gradient_vector(net, vector)
    assert all(par.grad is old for par, old in zip(net.parameters(), before, strict=True))
    assert torch.equal(get_gradient_vector(net), vector)
    vector.zero_()
    assert get_gradient_vector(net).any()
