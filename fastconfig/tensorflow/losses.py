"""The gradients of several losses of a ``tf.GradientTape``, in whatever form the losses come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import tensorflow as tf

__all__ = ["gradients", "listed_of", "name_of", "variable_list"]

Piece = Any  # a dense tensor, or None where a variable is unconnected to a loss


def gradients(tape: tf.GradientTape, losses: Any, variables: Sequence[tf.Variable]) -> list[list[Piece]]:
    """The m gradients of every variable, dense; None where it is unconnected.

    Args:
        tape: persistent, if there are several losses.
        losses: m of them: any iterable, in which a number is a loss without gradients; or a tensor (m,), as
            ``tf.stack`` makes it.
        variables: a list.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if not callable(getattr(tape, "gradient", None)):
        raise TypeError(f"tape: got {name_of(tape)}, want a tf.GradientTape(persistent=True)")
    stacked, listed = _parts(losses) if tf.is_tensor(losses) else (None, _loss_list(losses))
    if len(listed) > 1 and not getattr(tape, "_persistent", True):
        raise ValueError(
            f"tape: got one that is not persistent for {len(listed)} losses, "
            "want tf.GradientTape(persistent=True)"
        )
    if stacked is None:
        none = [None] * len(variables)
        taken = [none if loss is None else tape.gradient(loss, variables) for loss in listed]
    else:
        taken = [_of_element(tape, stacked, i, variables) for i in listed]
    if all(piece is None for row in taken for piece in row):
        raise ValueError("losses: got no gradient of any variable, want at least one that is connected")
    dense = [[None if piece is None else tf.convert_to_tensor(piece) for piece in row] for row in taken]
    return [list(column) for column in zip(*dense, strict=True)]


def variable_list(variables: Any) -> list[tf.Variable]:
    """Variables of any iterable as a list.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    if hasattr(variables, "trainable_variables"):
        raise TypeError(f"variables: got {name_of(variables)}, want its trainable_variables")
    listed = listed_of("variables", variables, "a list of tf.Variable")
    for i, variable in enumerate(listed):
        if not hasattr(variable, "shape") or not hasattr(variable, "dtype"):
            raise TypeError(f"variables[{i}]: got {name_of(variable)}, want a tf.Variable")
    return listed


def _loss_list(losses: Any) -> list[Any]:
    """Tensors, and None for numbers, which have no gradient."""
    return [_tensor(i, loss) for i, loss in enumerate(listed_of("losses", losses, "a list of scalar losses"))]


def _tensor(i: int, loss: Any) -> Any:
    if tf.is_tensor(loss):
        return loss
    number = isinstance(loss, Real) and not isinstance(loss, bool)
    if number or (hasattr(loss, "__array__") and getattr(loss, "size", 0) == 1):  # NumPy's, of one element
        return None
    raise TypeError(
        f"losses[{i}]: got {name_of(loss)}, want a scalar tensor, or a number for a loss without gradients"
    )


def listed_of(argument: str, given: Any, wanted: str) -> list[Any]:
    """What an iterable has, in a list.

    Raises:
        TypeError, ValueError: for what is none, or is empty; naming the argument.
    """
    if isinstance(given, Mapping):
        raise TypeError(f"{argument}: got {name_of(given)}, want {wanted}: list(its.values())")
    if tf.is_tensor(given) or isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"{argument}: got {name_of(given)}, want {wanted}")
    listed = list(given)
    if not listed:
        raise ValueError(f"{argument}: got an empty list, want at least one")
    return listed


def _parts(losses: tf.Tensor) -> tuple[tf.Tensor | None, list[Any] | range]:
    """None and what was stacked, where the graph tells; else the tensor and a range of its elements."""
    if losses.shape.rank == 0:
        raise TypeError(f"losses: got a scalar {type(losses).__name__}, want a list: [loss]")
    if losses.shape.rank is None or not losses.shape[0]:
        raise ValueError(f"losses: got shape {losses.shape}, want (m,) with a known m of at least 1")
    if not tf.executing_eagerly():
        made = losses.op
        while made.type == "Identity":
            made = made.inputs[0].op
        if made.type == "Pack" and made.get_attr("axis") == 0:
            return None, list(made.inputs)
    return losses, range(losses.shape[0])


def _of_element(
    tape: tf.GradientTape, losses: tf.Tensor, i: int, variables: Sequence[tf.Variable]
) -> list[Piece]:
    """Gradients of one element of a tensor.

    The tape goes through all elements, of which the others have the factor zero. So a gradient of zeros only
    may come from them alone: it does where NaN as a factor of this element gives no NaN. A graph cannot be
    asked: it counts a variable as connected to all elements if it is to one.
    """
    row = tape.gradient(losses, variables, output_gradients=_factors(losses, i, 1.0))
    row = [None if piece is None else tf.convert_to_tensor(piece) for piece in row]
    if losses.shape[0] == 1 or not tf.executing_eagerly():
        return row
    if all(piece is None or tf.reduce_any(piece != 0) for piece in row):
        return row
    probes = tape.gradient(losses, variables, output_gradients=_factors(losses, i, float("nan")))
    return [
        piece if piece is not None and (tf.reduce_any(piece != 0) or _has_nan(probe)) else None
        for piece, probe in zip(row, probes, strict=True)
    ]


def _factors(losses: tf.Tensor, i: int, factor: float) -> tf.Tensor:
    one = tf.one_hot(i, losses.shape[0], on_value=tf.cast(factor, losses.dtype), dtype=losses.dtype)
    return tf.broadcast_to(tf.reshape(one, [-1] + [1] * (losses.shape.rank - 1)), tf.shape(losses))


def _has_nan(piece: Piece) -> bool:
    return bool(tf.reduce_any(tf.math.is_nan(tf.convert_to_tensor(piece))))


def name_of(value: Any) -> str:
    """What came, as messages call it."""
    if value is None or isinstance(value, (str, Real)):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
