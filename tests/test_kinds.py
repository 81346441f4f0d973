"""Parameters of several dtypes, complex ones, and sparse gradients, by every way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import relative_error
from schedules import momentum_error
from torch import Tensor, nn

import fastconfig
from fastconfig import (
    ConFIG_update,
    ConFIGOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    ops,
    reference,
)
from fastconfig.pcgrad import PPCGrad
from fastconfig.utils import apply_gradient_vector, apply_para_vector, get_gradient_vector, get_para_vector

pytestmark = pytest.mark.usefixtures("backend")


class Mixed(nn.Module):
    """A wide layer and a narrow one, whose inputs are cast between them."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4).to(dtype) for dtype in dtypes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x.to(layer.weight.dtype)))
        return x.double()


class Spectral(nn.Module):
    """A layer that weights frequencies, and a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))
        self.out = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(x.double(), n=4)
        return self.out(torch.fft.irfft(waves @ self.weight[:, :3].contiguous() + self.weight[:, 3], n=4))


class Table(nn.Module):
    """A sparse embedding and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4, sparse=True)
        self.out = nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table((x * 10).long().abs() % 20).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "float64 and float32": lambda: Mixed(torch.float64, torch.float32, torch.float64),
    "float32 and bfloat16": lambda: Mixed(torch.float32, torch.bfloat16),
    "complex": Spectral,
    "sparse": Table,
}
BOUND = {"float64 and float32": 1e-5, "float32 and bfloat16": 2e-2, "complex": 1e-11, "sparse": 1e-11}


def losses_of(net: nn.Module) -> list[Tensor]:
    x = torch.linspace(-1, 1, 24).view(6, 4)
    y = net(x)
    return [y[:, 0].square().mean(), (y[:, 1] - 1).square().mean(), (y[:, 0] + y[:, 1]).exp().mean()]


def real(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense()
    return (torch.view_as_real(dense) if dense.is_complex() else dense).reshape(-1).double()


def rows_of(net: nn.Module) -> Tensor:
    """(m, N) float64, by torch's own passes."""
    rows = []
    for value in losses_of(net):
        net.zero_grad()
        value.backward(retain_graph=True)
        rows.append(written(net))
    net.zero_grad()
    return torch.stack(rows)


def written(net: nn.Module) -> Tensor:
    for par in net.parameters():
        assert par.grad is not None
        assert par.grad.dtype is par.dtype
    return torch.cat([real(par.grad) for par in net.parameters()])  # type: ignore[arg-type]


def by_vectors(net: nn.Module) -> None:
    rows = []
    for value in losses_of(net):
        net.zero_grad()
        value.backward(retain_graph=True)
        rows.append(get_gradient_vector(net))
    apply_gradient_vector(net, ConFIG_update(rows))


def by_rows(net: nn.Module) -> None:
    parameters = list(net.parameters())
    rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in losses_of(net)]
    ConFIGOperator().update_gradient(net, [[g.to_dense() for g in row] for row in rows])


WAYS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Tensor], Tensor]]] = {
    "backward": (lambda net: fastconfig.backward(losses_of(net), net), reference.config),
    "vectors": (by_vectors, reference.config),
    "update_gradient": (by_rows, reference.config),
    "pc_backward": (
        lambda net: PPCGrad(torch.optim.SGD(net.parameters()), "sum").pc_backward(losses_of(net)),  # type: ignore[func-returns-value]
        reference.ppcgrad,
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_way(name: str, way: str) -> None:
    net = NETWORKS[name]()
    run, oracle = WAYS[way]
    exact = oracle(rows_of(net))
    for _ in range(2):
        run(net)
        assert relative_error(written(net), exact) <= BOUND[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_momentum(name: str) -> None:
    net = NETWORKS[name]()
    operator, exact = PseudoMomentumOperator(3, dtype=torch.float64), reference.Momentum(3)
    rows = rows_of(net)
    for step in range(4):
        wanted = exact.step([0, 1, 2], rows)
        if step == 2:
            state, operator = operator.state_dict(), PseudoMomentumOperator(3, dtype=torch.float64)
            operator.load_state_dict(state)
        fastconfig.backward(losses_of(net), net, operator)
        assert momentum_error(written(net), wanted, exact) <= 10 * BOUND[name], step


def test_momenta_of_complex_gradients_by_their_own_second_moments() -> None:
    net, operator = Spectral(), SeparateMomentumOperator(3)
    for _ in range(2):
        fastconfig.backward(losses_of(net), net, operator)
        assert net.weight.grad is not None
        assert net.weight.grad.imag.any()


@pytest.mark.parametrize("name", ["float64 and float32", "complex"])
def test_parameter_vectors_go_there_and_back(name: str) -> None:
    net = NETWORKS[name]()
    vector = get_para_vector(net)
    assert not vector.is_complex()
    wanted = [par.detach().clone() for par in net.parameters()]
    apply_para_vector(net, vector * 0)
    assert all(not par.any() for par in net.parameters())
    apply_para_vector(net, vector)
    for par, before in zip(net.parameters(), wanted, strict=True):
        assert torch.equal(par.detach(), before)


@pytest.mark.parametrize("form", ["tensor", "batch", "vectors", "parameters"])
def test_complex_gradients_are_pairs_of_real_numbers(form: str) -> None:
    rows = torch.randn(3, 10, dtype=torch.complex128)
    exact = torch.view_as_complex(reference.config(torch.view_as_real(rows).flatten(1)).view(-1, 2))
    grads: Any = {
        "tensor": rows,
        "batch": torch.stack([rows, 2 * rows]),
        "vectors": list(rows),
        "parameters": [[row[:4].view(2, 2), row[4:].real, row[4:].imag.clone()] for row in rows],
    }[form]
    update: Any = ConFIG_update(grads)
    if form == "parameters":
        assert [piece.dtype for piece in update] == [torch.complex128, torch.float64, torch.float64]
        update = torch.cat([update[0].reshape(-1), torch.complex(update[1], update[2])])
    elif form == "batch":
        torch.testing.assert_close(update[1], 2 * update[0])
        update = update[0]
    torch.testing.assert_close(update, exact)
    found = ops.gram(grads)
    wanted = torch.view_as_real(rows).flatten(1)
    torch.testing.assert_close(found[0] if form == "batch" else found, wanted @ wanted.T)


def test_what_takes_one_dtype_says_so() -> None:
    class Own(ConFIGOperator):
        def calculate_gradient(self, grads: Any, losses: Any = None) -> Any:
            return grads.sum(0)

    net = NETWORKS["float32 and bfloat16"]()
    with pytest.raises(TypeError, match=r"grads: got float32 on cpu and bfloat16 on cpu for an operator"):
        fastconfig.backward(losses_of(net), net, Own())
    rows = [[torch.ones(2), torch.ones(2, device="meta")] for _ in range(2)]
    with pytest.raises(TypeError, match=r"grads: got float32 on cpu and float32 on meta for an operator"):
        PseudoMomentumOperator(2).calculate_gradient([0, 1], rows)


def test_complex_parameters_behind_an_odd_number_of_real_ones(backend: str) -> None:
    net = nn.Module()
    net.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
    net.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex128))
    vector = torch.arange(11.0, dtype=torch.float64)
    apply_para_vector(net, vector)
    assert torch.equal(get_para_vector(net), vector)
    apply_gradient_vector(net, vector, "zero")
    assert torch.equal(get_gradient_vector(net), vector)
    values = [net.scale.sum() * (net.weight * k).abs().square().sum() + net.scale[k] for k in range(1, 3)]
    exact = reference.config(
        torch.stack(
            [
                torch.cat(
                    [real(g) for g in torch.autograd.grad(v, list(net.parameters()), retain_graph=True)]
                )
                for v in values
            ]
        )
    )
    fastconfig.backward(values, net)
    assert relative_error(written(net), exact) <= 1e-11


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch before 2.10")
def test_a_parameter_that_wants_its_gradient_in_another_dtype() -> None:
    net = nn.Linear(3, 2).bfloat16()
    for par in net.parameters():
        par.grad_dtype = torch.float32
    x = torch.randn(4, 3).bfloat16()
    for _ in range(2):
        y = net(x)
        fastconfig.backward([y[:, 0].square().mean(), (y[:, 1] - 1).square().mean()], net)
        assert all(par.grad is not None and par.grad.dtype is torch.float32 for par in net.parameters())
