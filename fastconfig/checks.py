"""Checks of arguments, whose errors name the argument and show the right form."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Set
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .methods import METHODS


def got(value: object) -> str:
    """A value, as error messages name it."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (str, bool, Real)):
        return repr(value)
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', value)}"
    return f"a {type(value).__name__}"


def check_weight_model(model: Any) -> None:
    """Check that it has the method of a weight model.

    Raises:
        TypeError: for a class, a length model, a name, ...
    """
    if not _is_object(model, "get_weights"):
        wrong = "length_model" if _is_object(model, "rescale_length") else None
        _refuse_model("weight_model", model, "get_weights", "EqualWeight()", wrong)


def check_length_model(model: Any) -> None:
    """Check that it has the method of a length model.

    Raises:
        TypeError: for a class, a weight model, a name, ...
    """
    if not _is_object(model, "rescale_length"):
        wrong = "weight_model" if _is_object(model, "get_weights") else None
        _refuse_model("length_model", model, "rescale_length", "ProjectionLength()", wrong)


def check_operator(value: Any, argument: str) -> None:
    """Check that it has the method of a gradient operator.

    Raises:
        TypeError: for a class, a function, a name, a wrapper around an optimizer, one with momentum, ...
    """
    with_momentum = hasattr(value, "beta_1")  # another calculate_gradient: its gradients come with indexes
    if _is_object(value, "calculate_gradient") and not with_momentum:
        return
    if with_momentum:
        wanted = "an operator without momentum, such as ConFIGOperator()"
    elif isinstance(value, type) and hasattr(value, "calculate_gradient"):
        wanted = f"an object of it: {_call(value)}"
    else:
        name = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
        key = name.lower().replace("-", "").replace("_", "").removesuffix("update").removesuffix("operator")
        wanted = f"an operator, such as {METHODS.get(key, 'ConFIG')}Operator()"
    raise TypeError(f"{argument}: got {got(value)}, want {wanted}")


def check_recorder(value: Any) -> None:
    """Check that it is None or a loss recorder.

    Raises:
        TypeError: for a class, a number, a name, ...
    """
    if value is None or (_is_object(value, "record_loss") and hasattr(value, "num_losses")):
        return
    wanted = "None or a recorder, such as LatestLossRecorder(num_losses)"
    if isinstance(value, type) and hasattr(value, "record_loss"):
        wanted = f"an object of it: {_call(value)}"
    raise TypeError(f"loss_recorder: got {got(value)}, want {wanted}")


def check_flag(argument: str, value: Any) -> None:
    """Check that it is True or False.

    Raises:
        TypeError: for anything else, such as the argument that comes next.
    """
    if value is not True and value is not False and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError(f"{argument}: got {got(value)}, want True or False")


def check_rcond(rcond: Any) -> float | None:
    """Check that it is None or a number from 0 to 1, 1 excluded.

    Raises:
        TypeError, ValueError: for anything else.
    """
    return None if rcond is None else fraction("rcond", rcond, "None or a number from 0 to 1 (1 excluded)")


def check_generator(generator: Any) -> None:
    """Check that it is None or a generator on the CPU.

    Raises:
        TypeError, ValueError: for anything else, or another device.
    """
    wanted = "None or a torch.Generator on the CPU, such as torch.Generator().manual_seed(0)"
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {got(generator)}, want {wanted}")
    if generator.device.type != "cpu":
        raise ValueError(f"generator: got one on {generator.device}, want {wanted}")


def check_group(group: Any) -> None:
    """Check that it is None or a process group.

    Raises:
        TypeError: for anything else.
    """
    if group is None:
        return
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        wanted = "None or a torch.distributed.ProcessGroup that this process is in, such as mesh.get_group()"
        raise TypeError(f"process_group: got {got(group)}, want {wanted}")


def check_losses(losses: Any, m: int) -> None:
    """Check that there is one loss for each gradient.

    Raises:
        TypeError, ValueError: if not.
    """
    check_ordered("losses", losses, f"a sequence of {m} losses")
    try:
        count = len(losses)
    except TypeError:
        raise TypeError(
            f"losses: got a {type(losses).__name__} without length, want a sequence of {m} losses"
        ) from None
    if count != m:
        raise ValueError(f"losses: got {count}, want {m}: one a gradient")


def check_gram(gram: Any) -> None:
    """Check that it is a Gram matrix, or a batch of them.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if not isinstance(gram, Tensor):
        raise TypeError(f"gram: got a {type(gram).__name__}, want a tensor (m, m) or (B, m, m)")
    if gram.dim() not in (2, 3) or gram.shape[-1] != gram.shape[-2] or gram.shape[-1] == 0:
        raise ValueError(f"gram: got shape {tuple(gram.shape)}, want (m, m) or (B, m, m) with m >= 1")
    if not gram.is_floating_point():
        raise TypeError(f"gram: got dtype {gram.dtype}, want a floating-point dtype")


def losses_beside(losses: Any, gram: Tensor) -> Tensor:
    """Losses as a tensor in the dtype and on the device of G.

    Raises:
        TypeError, ValueError: if they are no numbers, or too many or few.
    """
    values = as_tensor("losses", losses, "(m,) or (B, m) real numbers", torch.float64).to(gram).detach()
    if values.shape != gram.shape[:-1]:
        raise ValueError(f"losses: got shape {tuple(values.shape)}, want {tuple(gram.shape[:-1])}")
    return values


def check_ordered(argument: str, values: Any, wanted: str) -> None:
    """Check that values have an order.

    Raises:
        TypeError: for a string, a dict, a set.
    """
    if isinstance(values, Mapping):
        raise TypeError(f"{argument}: got {got(values)}, want {wanted}: list(its.values())")
    if isinstance(values, (str, bytes, type)) or (isinstance(values, Set) and not hasattr(values, "mapping")):
        raise TypeError(f"{argument}: got {got(values)}, want {wanted}")


def number(argument: str, value: Any, wanted: str = "a number") -> float:
    """A real number, also NumPy's.

    Raises:
        TypeError: for anything else, such as a string, a bool or a tensor.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}: got {got(value)}, want {wanted}")
    return value  # type: ignore[return-value]


def not_negative(argument: str, value: Any, wanted: str = "a finite number >= 0") -> float:
    """A finite number from 0 on.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if not 0 <= number(argument, value, wanted) < float("inf"):
        raise ValueError(f"{argument}: got {value}, want {wanted}")
    return float(value)


def fraction(argument: str, value: Any, wanted: str = "a number from 0 to 1 (1 excluded)") -> float:
    """Check that it is a number from 0 to 1, 1 excluded.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if not 0 <= number(argument, value, wanted) < 1:
        raise ValueError(f"{argument}: got {value}, want {wanted}")
    return value


def whole(argument: str, value: Any) -> int:
    """An integer, also NumPy's.

    Raises:
        TypeError: for anything else, such as a bool or a float.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: got {got(value)}, want an integer") from None


def as_tensor(argument: str, value: Any, wanted: str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor as it is; a list or an array of numbers as a tensor of ``dtype``.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Tensor):
        odd = value.is_meta or value.is_quantized or value.is_complex()
        if odd or value.layout is not torch.strided:
            kind = "a tensor on meta" if value.is_meta else f"dtype {value.dtype}"
            kind = kind if odd else f"a tensor of {value.layout}"
            raise TypeError(f"{argument}: got {kind}, want {wanted}")
        return value
    try:
        if value is None:
            raise TypeError
        return torch.as_tensor(value, dtype=dtype, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{argument}: got {got(value)}, want {wanted}") from None


def as_order(order: Any) -> Tensor:
    """Orders of PCGrad as a tensor of integers.

    Raises:
        TypeError: if they are no integers.
    """
    wanted = "(m, m) or (B, m, m) integers"
    tensor = as_tensor("order", order, wanted)
    if tensor.is_floating_point() or tensor.dtype is torch.bool:
        raise TypeError(f"order: got dtype {tensor.dtype}, want {wanted}")
    return tensor


def abstract(owner: object, method: str) -> NotImplementedError:
    """The error of a base class's method that a subclass must override."""
    return NotImplementedError(f"{type(owner).__name__}.{method} must be implemented by the subclass.")


def _is_object(value: Any, method: str) -> bool:
    return not isinstance(value, type) and callable(getattr(value, method, None))


def _refuse_model(argument: str, model: Any, method: str, example: str, belongs: str | None) -> None:
    if belongs is not None:
        name = _call(type(model))
        wanted = f"it as the other argument: {belongs}={name}"
    elif isinstance(model, type) and hasattr(model, method):
        wanted = f"an object of it: {_call(model)}"
    else:
        wanted = f"an object with {method}, such as {example}"
    raise TypeError(f"{argument}: got {got(model)}, want {wanted}")


def _call(kind: type) -> str:
    """How to make an object of a class, for a message."""
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in several]
    return f"{kind.__name__}({', '.join(needed)})"
