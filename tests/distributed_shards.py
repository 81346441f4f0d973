"""Parts of gradients as plain tensors, with ``process_group=``."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from distributed_inputs import assert_close, assert_same_bits, device, gathered, uneven
from inputs import conflicting
from schedules import MAKERS
from torch import Tensor

import fastconfig
from fastconfig import ConFIG_update, ConFIGOperator, PCGradOperator, WeightModel, ops, reference

N = 5003


def part_of(rows: Tensor, rank: int, sizes: list[int]) -> Tensor:
    begin = sum(sizes[:rank])
    return rows[..., begin : begin + sizes[rank]].to(device())


def case_every_operator_and_form(rank: int, ranks: int) -> None:
    group = dist.group.WORLD
    for backend in ("auto", "pytorch"):
        for name, (make, oracle) in MAKERS.items():
            for m in (2, 3, 9):
                rows = conflicting(m, N).to(torch.float64 if m == 9 else torch.float32)
                sizes = uneven(N, ranks)
                part = part_of(rows, rank, sizes)
                cut = sizes[rank] // 3
                operator = make(process_group=group)
                with fastconfig.use_backend(backend):
                    by_tensor = operator.calculate_gradient(part)
                    by_vectors = operator.calculate_gradient(list(part))
                    pieces = operator.calculate_gradient([[row[:cut], row[cut:]] for row in part])
                assert torch.equal(by_tensor, by_vectors), name
                whole = torch.cat(gathered(by_tensor))
                assert_close(whole, rows, oracle)
                assert_close(torch.cat(gathered(torch.cat(pieces))), rows, oracle)


def case_half_precision_and_batches(rank: int, ranks: int) -> None:
    sizes = uneven(N, ranks)
    for dtype in (torch.bfloat16, torch.float16):
        rows = torch.randn(3, N).to(dtype)
        update = ConFIG_update(part_of(rows, rank, sizes), process_group=dist.group.WORLD)
        assert_close(torch.cat(gathered(update)), rows, reference.config)
    problems = torch.stack([conflicting(3, N) for _ in range(4)])
    update = ConFIG_update(part_of(problems, rank, sizes), process_group=dist.group.WORLD)
    whole = torch.cat(gathered(update), -1)
    for found, rows in zip(whole, problems, strict=True):
        assert_close(found, rows, reference.config)


def case_gram_and_coefficients_have_the_same_bits(rank: int, ranks: int) -> None:
    rows = conflicting(4, N)
    for _ in range(5):
        gram = ops.gram(part_of(rows, rank, uneven(N, ranks)), process_group=dist.group.WORLD)
        assert_same_bits(gram)
        assert_same_bits(ops.coefficients(gram))
        exact = rows.double() @ rows.double().T
        norms = exact.diagonal().sqrt()
        assert ((gram.cpu() - exact).abs() <= 1e-13 * norms * norms[:, None]).all()


def case_a_gradient_missing_on_some_ranks(rank: int, ranks: int) -> None:
    """Each rank has parameters of its own; some losses do not reach them, and rank 0 has no gradient."""
    if ranks == 1:
        return
    rows = conflicting(3, 40 * ranks).double()
    rows[:, :40] = 0
    rows[1, 40:47] = 0
    given: list[list[Tensor | None]] = [[row[:7], row[7:]] for row in part_of(rows, rank, [40] * ranks)]
    if rank == 0:
        given = [[None, None] for _ in given]
    if rank == 1:
        given[1][0] = None
    update = ConFIGOperator(process_group=dist.group.WORLD).calculate_gradient(given)
    assert (update == [None, None]) == (rank == 0)
    zeros = torch.zeros(40, dtype=torch.float64)
    whole = torch.cat(gathered(zeros if rank == 0 else torch.cat(update)))  # type: ignore[arg-type]
    assert_close(whole, rows, reference.config)


def case_nan_on_one_rank_is_nan_on_all(rank: int, ranks: int) -> None:
    for bad in (torch.nan, torch.inf):
        rows = conflicting(3, 64 * ranks)
        rows[1, 64 * (ranks - 1) + 5] = bad
        for make, _ in MAKERS.values():
            operator = make(process_group=dist.group.WORLD)
            update = operator.calculate_gradient(rows[:, 64 * rank : 64 * rank + 64].to(device()))
            assert update.isnan().all()


def case_random_orders_agree(rank: int, ranks: int) -> None:
    """Whatever else a rank draws; by default and with generators that start alike."""
    group = dist.group.WORLD
    sizes = uneven(N, ranks)
    for generator in (None, torch.Generator().manual_seed(7)):
        operator = PCGradOperator(shuffle=True, generator=generator, process_group=group)
        expected = torch.Generator().manual_seed(7 if generator else 0)
        torch.manual_seed(rank)  # as ranks that load different data
        seen = set()
        for _ in range(6):
            rows = conflicting(5, N) if rank == 0 else torch.empty(5, N)
            rows = rows.to(device())
            dist.broadcast(rows, 0)
            update = operator.calculate_gradient(part_of(rows.cpu(), rank, sizes))
            order = torch.rand(5, 5, generator=expected).argsort(-1).tolist()
            seen.add(str(order))
            assert_close(
                torch.cat(gathered(update)),
                rows,
                lambda whole, order=order: reference.pcgrad(whole, order=order),
            )
        assert len(seen) > 1


def case_what_must_see_whole_gradients_is_refused(rank: int, ranks: int) -> None:
    class Own(WeightModel):
        def get_weights(self, gradients: Tensor, losses: object = None) -> Tensor:  # type: ignore[override]
            return gradients.norm(dim=1)

    with pytest.raises(TypeError, match="grads: got gradients spread over processes"):
        ConFIG_update(torch.randn(3, 8).to(device()), Own(), process_group=dist.group.WORLD)


def case_groups_of_some_ranks(rank: int, ranks: int) -> None:
    """Two groups side by side work on their own."""
    if ranks < 4:
        return
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    problems = [conflicting(3, 100) for _ in groups]
    rows = problems[rank // 2]
    half = rank % 2
    update = ConFIG_update(rows[:, 50 * half : 50 * half + 50], process_group=groups[rank // 2])
    found = gathered(update)
    for k, problem in enumerate(problems):
        assert_close(torch.cat(found[2 * k : 2 * k + 2]), problem, reference.config)
