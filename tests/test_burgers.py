"""The demo's problem: exact solution, points, residual and losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastconfig.demo.burgers import (
    VISCOSITY,
    Network,
    Points,
    PointSampler,
    exact_solution,
    losses,
    relative_error,
    residual,
)

pytest.importorskip("scipy")
CPU = torch.device("cpu")


def test_starts_at_the_initial_condition():
    x = np.linspace(-1, 1, 101)
    np.testing.assert_allclose(exact_solution(0, x), -np.sin(np.pi * x), atol=1e-12)


def test_is_zero_on_the_boundary_and_odd():
    t, x = np.meshgrid(np.linspace(0, 1, 11), np.linspace(0, 1, 41), indexing="ij")
    u = exact_solution(t, x)
    assert u.shape == t.shape
    np.testing.assert_allclose(u[:, -1], 0, atol=1e-12)
    np.testing.assert_allclose(exact_solution(t, -x), -u, atol=1e-12)


def test_more_nodes_change_nothing():
    t, x = np.meshgrid(np.linspace(0, 1, 21), np.linspace(-1, 1, 81), indexing="ij")
    np.testing.assert_allclose(exact_solution(t, x), exact_solution(t, x, nodes=400), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("t", "x"), [(0.1, 0.3), (0.5, 0.004), (0.5, -0.7), (1.0, 0.02)])
def test_agrees_with_adaptive_quadrature(t: float, x: float):
    from scipy.integrate import quad

    def weight(eta: float) -> float:
        exponent = -math.cos(math.pi * (x - eta)) / (2 * math.pi * VISCOSITY)
        return math.exp(exponent - eta**2 / (4 * VISCOSITY * t) - 50)

    wide = {"points": (-1, 0, 1), "limit": 2000, "epsabs": 0, "epsrel": 1e-11}
    top = quad(lambda eta: math.sin(math.pi * (x - eta)) * weight(eta), -1.5, 1.5, **wide)[0]
    assert exact_solution(t, x) == pytest.approx(-top / quad(weight, -1.5, 1.5, **wide)[0], abs=1e-9)


def test_steepest_slope_is_the_published_one():
    # Basdevant et al. 1986: 152.00516 at t = 1.6037 / pi.
    t, h = np.linspace(1.60, 1.61, 201) / math.pi, 1e-5
    slope = (8 * exact_solution(t, h) - exact_solution(t, 2 * h)) / (6 * h)
    assert -slope.min() == pytest.approx(152.00516, abs=1e-4)
    assert t[slope.argmin()] * math.pi == pytest.approx(1.6037, abs=2e-4)


def test_satisfies_the_equation():
    t, x = np.meshgrid(np.linspace(0.1, 0.9, 9), np.linspace(-0.9, 0.9, 40), indexing="ij")
    h = 1e-4
    u, right, left = (exact_solution(t, x + step) for step in (0, h, -h))
    u_t = (exact_solution(t + h, x) - exact_solution(t - h, x)) / (2 * h)
    u_x, u_xx = (right - left) / (2 * h), (right - 2 * u + left) / h**2
    np.testing.assert_allclose(u_t + u * u_x - VISCOSITY * u_xx, 0, atol=2e-4)


def test_a_small_viscosity_does_not_overflow():
    u = exact_solution(0.5, np.linspace(-0.9, 0.9, 19), viscosity=1e-4)
    assert np.isfinite(u).all()
    assert np.abs(u).max() <= 1


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"t must be at least 0, got -0\.5"):
        exact_solution([-0.5, 0.5], 0.0)
    with pytest.raises(ValueError, match="viscosity must be greater than 0, got 0"):
        exact_solution(0.5, 0.0, viscosity=0)


def by_autograd(
    function: Callable[[Tensor], Tensor], points: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    points = points.detach().requires_grad_()
    u = function(points)
    (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    (curvature,) = torch.autograd.grad(slope[:, 1].sum(), points, create_graph=True)
    return u, slope[:, 0], slope[:, 1], curvature[:, 1]


class Manufactured(Network):
    """u = exp(-t) sin(3 x) + t x^2."""

    def forward(self, points: Tensor) -> Tensor:
        t, x = points.unbind(dim=1)
        return torch.exp(-t) * torch.sin(3 * x) + t * x**2

    def derivatives(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return by_autograd(self, points)


def test_derivatives_of_the_network_agree_with_autograd():
    generator = torch.Generator().manual_seed(0)
    network = Network(generator=generator).double()
    points = torch.rand(40, 2, dtype=torch.float64, generator=generator)
    expected = by_autograd(network, points)
    for got, want in zip(network.derivatives(points), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_residual_of_a_manufactured_function():
    points = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, x = points.unbind(dim=1)
    wave, slope = torch.exp(-t) * torch.sin(3 * x), 3 * torch.exp(-t) * torch.cos(3 * x)
    u, u_t, u_x, u_xx = wave + t * x**2, x**2 - wave, slope + 2 * t * x, 2 * t - 9 * wave
    torch.testing.assert_close(residual(Manufactured(), points, 0.3), u_t + u * u_x - 0.3 * u_xx)


def test_residual_loss_has_the_right_parameter_gradient():
    generator = torch.Generator().manual_seed(0)
    network = Network(width=5, depth=2, generator=generator).double()
    points = torch.rand(7, 2, dtype=torch.float64, generator=generator)
    weight = network.layers[1].weight
    loss = residual(network, points).square().mean()
    (slope,) = torch.autograd.grad(loss, weight)
    h = 1e-6
    for index in [(0, 0), (2, 3), (4, 1)]:
        ends = []
        for step in (h, -2 * h):
            with torch.no_grad():
                weight[index] += step
            ends.append(residual(network, points).square().mean().item())
        with torch.no_grad():
            weight[index] += h
        assert slope[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5)


class Steady(Network):
    """The initial condition at all times, with a factor to learn."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, points: Tensor) -> Tensor:
        return -self.factor * torch.sin(math.pi * points[:, 1])

    def derivatives(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return by_autograd(self, points)


def test_losses_vanish_where_their_condition_holds():
    points = PointSampler(64, 32, 16, 0, CPU).draw()
    inside, initial, boundary = losses(Steady(1.0), points)
    assert inside > 0.1
    assert initial.item() == pytest.approx(0, abs=1e-12)
    assert boundary.item() == pytest.approx(0, abs=1e-12)
    doubled = losses(Steady(2.0), points)[1]
    assert doubled.item() == pytest.approx(
        torch.sin(math.pi * points.initial[:, 1]).square().mean().item(), rel=1e-5
    )


def test_points_are_fresh_repeatable_and_where_they_belong():
    sampler, twin = PointSampler(100, 20, 10, 3, CPU), PointSampler(100, 20, 10, 3, CPU)
    first, second = sampler.draw(), sampler.draw()
    assert [len(part) for part in (first.interior, first.initial, first.boundary)] == [100, 20, 10]
    for drawn in (first, second):
        again = twin.draw()
        for name in Points.__annotations__:
            assert torch.equal(getattr(drawn, name), getattr(again, name))
    assert not torch.equal(first.interior, second.interior)
    assert (first.interior[:, 0] >= 0).all()
    assert (first.interior.abs() <= 1).all()
    assert (first.interior[:, 1] < 0).any()
    assert (first.initial[:, 0] == 0).all()
    assert (first.boundary[:, 1].abs() == 1).all()


def test_network_is_4_x_50_and_repeatable():
    one, two = (Network(generator=torch.Generator().manual_seed(1)) for _ in range(2))
    shapes = [tuple(p.shape) for p in one.parameters() if p.dim() == 2]
    assert shapes == [(50, 2), (50, 50), (50, 50), (50, 50), (1, 50)]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one(torch.rand(6, 2)).shape == (6,)


def test_relative_error():
    assert relative_error([3.0, 0.0], [3.0, 4.0]) == pytest.approx(0.8)
