"""What only a CUDA device can show: no synchronisation, CUDA graphs, large inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import synchronisation
import torch
from torch import Tensor

from fastconfig import (
    ConFIG_update,
    ConFIGOperator,
    IMTLGOperator,
    MGDAOperator,
    PCGradOperator,
    PPCGradOperator,
    backends,
    ops,
    reference,
    use_backend,
)
from fastconfig.config_update import PLAIN
from fastconfig.momentum_operator import PseudoMomentumOperator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

BACKENDS = (
    [name for name, reason in backends.explain("cuda") if reason is None] if torch.cuda.is_available() else []
)
OPERATORS: dict[str, Callable[[Any], Any]] = {
    "config": ConFIG_update,
    "pcgrad": PCGradOperator().calculate_gradient,
    "ppcgrad": PPCGradOperator().calculate_gradient,
    "imtlg": IMTLGOperator().calculate_gradient,
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


def gradients(form: str, m: int, n: int) -> Any:
    rows = torch.randn(m, n, device="cuda")
    if form == "tensor":
        return rows
    if form == "vectors":
        return [row.clone() for row in rows]
    return [[piece.clone() for piece in row.split([n // 3, n // 3, n - 2 * (n // 3)])] for row in rows]


def flat(update: Tensor | list[Tensor]) -> Tensor:
    return update if isinstance(update, Tensor) else torch.cat([piece.reshape(-1) for piece in update])


def matrix(grads: Any) -> Tensor:
    return grads if isinstance(grads, Tensor) else torch.stack([flat(row) for row in grads])


def refill(grads: Any) -> None:
    for tensor in [grads] if isinstance(grads, Tensor) else grads:
        for piece in [tensor] if isinstance(tensor, Tensor) else tensor:
            piece.normal_()


def test_the_first_that_can_run_serves_cuda_tensors() -> None:
    assert backends.choose(ops.Gradients(torch.randn(2, 5, device="cuda"))).name == BACKENDS[0]
    assert BACKENDS[0] in ("cuda", "triton")


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
@pytest.mark.parametrize("m", [2, 3, 8, 9, 32])
@pytest.mark.parametrize("operator", OPERATORS)
def test_no_synchronisation(operator: str, m: int, form: str, backend: str) -> None:
    grads = gradients(form, m, 10_007)
    wanted = flat(OPERATORS[operator](grads)).clone()
    with synchronisation.none():
        update = OPERATORS[operator](grads)
    assert torch.equal(flat(update), wanted)


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
@pytest.mark.parametrize("m", [2, 3, 8, 9, 32])
@pytest.mark.parametrize("operator", OPERATORS)
def test_cuda_graphs_replay_with_other_gradients(operator: str, m: int, form: str, backend: str) -> None:
    grads = gradients(form, m, 10_007)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        OPERATORS[operator](grads)
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            update = flat(OPERATORS[operator](grads))
    for _ in range(3):
        refill(grads)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(update, flat(OPERATORS[operator](grads)))


@pytest.mark.skipif("cuda" not in BACKENDS, reason="no CUDA extension")
@pytest.mark.parametrize("m", [3, 9, 20])
@pytest.mark.parametrize("make", [ConFIGOperator, PCGradOperator, MGDAOperator])
def test_groups(make: Callable[[], Any], m: int) -> None:
    """In a CUDA graph, and eagerly, where gradients come to lie elsewhere; nothing waits."""
    operator, one = make(), make()
    operator.groups = "parameter"

    def drawn() -> list[list[Tensor]]:
        sizes = (10_007, 300_000, 0, 1025, 101)
        return [[torch.randn(n, dtype=torch.float64, device="cuda") for n in sizes] for _ in range(m)]

    def check(update: list[Tensor], grads: list[list[Tensor]]) -> None:
        for p, piece in enumerate(update):
            (wanted,) = one.calculate_gradient([[row[p]] for row in grads])
            assert (piece - wanted).norm() <= 1e-9 * max(float(row[p].norm()) for row in grads)

    several = [drawn() for _ in range(3)]
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with use_backend("cuda"), torch.cuda.stream(side):
        for grads in several:
            check(operator.calculate_gradient(grads), grads)
        with synchronisation.none():
            update = operator.calculate_gradient(several[0])
        check(update, several[0])
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            update = operator.calculate_gradient(several[1])
        for _ in range(2):
            for row in several[1]:
                refill(row)
            check(operator.calculate_gradient(several[2]), several[2])  # in between
            graph.replay()
            check(update, several[1])


@pytest.mark.parametrize("m", [2, 3, 8, 9])
def test_cuda_graphs_replay_momentum_steps(m: int, backend: str) -> None:
    """The graph counts its own replays."""
    momentum, exact = PseudoMomentumOperator(m), reference.Momentum(m)
    some, every = torch.randn(1, 10_007, device="cuda"), torch.randn(m, 10_007, device="cuda")
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for indexes, rows in ((range(m), every), ([1], some)):
            momentum.calculate_gradient([*indexes], rows)
            exact.step([*indexes], rows.cpu())
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            update = momentum.calculate_gradient([1], some)
    for _ in range(3):
        refill(some)
        graph.replay()
        wanted = exact.step([1], some.cpu())
        assert (update.cpu() - wanted).norm() <= 1e-5 * wanted.norm()
    assert momentum.state_dict()["counts"] == exact.counts


@pytest.mark.parametrize("m", [2, 3, 8, 9, 32])
def test_a_graph_of_a_momentum_step_counts_its_replays(m: int, backend: str) -> None:
    rows = torch.randn(m, 10_007, device="cuda")
    captured, eager = PseudoMomentumOperator(m), PseudoMomentumOperator(m)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for operator in (captured, eager):
            operator.calculate_gradient(range(m), rows)
            operator.calculate_gradient(0, rows[0])
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            update = captured.calculate_gradient(0, rows[0])
    for _ in range(3):
        rows.normal_()
        graph.replay()
        with synchronisation.none():
            wanted = eager.calculate_gradient(0, rows[0])
        assert torch.equal(update, wanted)
    assert captured.state_dict()["counts"] == eager.state_dict()["counts"]


@pytest.mark.parametrize("m", [2, 3, 8, 9, 32])
def test_the_same_bits_a_hundred_times(m: int, backend: str) -> None:
    grads = gradients("vectors", m, 100_003)
    first = ConFIG_update(grads)
    assert all(torch.equal(ConFIG_update(grads), first) for _ in range(100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [2, 3, 8, 32])
def test_ten_million_elements(m: int, dtype: torch.dtype, backend: str) -> None:
    rows = torch.randn(m, 10_000_019, device="cuda").to(dtype)
    gram = ops.gram(rows)
    exact = sum(block.double() @ block.double().T for block in rows.split(1 << 18, dim=1))
    assert (gram - exact).norm() <= 1e-12 * exact.norm()
    update, c = ConFIG_update(rows), ops.coefficients(gram, dtype=dtype)
    for block, piece in zip(rows.split(1 << 18, dim=1), update.split(1 << 18), strict=True):
        wanted = c @ block.double()
        assert (piece.double() - wanted).norm() <= torch.finfo(dtype).eps * wanted.norm()


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "pytorch"])
def test_more_elements_than_32_bits_count(name: str) -> None:
    n = (1 << 31) + 5
    if torch.cuda.mem_get_info()[0] < 8 * n:
        pytest.skip("needs 16 GiB of free device memory")
    rows = torch.zeros(2, n, dtype=torch.bfloat16, device="cuda")
    rows[0, -1], rows[1, -1], rows[1, 0] = 3, 4, 5
    with use_backend(name):
        gram = ops.gram(rows)
        update = ConFIG_update(rows)
    assert gram.tolist() == [[9, 12], [12, 41]]
    wanted = ConFIG_update(rows[:, [0, -1]].double())
    assert (update[[0, -1]].double() - wanted).norm() <= 2 * torch.finfo(torch.bfloat16).eps * wanted.norm()
    assert not update[1:-1].any()


def test_another_stream(backend: str) -> None:
    grads = gradients("vectors", 3, 1_000_003)
    wanted = ConFIG_update(grads)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        update = ConFIG_update(grads)
    side.synchronize()
    assert torch.equal(update, wanted)


@pytest.mark.parametrize("form", ["tensor", "vectors", "parameters"])
@pytest.mark.skipif("cuda" not in BACKENDS, reason="no CUDA extension")
def test_one_compiled_call_on_any_stream_that_no_graph_captures(form: str) -> None:
    grads, side, graph = gradients(form, 3, 10_007), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with use_backend("cuda"):
        wanted = flat(ConFIG_update(grads))
        for stream in (torch.cuda.current_stream(), side):
            with torch.cuda.stream(stream):
                ConFIG_update(grads)  # gives the stream scratch memory
                update: Any = backends.short_update(grads, PLAIN)
            stream.synchronize()
            assert torch.equal(flat(update), wanted)
        with torch.cuda.graph(graph, stream=side):
            assert backends.short_update(grads, PLAIN) is None
            update = ConFIG_update(grads)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(flat(update), wanted)


@pytest.mark.filterwarnings("ignore")  # of the profiler, once in a process
@pytest.mark.skipif("cuda" not in BACKENDS, reason="no CUDA extension")
def test_small_updates_are_one_launch() -> None:
    grads = gradients("vectors", 3, 10_007)
    with use_backend("cuda"):
        ConFIG_update(grads)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            ConFIG_update(grads)
            torch.cuda.synchronize()
    kernels = [event.key for event in profile.key_averages() if event.device_type.name == "CUDA"]
    assert len([name for name in kernels if "Fill" not in name]) == 1  # tests fill what torch allocates
    assert any("whole" in name for name in kernels)
