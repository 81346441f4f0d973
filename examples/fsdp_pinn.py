"""A physics-informed network for Burgers' equation, cut by FSDP2; saved, and resumed on any number of ranks.

    torchrun --nproc-per-node 2 examples/fsdp_pinn.py --steps 100 --checkpoint runs/burgers
    torchrun --nproc-per-node 4 examples/fsdp_pinn.py --steps 200 --checkpoint runs/burgers

u_t + u u_x = (0.01 / pi) u_xx on x in [-1, 1], t in [0, 1]; u(x, 0) = -sin(pi x); u(-1, t) = u(1, t) = 0.
``--momentum`` trains by M-ConFIG, whose state is cut and saved like the parameters.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fastconfig

POINTS = 240  # of each loss a step, of all ranks together


class Burgers(nn.Module):
    """Gives the losses, so that FSDP2 sees one forward pass however often it differentiates within."""

    def __init__(self, width: int = 50, depth: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(2, width), nn.Tanh()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, points: Tensor) -> list[Tensor]:
        """Mean squares of the residual, and of what is off at t = 0 and at both ends; points: (P, 2)."""
        x, t = (points[:, k : k + 1].clone().requires_grad_() for k in (0, 1))
        u = self.net(torch.cat([x, t], 1))
        u_x, u_t = torch.autograd.grad(u.sum(), (x, t), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
        residual = u_t + u * u_x - 0.01 / math.pi * u_xx
        start = self.net(torch.cat([x, torch.zeros_like(t)], 1)) + torch.sin(math.pi * x)
        ends = self.net(torch.cat([torch.cat([torch.full_like(t, side), t], 1) for side in (-1.0, 1.0)]))
        return [part.square().mean() for part in (residual, start, ends)]


def my_points(step: int, device: torch.device) -> Tensor:
    """This rank's share of the step's points, which do not depend on the number of ranks."""
    generator = torch.Generator().manual_seed(step)
    points = torch.rand(POINTS, 2, generator=generator)
    points[:, 0] = 2 * points[:, 0] - 1
    return points[dist.get_rank() :: dist.get_world_size()].to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a network on Burgers' equation on several ranks.")
    parser.add_argument("--steps", type=int, default=200, help="to which the run goes")
    parser.add_argument("--checkpoint", type=Path, help="folder of checkpoints to resume from and to save to")
    parser.add_argument("--momentum", action="store_true", help="M-ConFIG: one loss a step")
    given = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if POINTS % dist.get_world_size():
        raise SystemExit(f"got {dist.get_world_size()} ranks, want a number that divides {POINTS} points")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)

    net = Burgers().to(device)
    fully_shard(net, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))
    operator: Any
    if given.momentum:
        operator = fastconfig.PseudoMomentumOperator(3)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    else:
        operator = fastconfig.ConFIGOperator()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    begin = latest(given.checkpoint)
    if begin:
        if given.momentum:
            operator.allocate(net)  # a checkpoint is loaded into tensors that are there
        state = state_of(net, optimizer, operator)
        dcp.load(state, checkpoint_id=given.checkpoint / str(begin))
        set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    for step in range(begin, given.steps):
        losses = net(my_points(step, device))
        if given.momentum:
            k = step % 3
            fastconfig.backward([losses[k]], net, operator, indexes=[k])
        else:
            fastconfig.backward(losses, net, operator)
        optimizer.step()

    if given.checkpoint is not None and given.steps > begin:
        dcp.save(state_of(net, optimizer, operator), checkpoint_id=given.checkpoint / str(given.steps))
    found = torch.stack([loss.detach() for loss in net(my_points(-1, device))])
    dist.all_reduce(found)
    if dist.get_rank() == 0:
        for name, value in zip(("residual", "start", "ends"), found / dist.get_world_size(), strict=True):
            print(f"{name}: loss {float(value):.10g} after steps {begin} to {given.steps}")
    dist.destroy_process_group()
    leave()


def latest(folder: Path | None) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    found = [] if folder is None else [int(path.parent.name) for path in folder.glob("*/.metadata")]
    return max(found, default=0)


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer, operator: Any) -> dict[str, Any]:
    """All that a run goes on from; every rank saves and loads its part of it."""
    model_state, optimizer_state = get_state_dict(net, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    return state | ({"operator": operator} if hasattr(operator, "state_dict") else {})


def leave() -> None:
    """End this process with 0 and without Python's shutdown, as the children of multiprocessing end.

    torch's caches of meshes keep Gloo's threads alive after ``destroy_process_group``. One that still holds a
    tensor while Python (before 3.14) shuts down is ended within a destructor, and C++ aborts the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
