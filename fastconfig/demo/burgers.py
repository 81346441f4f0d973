"""Burgers' equation as a physics-informed network sees it: solution, network, points, losses.

The problem is ``u_t + u u_x = nu u_xx`` on ``t in [0, 1]``, ``x in [-1, 1]`` with
``nu = 0.01 / pi``, ``u(0, x) = -sin(pi x)`` and ``u(t, -1) = u(t, 1) = 0`` (Raissi, Perdikaris and
Karniadakis, J. Comput. Phys. 378, 2019). A shock about as wide as ``nu`` forms at ``x = 0``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

VISCOSITY = 0.01 / math.pi
LOSS_NAMES = ("residual", "initial", "boundary")

FloatArray = npt.NDArray[np.float64]


def exact_solution(
    t: npt.ArrayLike, x: npt.ArrayLike, viscosity: float = VISCOSITY, nodes: int = 128
) -> FloatArray:
    """Solution at ``(t, x)`` by the Cole-Hopf formula and Gauss-Hermite quadrature.

    With ``y = x - s sqrt(4 nu t)`` and ``f(y) = exp(-cos(pi y) / (2 pi nu))``,

        u(t, x) = -int sin(pi y) f(y) exp(-s^2) ds / int f(y) exp(-s^2) ds

    (Basdevant et al., Computers & Fluids 14, 1986). At ``t = 0`` this is ``-sin(pi x)``.

    Args:
        t: times, at least 0; any shape that broadcasts with ``x``.
        x: positions; the formula continues the solution periodically beyond ``[-1, 1]``.
        viscosity: ``nu``, greater than 0.
        nodes: quadrature nodes.

    Returns:
        float64 array of the broadcast shape.

    Raises:
        ValueError: a negative time, or a viscosity that is not positive.
    """
    from scipy.special import roots_hermite

    times = np.asarray(t, dtype=np.float64)[..., None]
    if np.any(times < 0):
        raise ValueError(f"t must be at least 0, got {times.min()}")
    if not viscosity > 0:
        raise ValueError(f"viscosity must be greater than 0, got {viscosity}")
    s, weight = roots_hermite(nodes)
    y = np.asarray(x, dtype=np.float64)[..., None] - s * np.sqrt(4 * viscosity * times)
    with np.errstate(divide="ignore"):
        log_weight = np.log(weight)
    log_term = log_weight - np.cos(np.pi * y) / (2 * np.pi * viscosity)
    # exp(1 / (2 pi nu)) is 5e21 here and overflows for a smaller nu: the largest term becomes 1.
    term = np.exp(log_term - log_term.max(axis=-1, keepdims=True))
    solution: FloatArray = -(np.sin(np.pi * y) * term).sum(axis=-1) / term.sum(axis=-1)
    return solution


class Network(nn.Module):
    """Fully connected tanh network ``(t, x) -> u``.

    Args:
        width: neurons in a hidden layer.
        depth: hidden layers.
        generator: source of the Glorot-normal initial weights; biases start at 0.
    """

    def __init__(self, width: int = 50, depth: int = 4, generator: torch.Generator | None = None) -> None:
        super().__init__()
        sizes = [2] + [width] * depth + [1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Map points ``(P, 2)``, columns ``t`` and ``x``, to ``u`` of shape ``(P,)``."""
        *hidden, last = self.layers
        h = centred(points)
        for layer in hidden:
            h = torch.tanh(layer(h))
        u: Tensor = last(h)[:, 0]
        return u

    def derivatives(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``u, u_t, u_x, u_xx`` at the points, each ``(P,)``, with a graph.

        By the chain rule from layer to layer, which takes less time than differentiating twice.
        """
        *hidden, last = self.layers
        h = centred(points)
        h_t, h_x = h.new_tensor([[2.0, 0.0], [0.0, 1.0]])[:, None].expand(2, *h.shape)
        h_xx = torch.zeros_like(h)
        for layer in hidden:
            h = torch.tanh(layer(h))
            weight = layer.get_parameter("weight")
            h_t, h_x, h_xx = (linear(part, weight) for part in (h_t, h_x, h_xx))
            slope = 1 - h * h
            h_t, h_x, h_xx = slope * h_t, slope * h_x, slope * (h_xx - 2 * h * h_x * h_x)
        u: Tensor = last(h)[:, 0]
        weight = last.get_parameter("weight")
        u_t, u_x, u_xx = (linear(part, weight)[:, 0] for part in (h_t, h_x, h_xx))
        return u, u_t, u_x, u_xx


def centred(points: Tensor) -> Tensor:
    """Points with both columns on ``[-1, 1]``."""
    return torch.stack((2 * points[:, 0] - 1, points[:, 1]), dim=1)


@dataclass(frozen=True)
class Points:
    """Collocation points, each ``(P, 2)`` with columns ``t`` and ``x``."""

    interior: Tensor
    initial: Tensor
    boundary: Tensor


class PointSampler:
    """Endless fresh collocation points: a scrambled Sobol sequence inside, uniform on the edges.

    Args:
        interior, initial, boundary: points in one draw, each at least 1.
        seed: makes the sequence repeatable; the same points on every device.
        device: where the points go.
    """

    def __init__(self, interior: int, initial: int, boundary: int, seed: int, device: torch.device) -> None:
        self.sizes = interior, initial, boundary
        self.device = device
        self._sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed)
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self) -> Points:
        """Return the next ``interior``, ``initial`` and ``boundary`` points, float32."""
        interior, initial, boundary = self.sizes
        inside = self._sobol.draw(interior)
        inside[:, 1] = 2 * inside[:, 1] - 1
        start = torch.zeros(initial, 2, device="cpu")
        start[:, 1] = 2 * torch.rand(initial, generator=self._generator, device="cpu") - 1
        edge = torch.rand(boundary, 2, generator=self._generator, device="cpu")
        edge[:, 1] = torch.where(edge[:, 1] < 0.5, -1.0, 1.0)
        return Points(*(part.to(self.device) for part in (inside, start, edge)))


def residual(network: Network, points: Tensor, viscosity: float = VISCOSITY) -> Tensor:
    """Residual ``u_t + u u_x - nu u_xx`` of the equation, differentiable in the parameters.

    Args:
        network: gives ``u`` and its derivatives.
        points: ``(P, 2)``, columns ``t`` and ``x``.
        viscosity: ``nu``.

    Returns:
        ``(P,)``, of the points' dtype.
    """
    u, u_t, u_x, u_xx = network.derivatives(points)
    return u_t + u * u_x - viscosity * u_xx


def loss(network: Network, points: Points, index: int) -> Tensor:
    """Mean square of the residual, of the initial or of the boundary error, in the order of ``LOSS_NAMES``.

    Returns:
        0-d tensor with a graph of its own.
    """
    match LOSS_NAMES[index]:
        case "residual":
            error = residual(network, points.interior)
        case "initial":
            error = network(points.initial) + torch.sin(math.pi * points.initial[:, 1])
        case _:
            error = network(points.boundary)
    return error.square().mean()


def losses(network: Network, points: Points) -> list[Tensor]:
    """Every :func:`loss`."""
    return [loss(network, points, index) for index in range(len(LOSS_NAMES))]


def relative_error(prediction: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    """``|prediction - exact| / |exact|`` in the L2 norm over all entries."""
    truth = np.asarray(exact, dtype=np.float64)
    difference = np.asarray(prediction, dtype=np.float64) - truth
    return float(np.linalg.norm(difference) / np.linalg.norm(truth))
