"""PCGrad and PPCGrad for TensorFlow: ``pack_grad``, ``project_conflicting`` and ``pc_backward``.

    pcgrad = PPCGrad(reduction="mean")
    with tf.GradientTape(persistent=True) as tape:
        losses = [loss_1, loss_2]
    grads = pcgrad.pc_backward(tape, losses, model.trainable_variables)
    optimizer.apply_gradients(zip(grads, model.trainable_variables))

The projections follow from the Gram matrix of the gradients alone (docs/design.md), so that the gradients are
read twice, and nothing of their size is made for each task. All runs eagerly, in ``tf.function`` and in
``tf.function(jit_compile=True)``. In a replica of a ``tf.distribute`` strategy the replica's own gradients
are merged; the optimizer adds up the replicas' results, as it does with any gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["PCGrad", "PPCGrad"]

_REDUCTIONS = ("mean", "sum")
_LONG = 1 << 14  # elements beyond which compiling, once for every length, pays
_CHAIN = 32  # products of which XLA makes one sum without a loop
_TINY = 2.0**-1022  # of float64, so that a zero gradient is divided by something
_BLOCK = 4  # tasks whose products are one computation, so that compiling it stays short


class _Projection:
    """What both have in common; a subclass says how coefficients follow from the Gram matrix."""

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction: got {reduction!r}, want 'mean' or 'sum'")
        self.reduction = reduction

    def pack_grad(
        self, tape: tf.GradientTape, losses: Sequence[tf.Tensor], variables: Sequence[tf.Variable]
    ) -> tuple[list[tf.Tensor], list[tf.TensorShape], list[tf.Tensor]]:
        """The gradient of every loss, flattened.

        Args:
            tape: a persistent tape that has watched the losses.
            losses: m losses; one with several elements is summed, as ``tape.gradient`` does.
            variables: of which the gradients are taken.

        Returns:
            m gradients (N,), zeros where a variable is unconnected to the loss, in the widest dtype of the
            variables; the variables' shapes; m masks (N,) of the same dtype, 1 where there was a gradient.

        Raises:
            TypeError: if ``losses`` or ``variables`` is no sequence.
            ValueError: if one is empty, the tape is not persistent though there are several losses, or no
                variable is connected to any loss; naming the argument.
        """
        columns = _gradients(tape, losses, variables)
        dtype = _widest(variables)
        shapes = [variable.shape for variable in variables]
        rows = []
        masks = []
        for i in range(len(losses)):
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
            TypeError, ValueError: naming the argument, what came and what is wanted.
        """
        grads = _vectors("grads", grads)
        m = len(grads)
        rows = _Rows(grads)
        masks = None if has_grads is None else _vectors("has_grads", has_grads, like=grads)
        c = self._coefficients(rows.gram(), m, **given)
        if self.reduction == "sum" or m == 1:
            return rows.combine(c)
        return rows.combine(c / m) if masks is None else rows.combine(c, masks)

    def pc_backward(
        self,
        tape: tf.GradientTape,
        losses: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        **given: Any,
    ) -> list[tf.Tensor]:
        """Take the losses' gradients and merge them.

        Args:
            tape, losses, variables: as for :meth:`pack_grad`.

        Returns:
            The merged gradient in the shapes and dtypes of the variables, zeros for a variable that no loss
            is connected to; for ``optimizer.apply_gradients(zip(grads, variables))``.

        Raises:
            TypeError, ValueError: as :meth:`pack_grad`.
        """
        columns = _gradients(tape, losses, variables)
        m = len(losses)
        # variables of one dtype, in which the same tasks have gradients, are merged as one vector
        groups: dict[tuple[Any, ...], list[int]] = {}
        for p, (column, variable) in enumerate(zip(columns, variables, strict=True)):
            tasks = tuple(i for i, piece in enumerate(column) if piece is not None)
            if tasks:
                groups.setdefault((variable.dtype, tasks), []).append(p)
        parts: list[_Rows] = []
        gram = tf.zeros((m, m), tf.float64)
        for (_, tasks), places in groups.items():
            flat = [[tf.reshape(columns[p][i], [-1]) for p in places] for i in tasks]
            part = _Rows([pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0) for pieces in flat])
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

    def _coefficients(self, gram: tf.Tensor, m: int, **given: Any) -> tf.Tensor:
        """(m,) float64 from the Gram matrix (m, m): of the sum of all projected gradients."""
        raise NotImplementedError


class PPCGrad(_Projection):
    """PCGrad with all projections taken against the original gradients, so without an order.

    g_i - sum over j with g_i . g_j < 0 of (g_i . g_j / |g_j|^2) g_j, merged over i. A zero gradient conflicts
    with nothing; NaN or Inf in any gradient gives an all-NaN result.

    Args:
        reduction: "mean" or "sum" over the tasks, of elements that all of them have.

    Raises:
        ValueError: for another reduction.
    """

    def _coefficients(self, gram: tf.Tensor, m: int, **given: Any) -> tf.Tensor:
        if given:
            raise TypeError(f"{', '.join(given)}: PPCGrad takes no such argument")
        return _parallel(gram)


class PCGrad(_Projection):
    """PCGrad (Yu et al. 2020, arXiv:2001.06782, algorithm 1).

    Each task's gradient in turn, over the others in random order, loses its component along every original
    gradient that it, as projected so far, conflicts with. A zero gradient conflicts with nothing; NaN or Inf
    in any gradient gives an all-NaN result.

    ``project_conflicting`` and ``pc_backward`` also take ``order``, (m, m) integers: row i lists the tasks in
    the order in which gradient i is projected against them (i itself is skipped); it overrides ``shuffle``.

    The random order comes from a ``tf.random.Generator``, which is a variable: make the object outside of a
    ``tf.function``, and within ``strategy.scope()`` if replicas are to use it.

    Args:
        reduction: "mean" or "sum" over the tasks, of elements that all of them have.
        seed: of the random order; a random one by default.
        shuffle: False takes the others in the order 0..m-1 instead.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, reduction: str = "mean", *, seed: int | None = None, shuffle: bool = True) -> None:
        super().__init__(reduction)
        self.shuffle = shuffle
        self._generator = None
        if shuffle:
            made = tf.random.Generator
            self._generator = made.from_non_deterministic_state() if seed is None else made.from_seed(seed)

    def _coefficients(self, gram: tf.Tensor, m: int, *, order: Any = None, **given: Any) -> tf.Tensor:
        if given:
            raise TypeError(f"{', '.join(given)}: PCGrad takes no such argument")
        if m == 2:  # one order only
            return _parallel(gram)
        if order is None:
            return _in_turn(gram, self._others(m))
        order = tf.cast(order, tf.int32)
        if order.shape != (m, m):
            raise ValueError(f"order: got shape {tuple(order.shape)}, want {(m, m)}")
        return _in_turn(gram, order)

    def _others(self, m: int) -> tf.Tensor:
        """(m, m - 1): for every task the others, in a uniformly random order, or ascending."""
        if self._generator is None:
            return tf.constant([[j for j in range(m) if j != i] for i in range(m)], tf.int32)
        ranks = tf.argsort(self._generator.uniform((m, m - 1)), axis=1)
        return ranks + tf.cast(ranks >= tf.range(m)[:, None], tf.int32)  # past the task itself


def _parallel(gram: tf.Tensor) -> tf.Tensor:
    """c_j = 1 - sum over i != j of min(G_ij, 0) / G_jj; NaN where G_jj is Inf or NaN."""
    norms = tf.linalg.diag_part(gram) + _TINY
    return (norms - tf.reduce_sum(tf.minimum(gram, 0), 0)) / norms


def _in_turn(gram: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    """Algorithm 1 on coefficients: row i of a is task i's gradient in terms of the original ones."""
    m = gram.shape[0]
    norms = tf.linalg.diag_part(gram) + _TINY
    places = tf.one_hot(order, m, dtype=gram.dtype)
    if order.shape[1] == m:
        places *= 1 - tf.eye(m, dtype=gram.dtype)[:, None]  # no step against the task itself
    a = tf.eye(m, dtype=gram.dtype)
    steps = tf.unstack(tf.gather(gram / norms[:, None], order), axis=1)  # of the next gradients with all
    for along, place in zip(steps, tf.unstack(places, axis=1), strict=True):
        a -= tf.minimum(tf.reduce_sum(a * along, 1, keepdims=True), 0) * place
    return tf.reduce_sum(a, 0) + 0 * norms  # NaN for a broken gradient


class _Rows:
    """m vectors of one length and dtype, of which the Gram matrix and linear combinations are taken.

    Long ones stay as they are: XLA makes single loops of products and combinations, without temporaries.
    Short ones, for which compiling does not pay, become float64 first.
    """

    def __init__(self, vectors: Sequence[tf.Tensor]) -> None:
        n = vectors[0].shape[0]
        self.dtype = vectors[0].dtype
        self.compiled = n is not None and n > _LONG and _compiles()
        self.rows = vectors if self.compiled else [tf.cast(vector, tf.float64) for vector in vectors]

    def gram(self) -> tf.Tensor:
        """(m, m) float64 products."""
        if not self.compiled:
            if len(self.rows) <= _BLOCK:  # sums of products are quicker than a small matrix product
                return _products(self.rows, None, lambda a, b: tf.reduce_sum(a * b))
            stacked = tf.stack(self.rows)
            return tf.matmul(stacked, stacked, transpose_b=True)
        parts = [self.rows[k : k + _BLOCK] for k in range(0, len(self.rows), _BLOCK)]
        blocks: dict[tuple[int, int], tf.Tensor] = {}
        for i, left in enumerate(parts):
            blocks[i, i] = _compiled_products(left, None, _long_product)
            for j in range(i):
                blocks[i, j] = _compiled_products(left, parts[j], _long_product)
                blocks[j, i] = tf.transpose(blocks[i, j])
        each = range(len(parts))
        return tf.concat([tf.concat([blocks[i, j] for j in each], 1) for i in each], 0)

    def combine(self, c: tf.Tensor, masks: Sequence[tf.Tensor] | None = None) -> tf.Tensor:
        """(N,) sum_i c_i g_i in the dtype of the vectors, divided by m where all masks are 1."""
        combined = _compiled_combination if self.compiled else _combination
        return combined(c, self.rows, masks, self.dtype)


def _products(
    left: Sequence[tf.Tensor],
    right: Sequence[tf.Tensor] | None,
    product: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """(len(left), len(right)) products; without a second list those of the first with itself."""
    found: dict[tuple[int, int], tf.Tensor] = {}
    others = left if right is None else right
    for i, a in enumerate(left):
        for j, b in enumerate(others):
            found[i, j] = found[j, i] if right is None and j < i else product(a, b)
    return tf.reshape(tf.stack(list(found.values())), (len(left), len(others)))


def _long_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """a . b in float64, for XLA: it makes a loop over threads and vector registers of the first sum only."""
    products = tf.cast(a, tf.float64) * tf.cast(b, tf.float64)
    whole = products.shape[0] // _CHAIN * _CHAIN
    chains = tf.reduce_sum(tf.reshape(products[:whole], (_CHAIN, -1)), 0)
    chains = tf.maximum(chains, chains.dtype.min)  # or XLA would merge both sums
    return tf.reduce_sum(chains) + tf.reduce_sum(products[whole:])


def _combination(
    c: tf.Tensor, rows: Sequence[tf.Tensor], masks: Sequence[tf.Tensor] | None, dtype: tf.DType
) -> tf.Tensor:
    """sum_i c_i g_i in float64: a coefficient, the ratio of two norms, may be beyond float32."""
    update = tf.add_n(
        [factor * tf.cast(row, c.dtype) for factor, row in zip(tf.unstack(c), rows, strict=True)]
    )
    if masks is not None:
        m = len(masks)
        update = tf.where(tf.add_n([tf.cast(mask, tf.float32) for mask in masks]) == m, update / m, update)
    return tf.cast(update, dtype)


_compiled_products = tf.function(_products, jit_compile=True, autograph=False)
_compiled_combination = tf.function(_combination, jit_compile=True, autograph=False)


@functools.cache
def _compiles() -> bool:
    """Whether this build of TensorFlow has XLA for its default device."""
    try:
        with tf.init_scope():
            tf.function(tf.identity, jit_compile=True, autograph=False)(tf.zeros(()))
    except tf.errors.OpError:
        return False
    return True


def _gradients(
    tape: tf.GradientTape, losses: Sequence[tf.Tensor], variables: Sequence[tf.Variable]
) -> list[list[tf.Tensor | None]]:
    """The m gradients of every variable, dense; None where it is unconnected."""
    for name, given in (("losses", losses), ("variables", variables)):
        if tf.is_tensor(given) or not isinstance(given, Sequence):
            raise TypeError(f"{name}: got a {type(given).__name__}, want a list")
        if not given:
            raise ValueError(f"{name}: got an empty list, want at least one")
    if len(losses) > 1 and not getattr(tape, "_persistent", True):
        raise ValueError(
            f"tape: got one that is not persistent for {len(losses)} losses, "
            "want tf.GradientTape(persistent=True)"
        )
    taken = [tape.gradient(loss, variables) for loss in losses]
    if all(piece is None for row in taken for piece in row):
        raise ValueError("losses: got no gradient of any variable, want at least one that is connected")
    dense = [[None if piece is None else tf.convert_to_tensor(piece) for piece in row] for row in taken]
    return [list(column) for column in zip(*dense, strict=True)]


def _vectors(name: str, given: Any, like: Sequence[tf.Tensor] | None = None) -> list[tf.Tensor]:
    """m vectors of one length, checked; a tensor (m, N) counts as m of them."""
    if not tf.is_tensor(given) and not isinstance(given, Sequence):
        raise TypeError(f"{name}: got a {type(given).__name__}, want a list of vectors")
    vectors = tf.unstack(given) if tf.is_tensor(given) else [tf.convert_to_tensor(v) for v in given]
    if not vectors:
        raise ValueError(f"{name}: got an empty list, want at least one vector")
    if like is not None and len(vectors) != len(like):
        raise ValueError(f"{name}: got {len(vectors)}, want {len(like)}: one a gradient")
    first = vectors[0] if like is None else like[0]
    for i, vector in enumerate(vectors):
        if vector.shape.rank != 1 or not vector.shape.is_compatible_with(first.shape):
            wanted = "a vector (N,)" if vector is first else f"{tuple(first.shape)}"
            raise ValueError(f"{name}[{i}]: got shape {tuple(vector.shape)}, want {wanted}")
        if like is None and (vector.dtype != first.dtype or not vector.dtype.is_floating):
            raise TypeError(f"{name}[{i}]: got dtype {vector.dtype.name}, want one floating dtype for all")
    return vectors


def _widest(variables: Sequence[tf.Variable]) -> tf.DType:
    """The dtype that holds all of them."""
    dtypes = {tf.as_dtype(variable.dtype) for variable in variables}  # Keras's are strings
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return tf.float64 if tf.float64 in dtypes else tf.float32


def _size(variable: tf.Variable) -> int:
    return int(variable.shape.num_elements())
