"""PCGrad and PPCGrad for TensorFlow against the float64 oracle: eager, tf.function and XLA."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import conflicting, projected, relative_error
from pairs import cases
from processes import python, with_torch
from torch import Tensor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

import fastconfig.tensorflow.rows  # noqa: E402
from fastconfig.tensorflow import PCGrad, PPCGrad  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own
LIMIT = 2e-6  # of the relative error in float32
MODES: dict[str, Callable[[Any], Any]] = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    tf.random.set_seed(seed)


def error(update: Any, wanted: Tensor) -> float:
    return relative_error(torch.from_numpy(update.numpy()), wanted)


def tensors(rows: Tensor) -> list[Any]:
    return [tf.constant(row.numpy()) for row in rows]


@pytest.mark.parametrize(
    ("m", "reduction", "mode"), cases([1, 2, 3, 5, 16], ["mean", "sum"], [*MODES], together=1)
)
def test_project_conflicting(m: int, reduction: str, mode: str) -> None:
    n = 1003
    rows = conflicting(m, n)
    masks = torch.ones(m, n)
    for i in range(m):
        masks[i, 100 * i : 100 * i + 50] = 0
    rows = rows * masks
    order = torch.rand(m, m).argsort(-1)
    pcgrad, ppcgrad = PCGrad(reduction), PPCGrad(reduction)
    for given in (None, masks, torch.ones(m, n)):
        has = None if given is None else tensors(given)
        wanted = projected(rows, given, reduction, order)
        run = MODES[mode](lambda grads, has: pcgrad.project_conflicting(grads, has, order=order.numpy()))
        assert error(run(tensors(rows), has), wanted) <= LIMIT
        run = MODES[mode](ppcgrad.project_conflicting)
        assert error(run(tensors(rows), has), projected(rows, given, reduction, None)) <= LIMIT


@pytest.mark.parametrize(("m", "compiler"), cases([1, 2, 3, 8], [True, False], together=1))
def test_many_elements(m: int, compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # chains of products, and a rest; blocks of tasks; without XLA too, which not every build has
    if not compiler:
        monkeypatch.setattr(fastconfig.tensorflow.rows, "_compiles", lambda: False)
    rows = conflicting(m, 300_001)
    order = torch.rand(m, m).argsort(-1)
    update = PCGrad("sum").project_conflicting(tensors(rows), order=order.numpy())
    assert error(update, projected(rows, None, "sum", order)) <= LIMIT
    masks = torch.ones(m, rows.shape[1])
    masks[0, :10] = 0
    update = tf.function(PPCGrad().project_conflicting)(tensors(rows * masks), tensors(masks))
    assert error(update, projected(rows * masks, masks, "mean", None)) <= LIMIT


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_many_elements_of_other_dtypes_in_xla(dtype: str) -> None:
    grads = [tf.cast(row, dtype) for row in tensors(conflicting(5, 20_003))]
    full = torch.stack([torch.from_numpy(tf.cast(grad, tf.float64).numpy()) for grad in grads])
    update = tf.function(PPCGrad().project_conflicting, jit_compile=True)(grads)
    assert update.dtype == dtype
    eps = {"float64": 1e-12, "float16": 2**-10}[dtype]
    assert error(tf.cast(update, tf.float64), projected(full, None, "mean", None)) <= eps


def test_a_length_that_is_not_known() -> None:
    rows = conflicting(3, 20_003)
    signature = [[tf.TensorSpec([None], tf.float32)] * 3]
    run = tf.function(PPCGrad().project_conflicting, input_signature=signature)
    assert error(run(tensors(rows)), projected(rows, None, "mean", None)) <= LIMIT


@pytest.mark.parametrize("m", [2, 3])
def test_sums_of_equal_products(m: int) -> None:
    # where every rounding goes the same way
    rows = torch.full((m, 300_001), 0.1) * torch.tensor([[1.0], [-0.7], [0.3]])[:m]
    rows[0, ::2] *= 3
    assert (
        error(PPCGrad("sum").project_conflicting(tensors(rows)), projected(rows, None, "sum", None)) <= LIMIT
    )


@pytest.mark.parametrize("n", [50, 200_003])
@pytest.mark.parametrize("m", [2, 4])
def test_norms_that_float32_products_do_not_hold(m: int, n: int) -> None:
    rows = conflicting(m, n) * torch.tensor([[1e-30], [1e30], [1e12], [1e-12]])[:m]
    wanted = projected(rows, None, "sum", None)
    assert error(PPCGrad("sum").project_conflicting(tensors(rows)), wanted) <= LIMIT


@pytest.mark.parametrize(("m", "n", "mode"), cases([2, 3], [50, 20_003], [*MODES], together=1))
def test_zero_and_broken_gradients(m: int, n: int, mode: str) -> None:
    rows = conflicting(m, n)
    rows[1] = 0
    methods = [PCGrad(shuffle=False), PPCGrad()]
    runs = [MODES[mode](method.project_conflicting) for method in methods]
    for run, order in zip(runs, (torch.arange(m).expand(m, m), None), strict=True):
        assert error(run(tensors(rows)), projected(rows, None, "mean", order)) <= LIMIT
    for other in (rows, torch.rand(m, n)):  # without conflict too
        for value in (torch.nan, torch.inf):
            other[0, n // 2] = value
            for run in runs:
                assert torch.isnan(torch.from_numpy(run(tensors(other)).numpy())).all()


@pytest.mark.parametrize("n", [50, 20_003])
@pytest.mark.parametrize("m", [2, 3])
def test_a_mean_whose_sum_float16_does_not_hold(m: int, n: int) -> None:
    rows = torch.full((m, n), 40_000.0)
    masks = torch.ones(m, n)
    masks[0, 0] = rows[0, 0] = 0
    rows[1:, 0] = 1
    grads, has = ([tf.cast(row, tf.float16) for row in tensors(given)] for given in (rows, masks))
    update = tf.cast(PPCGrad().project_conflicting(grads, has), tf.float64)
    assert error(update, projected(rows, masks, "mean", None)) <= 2**-10


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype: str) -> None:
    rows = conflicting(3, 500)
    grads = [tf.cast(row, dtype) for row in tensors(rows)]
    full = torch.stack([torch.from_numpy(tf.cast(grad, tf.float64).numpy()) for grad in grads])
    update = PPCGrad("sum").project_conflicting(grads)
    assert update.dtype == dtype
    eps = {"float64": 1e-12, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    assert error(tf.cast(update, tf.float64), projected(full, None, "sum", None)) <= eps


class Tasks:
    """m losses on a shared variable, one variable each, and one that none uses."""

    def __init__(self, m: int) -> None:
        self.shared = tf.Variable(tf.random.normal((7, 3)))
        self.own = [tf.Variable(tf.random.normal((4,))) for _ in range(m)]
        self.unused = tf.Variable(tf.ones((2, 2)))
        self.ways = [tf.random.normal((7, 3)) for _ in range(m)]

    @property
    def variables(self) -> list[Any]:
        return [self.own[0], self.shared, self.unused, *self.own[1:]]

    def losses(self) -> list[Any]:
        return [
            tf.reduce_sum(self.shared * way) + tf.reduce_sum(own**2) * tf.reduce_sum(self.shared)
            for way, own in zip(self.ways, self.own, strict=True)
        ]


def packed_rows(packed: list[Any]) -> Tensor:
    return torch.stack([torch.from_numpy(vector.numpy()) for vector in packed])


@pytest.mark.parametrize(("m", "reduction", "mode"), cases([1, 2, 4], ["mean", "sum"], [*MODES], together=1))
def test_pc_backward(m: int, reduction: str, mode: str) -> None:
    tasks = Tasks(m)
    order = torch.rand(m, m).argsort(-1)
    for method, given in ((PCGrad(reduction), {"order": order.numpy()}), (PPCGrad(reduction), {})):

        def step(method: Any = method, given: Any = given) -> Any:
            with tf.GradientTape(persistent=True) as tape:
                losses = tasks.losses()
            merged = method.pc_backward(tape, losses, tasks.variables, **given)
            packed, _, masks = method.pack_grad(tape, losses, tasks.variables)
            return merged, packed, masks, method.project_conflicting(packed, masks, **given)

        merged, packed, masks, update = MODES[mode](step)()
        rows, has = packed_rows(packed), packed_rows(masks)
        wanted = projected(rows, has, reduction, order if given else None)
        assert error(update, wanted) <= LIMIT
        assert error(tf.concat([tf.reshape(piece, [-1]) for piece in merged], 0), wanted) <= LIMIT
        assert [piece.shape for piece in merged] == [variable.shape for variable in tasks.variables]
        assert not tf.reduce_any(merged[2] != 0)


def test_pack_grad() -> None:
    tasks = Tasks(2)
    with tf.GradientTape(persistent=True) as tape:
        losses = tasks.losses()
    grads, shapes, has = PPCGrad().pack_grad(tape, losses, tasks.variables)
    assert [tuple(shape) for shape in shapes] == [(4,), (7, 3), (2, 2), (4,)]
    assert [tuple(vector.shape) for vector in (*grads, *has)] == [(33,)] * 4
    assert has[0].numpy().tolist() == [1.0] * 25 + [0.0] * 8
    assert has[1].numpy().tolist() == [0.0] * 4 + [1.0] * 21 + [0.0] * 4 + [1.0] * 4
    assert (grads[0].numpy()[4:25] == tape.gradient(losses[0], tasks.shared).numpy().ravel()).all()


def test_vector_losses_embeddings_and_mixed_dtypes() -> None:
    table = tf.Variable(tf.random.normal((10, 3)))
    half = tf.Variable(tf.cast(tf.random.normal((5,)), tf.float16))
    with tf.GradientTape(persistent=True) as tape:
        looked = tf.gather(table, [1, 3, 3])
        losses = [
            tf.reduce_sum(looked, 1),  # three elements
            tf.reduce_sum(looked**2) - tf.reduce_sum(looked) + tf.cast(tf.reduce_sum(half**2), tf.float32),
        ]
    assert isinstance(tape.gradient(losses[0], table), tf.IndexedSlices)
    merged = PPCGrad().pc_backward(tape, losses, [table, half])
    assert [piece.dtype for piece in merged] == [tf.float32, tf.float16]
    packed, _, masks = PPCGrad().pack_grad(tape, losses, [table, half])
    assert {vector.dtype for vector in packed} == {tf.float32}
    rows, has = packed_rows(packed), packed_rows(masks)
    wanted = projected(rows, has, "mean", None)
    assert error(tf.reshape(merged[0], [-1]), wanted[:30]) <= LIMIT
    assert error(tf.cast(merged[1], tf.float32), wanted[30:]) <= 2**-10


def test_variables_of_keras() -> None:
    network = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(4), tf.keras.layers.Dense(2)])
    half = tf.keras.layers.Dense(1, dtype="float16")
    with tf.GradientTape(persistent=True) as tape:
        outputs = network(tf.random.normal((8, 3)))
        extra = tf.cast(tf.reduce_mean(half(outputs)), tf.float32)
        losses = [tf.reduce_mean(outputs[:, 0] ** 2), extra - tf.reduce_mean(outputs[:, 0])]
    variables = [*network.trainable_variables, *half.trainable_variables]
    packed, shapes, masks = PPCGrad().pack_grad(tape, losses, variables)
    assert [tuple(shape) for shape in shapes] == [tuple(variable.shape) for variable in variables]
    wanted = projected(packed_rows(packed), packed_rows(masks), "mean", None)
    merged = PPCGrad().pc_backward(tape, losses, variables)
    flat = tf.concat([tf.cast(tf.reshape(piece, [-1]), tf.float32) for piece in merged], 0)
    assert error(flat, wanted) <= 2**-10


@pytest.mark.parametrize("n", [6, 20_003])
def test_in_a_replica(n: int) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        variable = tf.Variable(tf.random.normal((n,)))
        methods = [PCGrad(), PPCGrad()]

    @tf.function
    def step() -> Any:
        with tf.GradientTape(persistent=True) as tape:
            losses = [tf.reduce_sum(variable**2), -tf.reduce_sum(variable) * 3, tf.reduce_sum(variable)]
        return [method.pc_backward(tape, losses, [variable])[0] for method in methods]

    for update in strategy.run(step):
        assert tf.reduce_all(tf.math.is_finite(update))


def check_uniform(drawn: list[list[list[int]]]) -> None:
    """Whether 250 draws of the others of four tasks have all six orders equally often."""
    counts: dict[tuple[int, ...], int] = {}
    for others in drawn:
        for i, row in enumerate(others):
            assert sorted(row) == [j for j in range(4) if j != i]
            ranks = tuple(sorted(row).index(j) for j in row)
            counts[ranks] = counts.get(ranks, 0) + 1
    # chi squared with 5 degrees of freedom exceeds 25.7 once in 10,000 times; the seeds are fixed
    assert len(counts) == 6
    assert sum((count - 1000 / 6) ** 2 / (1000 / 6) for count in counts.values()) <= 25.7


def test_orders_are_uniform_over_seeds() -> None:
    drawn = [PCGrad(seed=seed)._others(4).numpy().tolist() for seed in range(250)]
    assert drawn == [PCGrad(seed=seed)._others(4).numpy().tolist() for seed in range(250)]
    check_uniform(drawn)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [None, 1])
def test_orders_change_from_call_to_call(seed: int | None, mode: str) -> None:
    method = PCGrad(seed=seed)
    draw = MODES[mode](lambda: method._others(6))
    assert len({tuple(draw().numpy().ravel().tolist()) for _ in range(5)}) == 5


@pytest.mark.parametrize("mode", MODES)
def test_orders_are_uniform_over_calls(mode: str) -> None:
    tf.random.set_seed(0)
    draw = MODES[mode](lambda: PCGrad()._others(4))
    check_uniform([draw().numpy().tolist() for _ in range(250)])


def test_orders_follow_the_seed_of_tensorflow() -> None:
    def drawn(seed: int) -> list[Any]:
        tf.random.set_seed(seed)
        method = PCGrad()
        return [method._others(6).numpy().tolist(), tf.function(lambda: method._others(6))().numpy().tolist()]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)
    assert PCGrad(shuffle=False)._others(3).numpy().tolist() == [[1, 2], [0, 2], [0, 1]]


def test_arguments_stay_as_they_are() -> None:
    rows = conflicting(3, 100)
    grads, masks = tensors(rows), tensors(torch.ones(3, 100))
    given = list(grads)
    PCGrad().project_conflicting(grads, masks)
    assert all(a is b for a, b in zip(grads, given, strict=True))
    assert torch.equal(packed_rows(grads), rows)


@pytest.fixture
def tape() -> tuple[Any, list[Any], Any]:
    variable = tf.Variable([1.0, 2.0])
    with tf.GradientTape(persistent=True) as tape:
        losses = [tf.reduce_sum(variable), tf.reduce_sum(variable**2)]
    return tape, losses, variable


@pytest.mark.parametrize("method", [PCGrad, PPCGrad])
def test_errors(method: Any, tape: tuple[Any, list[Any], Any]) -> None:
    recorded, losses, variable = tape
    with pytest.raises(ValueError, match="reduction: got 'median', want 'mean' or 'sum'"):
        method("median")
    with pytest.raises(ValueError, match="losses: got an empty list"):
        method().pc_backward(recorded, [], [variable])
    with pytest.raises(ValueError, match="variables: got an empty list"):
        method().pack_grad(recorded, losses, [])
    with pytest.raises(TypeError, match=r"losses: got a .*Tensor, want a list"):
        method().pc_backward(recorded, losses[0], [variable])
    with pytest.raises(ValueError, match="no gradient of any variable"):
        method().pc_backward(recorded, losses, [tf.Variable([1.0])])
    with tf.GradientTape() as short:
        loss = tf.reduce_sum(variable)
    with pytest.raises(ValueError, match=r"tape: got one that is not persistent .*persistent=True"):
        method().pc_backward(short, [loss, loss], [variable])
    vectors = [tf.ones(3), tf.ones(3)]
    with pytest.raises(ValueError, match="grads: got an empty list"):
        method().project_conflicting([])
    with pytest.raises(ValueError, match="has_grads: got 1, want 2"):
        method().project_conflicting(vectors, vectors[:1])
    with pytest.raises(ValueError, match=r"grads\[1\]: got shape \(4,\), want \(3,\)"):
        method().project_conflicting([tf.ones(3), tf.ones(4)])
    with pytest.raises(ValueError, match=r"has_grads\[1\]: got shape \(4,\), want \(3,\)"):
        method().project_conflicting(vectors, [tf.ones(3), tf.ones(4)])
    with pytest.raises(TypeError, match=r"has_grads\[1\]: got dtype string"):
        method().project_conflicting(vectors, [tf.ones(3), tf.constant(["a", "b", "c"])])
    with pytest.raises(TypeError, match=r"grads\[1\]: got dtype float64"):
        method().project_conflicting([tf.ones(3), tf.ones(3, tf.float64)])
    with pytest.raises(TypeError, match=r"speed: .* takes no such argument"):
        method().project_conflicting([tf.ones(3)] * 3, speed=1)
    if method is PCGrad:
        with pytest.raises(ValueError, match=r"order: got shape \(2, 2\), want \(3, 3\)"):
            method().project_conflicting([tf.ones(3)] * 3, order=[[0, 1], [1, 0]])


def test_imports_stay_apart() -> None:
    unread = "import sys; from unittest.mock import MagicMock; sys.modules['tensorflow'] = MagicMock()\n"
    code = "import sys, {}; sys.exit({!r} in sys.modules)"
    assert python(unread + code.format("fastconfig.tensorflow", "torch")).returncode == 0
    assert with_torch(code.format("fastconfig.pcgrad", "tensorflow")).returncode == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_from_where_the_object_is(duplicate: Callable[[Any], Any]) -> None:
    rows = tensors(conflicting(4, 20))
    for make in (PPCGrad, lambda: PCGrad("sum", shuffle=False), lambda: PCGrad(seed=3)):
        for used in (False, True):
            held: Any = make()
            if used:
                held.project_conflicting(rows)
            answers = [each.project_conflicting(rows).numpy() for each in (duplicate(held), held)]
            assert (answers[0] == answers[1]).all()


def test_the_page_of_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tensorflow.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(snippet, "docs/tensorflow.md", "exec"), names)
    assert all(torch.isfinite(torch.tensor(float(loss))) for loss in names["losses"])
