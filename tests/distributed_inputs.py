"""What the cases of several processes share; all ranks draw the same from the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from inputs import half_bound, relative_error, rounding_bound, rows_of
from schedules import Oracle
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fastconfig import reference
from fastconfig.utils import apply_gradient_vector_para_based


def device() -> torch.device:
    """Where this run's gradients are."""
    return torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")


Case = TypeVar("Case", bound=Callable[[int, int], None])


def by_fsdp(case: Case) -> Case:
    """A case that is left out where torch's own FSDP2 does not run: on a CPU in torch 2.6."""
    case.by_fsdp = True  # type: ignore[attr-defined]
    return case


def has_fsdp() -> bool:
    return device().type == "cuda" or hasattr(torch.cpu.Stream, "record_event")


def uneven(n: int, ranks: int) -> list[int]:
    """Sizes of the parts of n elements, of which the first is empty if there are others."""
    cuts = torch.randint(0, n + 1, (ranks - 1,)).sort().values
    cuts[:1] = 0
    edges = [0, *cuts.tolist(), n]
    return [b - a for a, b in pairwise(edges)]


def gathered(part: Tensor) -> list[Tensor]:
    """The tensors of all ranks, of whatever length, on the CPU."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, part.detach().cpu())
    return found


def assert_same_bits(tensor: Tensor) -> None:
    """A tensor that all ranks should have alike."""
    for other in gathered(tensor):
        assert other.shape == tensor.shape
        assert torch.equal(other.view(torch.uint8), tensor.detach().cpu().contiguous().view(torch.uint8))


def assert_close(update: Tensor, rows: Tensor, oracle: Oracle) -> None:
    """Within the bounds of the one-process tests."""
    update, rows = update.detach().cpu(), rows.cpu()
    exact = oracle(rows)
    assert update.dtype == rows.dtype
    if rows.dtype is torch.float64:
        bound = 1e-11
    elif rows.dtype is torch.float32:
        bound = max(2e-6, rounding_bound(rows, exact))
    else:
        bound = half_bound(exact, rows.dtype)
    assert relative_error(update, exact) <= bound


class Net(nn.Module):
    """A small network in float64, the same on all ranks; sizes that ranks do not divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)
        self.double()
        generator = torch.Generator().manual_seed(1)
        for par in self.parameters():
            nn.init.normal_(par, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def losses_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Three losses, the first two of one forward pass."""
    y = net(x)
    return [(y[:, 0] - 1).square().mean(), (y[:, 1] + y[:, 0]).square().mean(), net(2 * x)[:, 2].exp().mean()]


def batch_of(rank: int, step: int = 0) -> Tensor:
    """A rank's own data."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(6, 4, dtype=torch.float64, generator=generator)


def averaged_rows(
    ranks: int,
    step: int = 0,
    net: nn.Module | None = None,
    losses: Callable[..., Sequence[Tensor]] = losses_of,
) -> Tensor:
    """(m, N): every loss's gradient, averaged over the ranks, taken by one process."""
    net = Net() if net is None else net
    parameters = [par for par in net.parameters() if par.requires_grad]
    total = torch.zeros(())
    for rank in range(ranks):
        total = total + rows_of(losses(net, batch_of(rank, step)), parameters) / ranks
    return total


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be a DTensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def grads_of(net: nn.Module) -> Tensor:
    """The network's gradients as a whole vector, zeros where there is none."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters() if p.requires_grad]
    return torch.cat([whole(grad).reshape(-1) for grad in grads])


def assert_trains_like_one(net: nn.Module, ranks: int, take: Callable[[int], None]) -> None:
    """Ten steps of Adam beside one process that averages everything; ``take`` writes a step's gradients."""
    one = Net()
    optimizers = [torch.optim.Adam(n.parameters(), lr=0.05) for n in (net, one)]
    for step in range(10):
        take(step)
        apply_gradient_vector_para_based(one, reference.config(averaged_rows(ranks, step, one)))
        for optimizer in optimizers:
            optimizer.step()
    for mine, theirs in zip(net.parameters(), one.parameters(), strict=True):
        assert_same_bits(whole(mine))
        assert (whole(mine).cpu() - theirs).abs().max() <= 1e-9
