"""Gradients that say themselves how they are spread: DTensors on meshes of one and two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from distributed_inputs import assert_close, assert_same_bits, device, gathered
from inputs import conflicting
from schedules import MAKERS
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from fastconfig import ConFIG_update, ConFIGOperator, GradientOperator, GramOperator, ops, reference
from fastconfig.backends import sharded
from fastconfig.methods import IMTLG, LogLosses
from fastconfig.pcgrad import PPCGrad

SHAPES = [(7, 3), (5,), (1, 2), (4, 6, 3), (0, 3)]
N = sum(torch.Size(shape).numel() for shape in SHAPES)


def line(ranks: int) -> DeviceMesh:
    return init_device_mesh(device().type, (ranks,), mesh_dim_names=("all",))


def plane(ranks: int) -> DeviceMesh:
    sides = (2, ranks // 2) if ranks > 1 else (1, 1)
    return init_device_mesh(device().type, sides, mesh_dim_names=("data", "model"))


def pieces_of(row: Tensor) -> list[Tensor]:
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return [p.view(shape) for p, shape in zip(row.split(sizes), SHAPES, strict=True)]


def spread(row: Tensor, places: Sequence[tuple[DeviceMesh, Sequence[Placement]]]) -> list[Tensor]:
    """A row as tensors of SHAPES, each at its place."""
    pairs = zip(pieces_of(row.to(device())), places, strict=True)
    return [distribute_tensor(piece.contiguous(), mesh, placements) for piece, (mesh, placements) in pairs]


def whole(update: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.full_tensor().reshape(-1) for piece in update])  # type: ignore[attr-defined]


def case_losses_of_each_rank(rank: int, ranks: int) -> None:
    """Of which the mean counts, on every rank: as of one process that has all of the batch."""
    rows, operator = conflicting(3, N).double(), GramOperator(LogLosses(IMTLG()))
    every = torch.rand(ranks, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + 0.1
    exact = operator.calculate_gradient(rows, every.mean(0))
    assert isinstance(exact, Tensor)
    for mesh, placements in ((line(ranks), [Shard(0)]), (plane(ranks), [Shard(0), Replicate()])):
        given = [spread(row, [(mesh, placements)] * len(SHAPES)) for row in rows]
        found = whole(operator.calculate_gradient(given, [*every[rank]])).cpu()  # type: ignore[arg-type]
        assert (found - exact).norm() <= 1e-12 * exact.norm()
        vectors = [distribute_tensor(row.to(device()), mesh, placements) for row in rows]
        found = operator.calculate_gradient(vectors, [*every[rank]]).full_tensor().cpu()  # type: ignore[union-attr]
        assert (found - exact).norm() <= 1e-12 * exact.norm()


def case_vectors_and_tensors(rank: int, ranks: int) -> None:
    mesh = line(ranks)
    for n in (1003, ranks + 1, 1):
        rows = conflicting(3, n) if n > 3 else torch.eye(3, n) + 0.1 * torch.randn(3, n)  # of any seed
        rows = rows.double()
        for placement in (Shard(0), Replicate()):
            vectors = [distribute_tensor(row.to(device()), mesh, [placement]) for row in rows]
            update = ConFIG_update(vectors)
            assert isinstance(update, DTensor)
            assert update.placements == (placement,)
            assert update.shape == (n,)
            assert_close(update.full_tensor(), rows, reference.config)
        tensor = distribute_tensor(rows.to(device()), mesh, [Shard(1)])
        update = ConFIG_update(tensor)
        assert isinstance(update, DTensor)
        assert update.placements == (Shard(0),)
        assert_close(update.full_tensor(), rows, reference.config)
    problems = torch.stack([conflicting(3, 50).double() for _ in range(5)])
    for placement in (Shard(0), Shard(2)):
        update = ConFIG_update(distribute_tensor(problems.to(device()), mesh, [placement]))
        assert isinstance(update, DTensor)
        for found, rows in zip(update.full_tensor(), problems, strict=True):
            assert_close(found, rows, reference.config)


def case_mixed_placements_on_a_plane(rank: int, ranks: int) -> None:
    """Every parameter with a placement of its own, replicas counted once; some on a part of the mesh."""
    mesh, all_ranks = plane(ranks), line(ranks)
    both = [
        (mesh, (Shard(0), Shard(1))),
        (mesh, (Shard(0), Replicate())),
        (mesh, (Replicate(), Shard(1))),
        (mesh["data"], (Shard(2),)),
        (mesh["model"], (Shard(0),)),
    ]
    for places in (
        both,
        [(mesh, (Replicate(), Replicate()))] * 5,
        [(mesh, (Shard(0), Shard(0)))] * 5,
        [(mesh, (Replicate(), Shard(0)))] * 5,
        [(all_ranks, (Shard(0),))] * 5,
        [(all_ranks, (Replicate(),)), *both[1:]],
    ):
        for name, (make, oracle) in MAKERS.items():
            rows = conflicting(4, N).double()
            update = make().calculate_gradient([spread(row, places) for row in rows])
            for piece, (piece_mesh, placements) in zip(update, places, strict=True):
                assert isinstance(piece, DTensor), name
                assert (piece.device_mesh, piece.placements) == (piece_mesh, placements)
            assert_close(whole(update), rows, oracle)
        gram = ops.gram([spread(row, places) for row in rows])
        assert_same_bits(gram)
        combined = ops.combine([spread(row, places) for row in rows], ops.coefficients(gram))
        assert_close(whole(combined), rows, reference.config)


def case_replicas_do_not_drift_apart(rank: int, ranks: int) -> None:
    """Where groups add up in different orders, as rings of different machines may."""
    mesh = plane(ranks)
    first, second = mesh.get_coordinate() or (0, 0)
    exact = sharded.summed

    def in_another_order(total: Tensor, group: dist.ProcessGroup, what: str) -> None:
        exact(total, group, what)
        total.mul_(1 + (second if group == mesh.get_group(0) else first) * 4e-16)

    sharded.summed = in_another_order  # type: ignore[assignment]
    try:
        for placements in ((Replicate(), Shard(0)), (Shard(0), Replicate()), (Shard(0), Shard(0))):
            row = conflicting(3, N).double()
            vectors = [distribute_tensor(r.to(device()), mesh, placements) for r in row]
            assert_same_bits(ops.gram(vectors))
        mixed = [(mesh, (Shard(0), Replicate())), *[(mesh, (Replicate(), Shard(0)))] * 4]
        assert_same_bits(ops.gram([spread(r, mixed) for r in row]))
    finally:
        sharded.summed = exact


def case_missing_gradients(rank: int, ranks: int) -> None:
    mesh = line(ranks)
    places = [(mesh, (Shard(0),))] * len(SHAPES)
    rows = conflicting(3, N).double()
    rows[:, 21:26] = 0
    rows[1, :21] = 0
    given = [[None if p == 1 else piece for p, piece in enumerate(spread(row, places))] for row in rows]
    given[1][0] = None
    update = ConFIG_update(given)
    assert update[1] is None
    zeros = spread(rows[0] * 0, places)
    assert_close(
        whole([z if u is None else u for u, z in zip(update, zeros, strict=True)]), rows, reference.config
    )


def case_nan_of_one_part_is_nan_everywhere(rank: int, ranks: int) -> None:
    rows = conflicting(3, 100)
    rows[2, 99] = torch.nan
    update = ConFIG_update([distribute_tensor(row.to(device()), line(ranks), [Shard(0)]) for row in rows])
    assert update.full_tensor().isnan().all()  # type: ignore[union-attr]


def case_pcgrad_functions(rank: int, ranks: int) -> None:
    """``project_conflicting`` merges DTensors as well."""
    rows = conflicting(3, 100).double()
    vectors = [distribute_tensor(row.to(device()), line(ranks), [Shard(0)]) for row in rows]
    update = PPCGrad(reduction="sum").project_conflicting(vectors)
    assert_close(update.full_tensor(), rows, reference.ppcgrad)  # type: ignore[attr-defined]


def case_compiled_steps_leave_the_graph(rank: int, ranks: int) -> None:
    if device().type == "cuda":
        return
    rows = conflicting(3, 100).double()
    vectors = [distribute_tensor(row, line(ranks), [Shard(0)]) for row in rows]
    step = torch.compile(lambda grads: ConFIG_update(grads), backend="eager")
    assert_close(step(vectors).full_tensor(), rows, reference.config)


def case_errors_name_what_came(rank: int, ranks: int) -> None:
    mesh = line(ranks)
    row = torch.randn(3 * ranks, device=device())
    part = distribute_tensor(row, mesh, [Shard(0)])
    partial = DTensor.from_local(row, mesh, [Partial()])
    with pytest.raises(ValueError, match=r"grads\[1\]: got .*Partial.*redistribute"):
        ConFIG_update([part, partial])
    with pytest.raises(ValueError, match=r"grads\[1\]: got a Tensor beside DTensors.*Replicate"):
        ConFIG_update([part, row])
    with pytest.raises(ValueError, match=r"grads\[0\]: got a Tensor beside DTensors"):
        ConFIG_update([row, part])
    with pytest.raises(ValueError, match=r"grads\[1\]\[0\]: got a Tensor beside"):
        ConFIG_update([[part], [row]])
    with pytest.raises(ValueError, match=r"grads\[1\]: got .*Replicate.*want .*Shard.*redistribute"):
        ConFIG_update([part, distribute_tensor(row, mesh, [Replicate()])])
    with pytest.raises(ValueError, match=r"grads: got .*gradients on different ranks.*Shard\(1\)"):
        ConFIG_update(distribute_tensor(torch.randn(4, 8, device=device()), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match=r"grads: got DTensors.*process_group"):
        ConFIGOperator(process_group=dist.group.WORLD).calculate_gradient([part, part])

    class Own(GradientOperator):
        def calculate_gradient(self, grads: Tensor, losses: object = None) -> Tensor:  # type: ignore[override]
            return grads.sum(0)

    net = torch.nn.Linear(4, 4, device=device())
    for name, par in list(net.named_parameters()):
        setattr(net, name, torch.nn.Parameter(distribute_tensor(par.detach(), mesh, [Shard(0)])))
    from fastconfig import backward

    x = DTensor.from_local(torch.randn(3, 4, device=device()), mesh, [Replicate()])
    with pytest.raises(TypeError, match="grads: got gradients spread over processes"):
        backward([net(x).sum(), net(x).square().sum()], net, Own())
    assert all(par.grad is None for par in net.parameters())
    assert len(gathered(torch.ones(1))) == ranks  # nobody is stuck
