"""Vectors of TensorFlow: their Gram matrix, their linear combinations, and what two of them merge to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

__all__ = ["TINY", "Rows"]

TINY = 2.0**-1022  # of float64, so that a zero gradient is divided by something
_LONG = 1 << 14  # elements beyond which compiling, once for every length, pays
_CHAIN = 32  # products of which XLA makes one sum without a loop
_BLOCK = 4  # vectors whose products are one computation, so that compiling it stays short

Product = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # half that of two vectors, in float64


class Rows:
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
        """(m, m) half the products, in float64."""
        if not self.compiled:
            if len(self.rows) <= _BLOCK:  # sums of products are quicker than a small matrix product
                return _products(self.rows, None, _short_product)
            stacked = tf.stack(self.rows)
            return tf.matmul(stacked, stacked, transpose_b=True) / 2
        parts = [self.rows[k : k + _BLOCK] for k in range(0, len(self.rows), _BLOCK)]
        blocks: dict[tuple[int, int], tf.Tensor] = {}
        for i, left in enumerate(parts):
            blocks[i, i] = _compiled_products(left, None, _long_product)
            for j in range(i):
                blocks[i, j] = _compiled_products(left, parts[j], _long_product)
                blocks[j, i] = tf.transpose(blocks[i, j])
        each = range(len(parts))
        return tf.concat([tf.concat([blocks[i, j] for j in each], 1) for i in each], 0)

    def merged_pair(self, share: int, masks: Sequence[tf.Tensor] | None = None) -> tf.Tensor:
        """(N,) what two of them merge to, divided by ``share``, and by 2 where both masks are 1."""
        merged, product = (_compiled_pair, _long_product) if self.compiled else (_merged_pair, _short_product)
        return merged(self.rows, product, share, masks, self.dtype)

    def combine(self, c: tf.Tensor, masks: Sequence[tf.Tensor] | None = None) -> tf.Tensor:
        """(N,) sum_i c_i g_i in the dtype of the vectors, divided by m where all masks are 1."""
        combined = _compiled_combination if self.compiled else _combination
        return combined(c, self.rows, masks, self.dtype)


def _products(
    left: Sequence[tf.Tensor],
    right: Sequence[tf.Tensor] | None,
    product: Product,
) -> tf.Tensor:
    """(len(left), len(right)) products; without a second list those of the first with itself."""
    found: dict[tuple[int, int], tf.Tensor] = {}
    others = left if right is None else right
    for i, a in enumerate(left):
        for j, b in enumerate(others):
            found[i, j] = found[j, i] if right is None and j < i else product(a, b)
    return tf.reshape(tf.stack(list(found.values())), (len(left), len(others)))


def _short_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """a . b / 2 of float64, by as few operations as there are; coefficients depend on ratios only."""
    return tf.nn.l2_loss(a) if a is b else tf.tensordot(a, b, 1) / 2


def _long_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """a . b / 2, for XLA: it makes a loop over threads and vector registers of the first sum only."""
    products = tf.cast(a, tf.float64) * tf.cast(b, tf.float64)
    whole = products.shape[0] // _CHAIN * _CHAIN
    chains = tf.reduce_sum(tf.reshape(products[:whole], (_CHAIN, -1)), 0)
    chains = tf.maximum(chains, chains.dtype.min)  # or XLA would merge both sums
    return (tf.reduce_sum(chains) + tf.reduce_sum(products[whole:])) / 2


def _merged_pair(
    rows: Sequence[tf.Tensor],
    product: Product,
    share: int,
    masks: Sequence[tf.Tensor] | None,
    dtype: tf.DType,
) -> tf.Tensor:
    """PCGrad of two tasks, in scalars: operations on matrices of four elements take time too."""
    conflict = tf.minimum(product(*rows), 0)
    norms = [product(row, row) + TINY for row in rows]
    c = [(norm - conflict) / norm for norm in norms]  # NaN for a broken gradient
    return _combination(c if share == 1 else [factor / share for factor in c], rows, masks, dtype)


def _combination(
    c: tf.Tensor | Sequence[tf.Tensor],
    rows: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor] | None,
    dtype: tf.DType,
) -> tf.Tensor:
    """sum_i c_i g_i in float64: a coefficient, the ratio of two norms, may be beyond float32."""
    factors = tf.unstack(c) if tf.is_tensor(c) else c
    update = tf.add_n([factor * tf.cast(row, tf.float64) for factor, row in zip(factors, rows, strict=True)])
    if masks is not None:
        m = len(masks)
        present = tf.add_n([tf.cast(tf.cast(mask, tf.bool), tf.float32) for mask in masks])
        tasks = present if m == 2 else m - m * (m - present)  # m where all have the element, else at most 1
        wide = tf.float64 if dtype == tf.float64 else tf.float32  # half the bytes, and a sum that it holds
        update = tf.cast(update, wide) / tf.cast(tf.maximum(tasks, 1), wide)
    return tf.cast(update, dtype)


_compiled_products = tf.function(_products, jit_compile=True, autograph=False)
_compiled_pair = tf.function(_merged_pair, jit_compile=True, autograph=False)
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
