"""PCGrad and PPCGrad on the Gram matrix of a tape's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from .losses import gradients, listed_of, name_of, variable_list
from .rows import TINY, Rows

__all__ = ["PCGrad", "PPCGrad"]

_REDUCTIONS = ("mean", "sum")


class _Projection:
    """Base of both classes; a subclass computes coefficients from the Gram matrix."""

    _keywords: tuple[str, ...] = ()  # of project_conflicting and pc_backward

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction: got {reduction!r}, want 'mean' or 'sum'")
        self.reduction = reduction

    def pack_grad(
        self, tape: tf.GradientTape, losses: Any, variables: Iterable[tf.Variable]
    ) -> tuple[list[tf.Tensor], list[tf.TensorShape], list[tf.Tensor]]:
        """The gradient of every loss, flattened.

        Args:
            tape: a persistent tape that has watched the losses.
            losses: m losses in any iterable, or a tensor (m,) made by ``tf.stack``. A loss of several
                elements is summed, as in ``tape.gradient``; a number such as 0.0 has no gradients. For a
                tensor (m,) made in another way, a graph counts a variable as connected to all losses if it is
                to one.
            variables: the variables to differentiate by.

        Returns:
            m gradients (N,), with zeros where the loss does not depend on a variable, in the widest dtype of
            the variables; the variables' shapes; m masks (N,) of the same dtype, 1 where there was a
            gradient.

        Raises:
            TypeError: if ``losses`` or ``variables`` is nothing of the kind.
            ValueError: if one is empty, the tape is not persistent though there are several losses, or no
                variable is connected to any loss; naming the argument.
        """
        variables = variable_list(variables)
        columns = gradients(tape, losses, variables)
        dtype = _widest(variables)
        shapes = [variable.shape for variable in variables]
        rows = []
        masks = []
        for i in range(len(columns[0])):
            pieces = [column[i] for column in columns]
            flat = [
                tf.zeros([_size(variable)], dtype)
                if piece is None
                else tf.cast(tf.reshape(piece, [-1]), dtype)
                for piece, variable in zip(pieces, variables, strict=True)
            ]
            mask = [
                tf.fill([_size(variable)], tf.constant(0 if piece is None else 1, dtype))
                for piece, variable in zip(pieces, variables, strict=True)
            ]
            rows.append(tf.concat(flat, 0))
            masks.append(tf.concat(mask, 0))
        return rows, shapes, masks

    def project_conflicting(
        self, grads: Sequence[tf.Tensor], has_grads: Sequence[tf.Tensor] | None = None, **given: Any
    ) -> tf.Tensor:
        """Merge flattened gradients.

        Args:
            grads: m vectors (N,) of one floating dtype.
            has_grads: m masks (N,), 0 or 1: which elements a task has. Those that all have are averaged or
                added up by ``reduction``, the others are added up. All ones by default.

        Returns:
            (N,) in the dtype of the gradients.

        Raises:
            TypeError, ValueError: for a wrong argument, which the message names.
        """
        grads = _vectors("grads", grads)
        m = len(grads)
        rows = Rows(grads)
        masks = None if has_grads is None else _vectors("has_grads", has_grads, like=grads)
        self._refuse_unknown(given)
        share = 1
        if self.reduction == "sum":
            masks = None
        elif masks is None:
            share = m
        if m == 2:  # one order only
            return rows.merged_pair(share, masks)
        return rows.combine(self._coefficients(rows.gram(), m, **given) / share, masks)

    def pc_backward(
        self,
        tape: tf.GradientTape,
        losses: Any,
        variables: Iterable[tf.Variable],
        **given: Any,
    ) -> list[tf.Tensor]:
        """Compute the gradient of every loss and merge them.

        Args:
            tape, losses, variables: as for :meth:`pack_grad`.

        Returns:
            The merged gradient in the shapes and dtypes of the variables, with zeros for a variable that no
            loss depends on; for ``optimizer.apply_gradients(zip(grads, variables))``.

        Raises:
            TypeError, ValueError: as :meth:`pack_grad`.
        """
        self._refuse_unknown(given)
        variables = variable_list(variables)
        columns = gradients(tape, losses, variables)
        m = len(columns[0])
        # variables of one dtype, in which the same tasks have gradients, are merged as one vector
        groups: dict[tuple[Any, ...], list[int]] = {}
        for p, (column, variable) in enumerate(zip(columns, variables, strict=True)):
            tasks = tuple(i for i, piece in enumerate(column) if piece is not None)
            if tasks:
                groups.setdefault((variable.dtype, tasks), []).append(p)
        parts: list[Rows] = []
        gram = tf.zeros((m, m), tf.float64)
        for (_, tasks), places in groups.items():
            flat = [[tf.reshape(columns[p][i], [-1]) for p in places] for i in tasks]
            part = Rows([pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0) for pieces in flat])
            spread = tf.one_hot(tasks, m, dtype=tf.float64)  # (tasks, m)
            gram += tf.matmul(spread, tf.matmul(part.gram(), spread), transpose_a=True)
            parts.append(part)
        c = self._coefficients(gram, m, **given)
        merged: list[tf.Tensor | None] = [None] * len(variables)
        for ((_, tasks), places), part in zip(groups.items(), parts, strict=True):
            scale = m if self.reduction == "mean" and len(tasks) == m else 1
            vector = part.combine(tf.gather(c, tasks) / scale)
            pieces = tf.split(vector, [_size(variables[p]) for p in places])
            for p, piece in zip(places, pieces, strict=True):
                merged[p] = tf.reshape(piece, variables[p].shape)
        return [
            tf.zeros(variable.shape, variable.dtype) if piece is None else piece
            for piece, variable in zip(merged, variables, strict=True)
        ]

    def _refuse_unknown(self, given: dict[str, Any]) -> None:
        unknown = [name for name in given if name not in self._keywords]
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: {type(self).__name__} takes no such argument")

    def _coefficients(self, gram: tf.Tensor, m: int, **given: Any) -> tf.Tensor:
        """(m,) float64 from the Gram matrix (m, m): of the sum of all projected gradients."""
        raise NotImplementedError


class PPCGrad(_Projection):
    """PCGrad with every projection taken against the original gradients, so that order does not matter.

    g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, merged over i. A zero gradient conflicts
    with nothing; NaN or Inf in any gradient gives an all-NaN result.

    Args:
        reduction: "mean" or "sum" over the tasks, for elements that all tasks have.

    Raises:
        ValueError: for another reduction.
    """

    def _coefficients(self, gram: tf.Tensor, m: int, **given: Any) -> tf.Tensor:
        return _parallel(gram)


class PCGrad(_Projection):
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Take each task's gradient and go through the others in random order. Where it conflicts with another
    original gradient, remove its component along that one. A zero gradient conflicts with nothing; a NaN or
    Inf in any gradient makes the whole result NaN.

    ``project_conflicting`` and ``pc_backward`` also take ``order``, (m, m) integers: row i lists the tasks in
    the order in which gradient i is projected against them (i itself is skipped); it overrides ``shuffle``.

    The random order comes from ``tf.random``, as ``tf.random.set_seed`` has it; in XLA it is new in every
    call, but the same in every process. With a ``seed`` it comes from a ``tf.random.Generator``, which is a
    variable: make the object outside of a ``tf.function`` then, and within ``strategy.scope()`` if replicas
    are to use it.

    Args:
        reduction: "mean" or "sum" over the tasks, for elements that all tasks have.
        seed: of a random order of the object's own.
        shuffle: False takes the others in the order 0..m-1 instead.

    Raises:
        TypeError, ValueError: for another reduction, a seed that is no integer, and the like.
    """

    _keywords = ("order",)

    def __init__(self, reduction: str = "mean", *, seed: int | None = None, shuffle: bool = True) -> None:
        super().__init__(reduction)
        if not isinstance(shuffle, bool):
            raise TypeError(f"shuffle: got {name_of(shuffle)}, want True or False")
        if seed is not None and (isinstance(seed, bool) or not hasattr(seed, "__index__")):
            raise TypeError(f"seed: got {name_of(seed)}, want None or an integer")
        self.shuffle = shuffle
        # a generator is a variable, which a call of a tf.function with it takes 0.1 ms to find
        self._generator = tf.random.Generator.from_seed(seed) if shuffle and seed is not None else None

    def _coefficients(self, gram: tf.Tensor, m: int, *, order: Any = None, **given: Any) -> tf.Tensor:
        if m == 2:  # one order only
            return _parallel(gram)
        if order is None:
            return _in_turn(gram, self._others(m))
        return _in_turn(gram, _permutations(order, m))

    def _others(self, m: int) -> tf.Tensor:
        """(m, m - 1): for every task the others, in a uniformly random order, or ascending."""
        if not self.shuffle:
            return tf.constant([[j for j in range(m) if j != i] for i in range(m)], tf.int32)
        keys = tf.random if self._generator is None else self._generator
        ranks = tf.math.top_k(keys.uniform((m, m - 1)), m - 1).indices
        return ranks + tf.cast(ranks >= tf.range(m)[:, None], tf.int32)  # past the task itself


def _parallel(gram: tf.Tensor) -> tf.Tensor:
    """c_j = 1 - sum over i != j of min(G_ij, 0) / G_jj; NaN where G_jj is Inf or NaN."""
    norms = tf.linalg.diag_part(gram) + TINY
    return (norms - tf.reduce_sum(tf.minimum(gram, 0), 0)) / norms


def _in_turn(gram: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    """Algorithm 1 on coefficients: row i of a is task i's gradient in terms of the original ones."""
    m = gram.shape[0]
    norms = tf.linalg.diag_part(gram) + TINY
    places = tf.one_hot(order, m, dtype=gram.dtype)
    if order.shape[1] == m:
        places *= 1 - tf.eye(m, dtype=gram.dtype)[:, None]  # no step against the task itself
    a = tf.eye(m, dtype=gram.dtype)
    steps = tf.unstack(tf.gather(gram / norms[:, None], order), axis=1)  # of the next gradients with all
    for along, place in zip(steps, tf.unstack(places, axis=1), strict=True):
        a -= tf.minimum(tf.reduce_sum(a * along, 1, keepdims=True), 0) * place
    return tf.reduce_sum(a, 0) + 0 * norms  # NaN for a broken gradient


def _permutations(order: Any, m: int) -> tf.Tensor:
    """(m, m) int32, checked as far as it is known."""
    wanted = f"{(m, m)} integers"
    try:
        order = tf.convert_to_tensor(order)
    except (TypeError, ValueError):
        raise TypeError(f"order: got {name_of(order)}, want {wanted}") from None
    if not order.dtype.is_integer:
        raise TypeError(f"order: got dtype {order.dtype.name}, want {wanted}")
    if order.shape != (m, m):
        raise ValueError(f"order: got shape {tuple(order.shape)}, want {(m, m)}")
    known = tf.get_static_value(order)
    if known is not None and any(sorted(row) != list(range(m)) for row in known.tolist()):
        raise ValueError(f"order: got {known.tolist()}, want permutations of 0..{m - 1} as rows")
    return tf.cast(order, tf.int32)


def _vectors(name: str, given: Any, like: Sequence[tf.Tensor] | None = None) -> list[tf.Tensor]:
    """m vectors of one length, checked; a tensor (m, N) counts as m of them."""
    listed = tf.unstack(given) if tf.is_tensor(given) else listed_of(name, given, "a list of vectors")
    vectors = [_vector(f"{name}[{i}]", vector) for i, vector in enumerate(listed)]
    if like is not None and len(vectors) != len(like):
        raise ValueError(f"{name}: got {len(vectors)}, want {len(like)}: one a gradient")
    first = vectors[0] if like is None else like[0]
    for i, vector in enumerate(vectors):
        if vector.shape.rank != 1 or not vector.shape.is_compatible_with(first.shape):
            wanted = "a vector (N,)" if vector is first else f"{tuple(first.shape)}"
            raise ValueError(f"{name}[{i}]: got shape {tuple(vector.shape)}, want {wanted}")
        if like is None and (vector.dtype != first.dtype or not vector.dtype.is_floating):
            raise TypeError(f"{name}[{i}]: got dtype {vector.dtype.name}, want one floating dtype for all")
        if not (vector.dtype.is_floating or vector.dtype.is_integer or vector.dtype.is_bool):
            raise TypeError(f"{name}[{i}]: got dtype {vector.dtype.name}, want numbers 0 and 1, or bool")
    return vectors


def _vector(name: str, given: Any) -> tf.Tensor:
    try:
        return tf.convert_to_tensor(given)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {name_of(given)}, want a vector (N,)") from None


def _widest(variables: Sequence[tf.Variable]) -> tf.DType:
    """The dtype that holds all of them."""
    dtypes = {tf.as_dtype(variable.dtype) for variable in variables}  # Keras's are strings
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return tf.float64 if tf.float64 in dtypes else tf.float32


def _size(variable: tf.Variable) -> int:
    return int(variable.shape.num_elements())
