"""Vectors from networks and back: copies, modes, checks, networks of odd parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from peer import THEIRS
from torch import Tensor, nn

from fastconfig import ConFIG_update, ConFIGOperator, IMTLGOperator, PCGradOperator
from fastconfig import network as network_module
from fastconfig.utils import (
    apply_gradient_vector,
    apply_gradient_vector_para_based,
    apply_para_vector,
    get_gradient_vector,
    get_para_vector,
)


class Branches(nn.Module):
    """A shared layer and two heads, each with a loss of its own; a parameter that no loss uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.shared = nn.Linear(4, 2)
        self.unused = nn.Parameter(torch.randn(5))
        self.second = nn.Linear(2, 4)
        self.x = torch.randn(8, 4)

    def losses(self) -> list[Tensor]:
        features = torch.tanh(self.shared(self.x))
        return [self.first(features).square().mean(), self.second(features).sin().mean()]

    def gradients(self, mode: Any = "zero") -> list[Tensor]:
        vectors = []
        for i in range(2):
            self.zero_grad()
            self.losses()[i].backward()
            vectors.append(get_gradient_vector(self, none_grad_mode=mode))
        return vectors


class One(nn.Module):
    """A network of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))


def grads_of(network: nn.Module) -> list[Tensor | None]:
    return [None if par.grad is None else par.grad.clone() for par in network.parameters()]


def same(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    pairs = zip(left, right, strict=True)
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


def size(network: nn.Module) -> int:
    return sum(par.numel() for par in network.parameters())


# Gradient vectors


@pytest.mark.parametrize("mode", ["raise", "zero", "skip"])
def test_gradient_vector_is_that_of_conflictfree(mode: Any) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    network(torch.randn(5, 3)).square().sum().backward()
    vector = get_gradient_vector(network, mode)
    assert torch.equal(vector, THEIRS["utils"].get_gradient_vector(network, mode))
    apply_gradient_vector(network, 2 * vector)
    assert torch.equal(get_gradient_vector(network), 2 * vector)


def test_gradient_vector_of_one_parameter_is_a_copy() -> None:
    network = One()
    network.weight.square().sum().backward()
    vector = get_gradient_vector(network)
    kept = vector.clone()
    network.zero_grad(set_to_none=False)
    assert torch.equal(vector, kept)
    assert kept.any()


def test_gradient_vector_of_channels_last_gradients() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    network(x).square().sum().backward()
    grad = network.weight.grad
    assert not grad.is_contiguous()
    vector = get_gradient_vector(network)
    assert torch.equal(vector[: grad.numel()].view(grad.shape), grad)
    before = grad.clone()
    apply_gradient_vector(network, 3 * vector)
    assert torch.equal(network.weight.grad, 3 * before)


def test_gradient_vector_without_any_gradient() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"no parameter .* has a gradient"):
        get_gradient_vector(network)
    assert torch.equal(get_gradient_vector(network, "zero"), torch.zeros(6))


def test_a_missing_gradient_is_skipped_zeros_or_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[1](torch.ones(2)).sum().backward()
    kept = torch.cat([network[1].weight.grad.reshape(-1), network[1].bias.grad])
    assert torch.equal(get_gradient_vector(network), kept)
    assert torch.equal(get_gradient_vector(network, "zero"), torch.cat([torch.zeros(6), kept]))
    with pytest.raises(RuntimeError, match=r"None gradient detected: parameter '0\.weight'"):
        get_gradient_vector(network, "raise")


def test_gradient_vector_takes_no_step_per_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(*[nn.Linear(2, 2) for _ in range(20)])
    network(torch.ones(2)).sum().backward()
    calls = []
    real = torch.cat
    monkeypatch.setattr(torch, "cat", lambda *a, **k: calls.append(1) or real(*a, **k))
    assert len(get_gradient_vector(network)) == size(network)
    assert len(calls) <= 1
    calls.clear()
    monkeypatch.setattr(network_module, "_SHORT", 0)
    assert len(get_gradient_vector(network)) == size(network)
    assert len(calls) == 1  # conflictfree: one a parameter, each longer than the last


@pytest.mark.parametrize("function", [get_gradient_vector, apply_gradient_vector])
def test_unknown_none_grad_mode(function: Any) -> None:
    network = One()
    network.weight.sum().backward()
    vectors = [torch.zeros(6)] if function is apply_gradient_vector else []
    with pytest.raises(ValueError, match="none_grad_mode: got 'drop', want one of"):
        function(network, *vectors, none_grad_mode="drop")


def test_unknown_zero_grad_mode() -> None:
    with pytest.raises(ValueError, match="zero_grad_mode: got 'drop', want one of"):
        apply_gradient_vector(One(), torch.zeros(6), "zero", "drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize(
    "function",
    [
        apply_gradient_vector,
        lambda net, vec: apply_gradient_vector(net, vec, none_grad_mode="zero"),
        apply_gradient_vector_para_based,
        apply_para_vector,
    ],
)
def test_a_vector_of_another_length_is_refused_whole(function: Any, change: int) -> None:
    network = nn.Linear(2, 2)
    network(torch.ones(2)).sum().backward()
    grads, parameters = grads_of(network), get_para_vector(network)
    argument = "para_vec" if function is apply_para_vector else "grad_vec"
    with pytest.raises(ValueError, match=rf"{argument}: got shape \({6 + change},\), want \(6,\)"):
        function(network, torch.ones(6 + change))
    with pytest.raises(ValueError, match=rf"{argument}: got shape \(1, 6\), want \(6,\)"):
        function(network, torch.ones(1, 6))
    assert same(grads_of(network), grads)
    assert torch.equal(get_para_vector(network), parameters)


def test_applying_without_gradients_is_an_error() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"grad_vec: got shape \(6,\), want \(0,\)"):
        apply_gradient_vector(network, torch.ones(6))
    assert grads_of(network) == [None, None]


def test_applying_by_parameters_needs_no_gradients() -> None:
    network, vector = nn.Linear(2, 2), torch.randn(6)
    apply_gradient_vector_para_based(network, vector)
    assert torch.equal(get_gradient_vector(network, "raise"), vector)
    torch.optim.SGD(network.parameters(), lr=1.0).step()


@pytest.mark.parametrize("zero_grad_mode", ["pad_value", "pad_zero", "padding", "skip"])
def test_zero_grad_modes(zero_grad_mode: Any) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[1](torch.ones(2)).sum().backward()
    vector = torch.randn(9)
    apply_gradient_vector(network, vector, "zero", zero_grad_mode)
    assert torch.equal(get_gradient_vector(network[1], "raise"), vector[6:])
    first = [par.grad for par in network[0].parameters()]
    if zero_grad_mode == "skip":
        assert first == [None, None]
    else:
        wanted = vector[:6] if zero_grad_mode == "pad_value" else torch.zeros(6)
        assert torch.equal(get_gradient_vector(network[0], "raise"), wanted)


def test_defaults_pad_the_value() -> None:
    parameters = inspect.signature(apply_gradient_vector).parameters
    assert parameters["zero_grad_mode"].default == "pad_value"
    assert parameters["none_grad_mode"].default == "skip"


def test_a_long_vector_that_the_gradients_are_parts_of() -> None:
    """In another order than the parameters': it is read as it was."""
    network = torch.nn.Linear(300, 300)
    vector = torch.randn(90_300)
    before = vector.clone()
    network.weight.grad, network.bias.grad = vector[300:].view(300, 300), vector[:300]
    apply_gradient_vector(network, vector)
    assert torch.equal(network.weight.grad.reshape(-1), before[:90_000])
    assert torch.equal(network.bias.grad, before[90_000:])


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].requires_grad_(False)
    network(torch.ones(2)).sum().backward()
    vector = get_gradient_vector(network)
    assert len(vector) == 3
    apply_gradient_vector(network, -vector)
    assert torch.equal(get_gradient_vector(network[1]), -vector)
    assert grads_of(network[0]) == [None, None]


@pytest.mark.parametrize("mode", ["zero", "skip"])
def test_a_strided_vector_is_applied(mode: Any) -> None:
    network = nn.Linear(3, 2)
    network(torch.ones(3)).sum().backward()
    vector = torch.randn(8, 5)[:, 2]
    apply_gradient_vector(network, vector, mode)
    assert torch.equal(get_gradient_vector(network), vector)


def test_networks_of_mixed_dtypes() -> None:
    network = nn.Sequential(nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 1).double())
    for par in network.parameters():
        par.grad = torch.randn(par.shape).to(par.dtype)
    before = grads_of(network)
    vector = get_gradient_vector(network)
    assert vector.dtype == torch.float64
    apply_gradient_vector(network, vector)
    assert all(par.grad.dtype == par.dtype for par in network.parameters())
    assert same(grads_of(network), before)
    parameters = get_para_vector(network)
    assert parameters.dtype == torch.float64
    apply_para_vector(network, parameters)
    assert torch.equal(get_para_vector(network), parameters)


def test_parameters_of_no_dimension_and_of_no_element() -> None:
    network = nn.ParameterList([torch.randn(()), torch.randn(0, 3), torch.randn(2)])
    vector = torch.randn(3)
    apply_gradient_vector_para_based(network, vector)
    assert [tuple(par.grad.shape) for par in network.parameters()] == [(), (0, 3), (2,)]
    assert torch.equal(get_gradient_vector(network), vector)


def test_no_graph_is_kept() -> None:
    network = nn.Linear(2, 2)
    network(torch.ones(2)).sum().backward(create_graph=False)
    assert not get_gradient_vector(network).requires_grad
    assert not get_para_vector(network).requires_grad
    apply_gradient_vector(network, torch.randn(6, requires_grad=True))
    assert not any(par.grad.requires_grad for par in network.parameters())


# Losses on different parts of a network


def test_vectors_of_different_parts_have_one_length() -> None:
    network = Branches()
    vectors = network.gradients()
    assert [len(v) for v in vectors] == [size(network)] * 2
    assert len({len(v) for v in network.gradients("skip")}) == 2


@pytest.mark.parametrize("operator", [ConFIGOperator(), PCGradOperator(), IMTLGOperator()])
def test_update_gradient_of_losses_on_different_parts(operator: Any, backend: str) -> None:
    network = Branches()
    vectors = network.gradients()  # .grad is now that of the second loss: none for the first head
    assert network.first.weight.grad is None
    operator.update_gradient(network, vectors, none_grad_mode="zero")
    update = operator.calculate_gradient(vectors)
    assert torch.equal(get_gradient_vector(network, "raise"), update)
    assert network.first.weight.grad.any()
    assert not network.unused.grad.any()


@pytest.mark.parametrize("zero_grad_mode", ["skip", "pad_zero", "padding"])
def test_update_gradient_passes_on_its_modes(zero_grad_mode: Any) -> None:
    network = Branches()
    ConFIGOperator().update_gradient(
        network, network.gradients(), none_grad_mode="zero", zero_grad_mode=zero_grad_mode
    )
    if zero_grad_mode == "skip":
        assert network.first.weight.grad is None
    else:
        assert torch.equal(network.first.weight.grad, torch.zeros(3, 2))


def test_update_gradient_does_not_write_wrong_slices() -> None:
    network = Branches()
    vectors = network.gradients()
    before = grads_of(network)
    with pytest.raises(ValueError, match=rf"grad_vec: got shape \({size(network)},\)"):
        ConFIGOperator().update_gradient(network, vectors)
    assert same(grads_of(network), before)


def test_losses_on_different_parts_all_fall(backend: str) -> None:
    network = Branches()
    first = [loss.item() for loss in network.losses()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    unused = network.unused.detach().clone()
    for _ in range(20):
        ConFIGOperator().update_gradient(network, network.gradients(), none_grad_mode="zero")
        optimizer.step()
    for now, before in zip(network.losses(), first, strict=True):
        assert now.item() < before
    assert torch.equal(network.unused, unused)


def test_update_gradient_of_per_parameter_gradients(backend: str) -> None:
    network = Branches()
    parameters = list(network.parameters())
    grads = [torch.autograd.grad(network.losses()[i], parameters, allow_unused=True) for i in range(2)]
    exact = ConFIG_update(network.gradients())
    network.zero_grad()
    network.unused.grad = torch.ones(5)
    ConFIGOperator().update_gradient(network, grads)
    assert torch.equal(network.unused.grad, torch.ones(5))  # no loss has a gradient: left alone
    network.unused.grad = None
    torch.testing.assert_close(get_gradient_vector(network, "zero"), exact)


@pytest.mark.parametrize("wrong", ["count", "shape"])
def test_update_gradient_of_per_parameter_gradients_that_do_not_fit(wrong: str) -> None:
    network = nn.Linear(2, 2)
    network(torch.ones(2)).sum().backward()
    before = grads_of(network)
    shapes = [(2, 2)] if wrong == "count" else [(2, 2), (3,)]
    with pytest.raises(ValueError, match=r"grads: got tensors of shapes .*, want .*the network's"):
        ConFIGOperator().update_gradient(network, [[torch.randn(s) for s in shapes]] * 2)
    assert same(grads_of(network), before)


# Parameter vectors


@pytest.mark.parametrize("make", [One, lambda: nn.Linear(3, 2), Branches])
def test_parameter_vectors_go_there_and_back(make: Any) -> None:
    network, other = make(), make()
    vector = get_para_vector(network)
    assert torch.equal(vector, THEIRS["utils"].get_para_vector(network))
    before = [id(par) for par in other.parameters()]
    pointers = [par.data_ptr() for par in other.parameters()]
    apply_para_vector(other, vector)
    assert torch.equal(get_para_vector(other), vector)
    assert [id(par) for par in other.parameters()] == before
    assert [par.data_ptr() for par in other.parameters()] == pointers


@pytest.mark.parametrize("make", [One, lambda: nn.Linear(3, 2)])
def test_a_saved_parameter_vector_does_not_follow_training(make: Any) -> None:
    network = make()
    saved = get_para_vector(network)
    kept = saved.clone()

    def train() -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        apply_gradient_vector_para_based(network, torch.ones(len(saved)))
        optimizer.step()

    train()
    assert torch.equal(saved, kept)
    assert not torch.equal(get_para_vector(network), kept)
    apply_para_vector(network, saved)
    assert torch.equal(get_para_vector(network), kept)
    train()
    assert torch.equal(saved, kept)


def test_parameter_vector_of_a_channels_last_network() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert not network.weight.is_contiguous()
    vector = get_para_vector(network)
    assert torch.equal(vector[: network.weight.numel()].view(network.weight.shape), network.weight)
    apply_para_vector(network, 2 * vector)
    assert torch.equal(get_para_vector(network), 2 * vector)
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
