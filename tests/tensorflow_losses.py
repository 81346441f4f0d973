"""What fastconfig.tensorflow takes for losses, tape and variables; run by test_tensorflow.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from inputs import projected, relative_error

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from fastconfig.tensorflow import PCGrad, PPCGrad  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorFlow's own
MODES: dict[str, Callable[[Any], Any]] = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "values": lambda losses: dict(enumerate(losses)).values(),
    "generator": lambda losses: (loss for loss in losses),
    "stack": tf.stack,
    "identity of stack": lambda losses: tf.identity(tf.stack(losses)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("off", ["connected", 0.0, np.float32(0), "constant"])
def test_forms_of_losses(off: Any, form: str, mode: str) -> None:
    """A trunk with three heads, of which the last loss may be a number: a row of zeros, masked out."""
    trunk, *heads = (torch.randn(3, dtype=torch.float64) for _ in range(4))
    variables = [tf.Variable(vector.numpy()) for vector in (trunk, *heads)]
    signs, switched_off = (1, -1, 2), off != "connected"
    if switched_off and (off == "constant" or "stack" in form):
        off = tf.constant(0.0, tf.float64)

    def step() -> Any:
        with tf.GradientTape(persistent=True) as tape:
            losses = [
                tf.reduce_sum(sign * variables[0] * head)
                for sign, head in zip(signs, variables[1:], strict=True)
            ]
            if switched_off:
                losses[2] = off
            given = FORMS[form](losses)
        return PPCGrad("mean").pc_backward(tape, given, variables)

    found = torch.cat([torch.from_numpy(piece.numpy()) for piece in MODES[mode](step)()])
    rows, masks = torch.zeros(3, 4, 3, dtype=torch.float64), torch.zeros(3, 4, 3, dtype=torch.float64)
    for i, sign in enumerate(signs[: 2 if switched_off else 3]):
        rows[i, 0], rows[i, i + 1] = sign * heads[i], sign * trunk
        masks[i, 0] = masks[i, i + 1] = 1
    wanted = projected(rows.flatten(1), masks.flatten(1), "mean", None)
    assert relative_error(found, wanted) <= 1e-14


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_vector_that_is_no_stack(mode: str) -> None:
    """Its elements, as the list of them."""
    x, w = tf.random.normal((8, 4)), tf.Variable(tf.random.normal((4, 3)))
    pcgrad = PCGrad(shuffle=False)

    def step(listed: bool) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            losses = tf.reduce_mean((x @ w) ** 2, 0) * [1.0, 1.0, 0.0]
            if listed:
                losses = [losses[0], losses[1], losses[2]]
        return pcgrad.pc_backward(tape, losses, [w])[0]

    step = MODES[mode](step)
    assert np.array_equal(step(False).numpy(), step(True).numpy())


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        (None, "losses: got None, want a list of scalar losses"),
        ("ab", "losses: got 'ab', want a list of scalar losses"),
        ({"a": 1.0}, r"losses: got a dict, want a list of scalar losses: list\(its.values\(\)\)"),
        (1.0, "losses: got 1.0, want a list of scalar losses"),
        ([None], r"losses\[0\]: got None, want a scalar tensor, or a number for a loss without gradients"),
        ([1.0, "b"], r"losses\[1\]: got 'b', want a scalar tensor"),
        ([1.0, torch.tensor([1.0, 2.0])], r"losses\[1\]: got a Tensor, want a scalar tensor"),
        ([True], r"losses\[0\]: got True"),
        ([1.0, dict], r"losses\[1\]: got the class dict"),
        (tf.constant(1.0), r"losses: got a scalar EagerTensor, want a list: \[loss\]"),
    ],
)
def test_what_is_no_loss(losses: Any, wanted: str) -> None:
    with pytest.raises(TypeError, match=wanted):
        PCGrad().pc_backward(tf.GradientTape(persistent=True), losses, [tf.Variable(1.0)])


@pytest.mark.parametrize("method", [PCGrad().pc_backward, PPCGrad().pack_grad])
def test_what_is_no_tape_and_no_variables(method: Any) -> None:
    w = tf.Variable([1.0])
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(w)
    with pytest.raises(TypeError, match=r"tape: got None, want a tf\.GradientTape\(persistent=True\)"):
        method(None, [loss], [w])
    with pytest.raises(TypeError, match="variables: got a Sequential, want its trainable_variables"):
        method(tape, [loss], tf.keras.Sequential())
    with pytest.raises(TypeError, match=r"variables: got a \w+, want a list of tf\.Variable"):
        method(tape, [loss], w)
    with pytest.raises(TypeError, match=r"variables\[0\]: got 'w', want a tf\.Variable"):
        method(tape, [loss], ["w"])
    with pytest.raises(ValueError, match="losses: got no gradient of any variable"):
        method(tape, [0.0], [w])
    assert method(tape, iter([loss]), iter([w]))[0][0].numpy() == [1.0]


def test_what_is_mistaken() -> None:
    rows = [tf.ones(3)] * 3
    merge = PCGrad().project_conflicting
    for call, wanted in (
        (lambda: PCGrad(shuffle="no"), "shuffle: got 'no', want True or False"),
        (lambda: PCGrad(seed="a"), "seed: got 'a', want None or an integer"),
        (lambda: PCGrad(PPCGrad), "reduction: got <class"),
        (lambda: merge(rows, order="abc"), r"order: got dtype string, want \(3, 3\) integers"),
        (lambda: merge(rows, order=[[0.0, 1.0, 2.0]] * 3), "order: got dtype float32"),
        (lambda: merge(rows, order=[[0, 1], [1]]), "order: got a list"),
        (lambda: merge(rows, order=[[0, 1, 1]] * 3), "order: got .* want permutations of 0..2"),
        (lambda: merge(None), "grads: got None, want a list of vectors"),
        (lambda: merge({"a": rows[0]}), r"grads: got a dict, want a list of vectors: list\(its.values\(\)\)"),
        (lambda: merge([rows[0], None]), r"grads\[1\]: got None, want a vector"),
    ):
        with pytest.raises((TypeError, ValueError), match=wanted):
            call()
    assert merge(dict(enumerate(rows)).values()).shape == (3,)
