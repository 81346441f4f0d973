"""A Keras network with two heads whose losses conflict, trained with PPCGrad under tf.function.

    pip install ".[tensorflow]"
    python examples/keras_ppcgrad.py [--method pcgrad|ppcgrad|sum] [--steps 300] [--seed 0]

Prints both losses before and after; "sum" is the plain gradient of the sum, for comparison.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from fastconfig.tensorflow import PCGrad, PPCGrad


def make_network() -> tf.keras.Model:
    """A trunk and two heads, one number each."""
    inputs = tf.keras.Input((2,))
    trunk = tf.keras.layers.Dense(32, activation="tanh")(inputs)
    trunk = tf.keras.layers.Dense(32, activation="tanh")(trunk)
    return tf.keras.Model(inputs, [tf.keras.layers.Dense(1)(trunk) for _ in range(2)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two heads with PCGrad or PPCGrad in Keras.")
    parser.add_argument("--method", choices=("pcgrad", "ppcgrad", "sum"), default="ppcgrad")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    tf.keras.utils.set_random_seed(arguments.seed)
    network = make_network()
    optimizer = tf.keras.optimizers.Adam(1e-2)
    methods = {"pcgrad": PCGrad(reduction="mean", seed=arguments.seed), "ppcgrad": PPCGrad(reduction="mean")}
    x = tf.random.uniform((512, 2), -1, 1)
    targets = [tf.sin(3 * x[:, :1]), 20 * tf.cos(3 * x[:, :1] + x[:, 1:])]

    def losses_of(outputs: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.reduce_mean((y - t) ** 2) for y, t in zip(outputs, targets, strict=True)]

    @tf.function
    def train_step() -> list[tf.Tensor]:
        variables = network.trainable_variables
        with tf.GradientTape(persistent=True) as tape:
            losses = losses_of(network(x, training=True))
            total = tf.add_n(losses)
        if arguments.method == "sum":
            grads = tape.gradient(total, variables)
        else:
            grads = methods[arguments.method].pc_backward(tape, losses, variables)
        optimizer.apply_gradients(zip(grads, variables, strict=True))
        return losses

    first = train_step()
    for _ in range(arguments.steps):
        train_step()
    last = losses_of(network(x))
    for name, before, after in zip(("small", "large"), first, last, strict=True):
        print(f"{name} task: loss {float(before):.4g} -> {float(after):.4g}")


if __name__ == "__main__":
    main()
