"""Cheap random bits that do not depend on the mesh.

JAX's default generator (threefry) takes more than 100 integer operations per element, which makes a training step with
dropout on the decoder's pixels a fifth slower. XLA's `RngBitGenerator` is fast, but its bits depend on how an array is
sharded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

_SPLIT = 0x632BE5AB  # keeps the bits of split keys apart from those drawn with the key itself
_OTHER = 0x9E3779B9


class Dropping(NamedTuple):
    """Which elements of matrices (*leading, rows, columns) dropout keeps, as two words per matrix; see `chosen`.

    Attributes:
      words: (2, *leading, 1, 1) uint32.
      keep: the probability of an element to be kept, between 0 and 1.
    """

    words: jax.Array
    keep: float

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (*leading, rows, columns), with zeros in place of some elements and the others enlarged."""
        return jnp.where(self.kept(x.shape), (x / self.keep).astype(x.dtype), jnp.zeros_like(x))

    def kept(self, shape: tuple[int, ...]) -> jax.Array:
        """Bools of a shape (*leading, rows, columns); a matrix must have fewer than 2^32 elements."""
        *leading, rows, columns = shape
        assert math.prod((rows, columns)) < 2**32
        inner = (1,) * len(leading) + (rows, columns)
        row, column = (jax.lax.broadcasted_iota(jnp.uint32, inner, len(inner) - 2 + axis) for axis in (0, 1))
        return chosen(row * jnp.uint32(columns) + column, self.words[0], self.words[1], self.keep)


def draw(key: jax.Array, leading: tuple[int, ...]) -> jax.Array:
    """Two words for each of `leading` matrices, from the key's generator: (2, *leading, 1, 1) uint32."""
    # Without the barrier XLA draws the words again for every element.
    words: jax.Array = jax.lax.optimization_barrier(jax.random.bits(key, (2, *leading, 1, 1)))
    return words


def chosen(number: jax.Array, first: jax.Array, second: jax.Array, probability: float) -> jax.Array:
    """Bools, each True with a probability: the numbers of elements (uint32), hashed with two words of their matrix."""
    return _hash(_hash(number ^ first) ^ second) < jnp.uint32(min(round(probability * 2**32), 2**32 - 1))


def _hash(x: jax.Array) -> jax.Array:
    """A permutation of uint32 in which every bit depends on every other: C. Wellons's "lowbias32"."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def hash_key(seed: int) -> jax.Array:
    """A key for `jax.random` and Flax whose generator is a hash, for programs with many draws.

    XLA compiles a quarter of the instructions that JAX's default generator needs. Meant for initial weights: streams of
    2^32 numbers or more, and many millions of keys, repeat.
    """
    return jax.random.key(seed, impl=_HASHING)


def _words(key: jax.Array, shape: tuple[int, ...], first: int = 0) -> jax.Array:
    """A word for each element of a shape: its index, hashed with both words of the key."""
    assert math.prod(shape) < 2**32
    number = jnp.full(shape, first, jnp.uint32)
    for axis in range(len(shape)):  # axis by axis, so that each device only counts its own elements
        number += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1 :]))
    return _hash(_hash(number ^ key[0]) ^ key[1])


def _seed(seed: jax.Array) -> jax.Array:
    word = jnp.asarray(seed).astype(jnp.uint32)
    return jnp.stack([_hash(word ^ jnp.uint32(_OTHER)), _hash(word + jnp.uint32(_SPLIT))])


def _fold_in(key: jax.Array, data: int) -> jax.Array:
    word = jnp.asarray(data).astype(jnp.uint32)
    return jnp.stack(
        [_hash(_hash(word ^ key[0]) ^ key[1]), _hash(_hash((word + jnp.uint32(_OTHER)) ^ key[1]) ^ key[0])]
    )


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _words(key, (*shape, 2), _SPLIT)


def _draw(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    assert bit_width == 32, "only 32-bit numbers"
    return _words(key, shape)


_HASHING = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_draw, fold_in=_fold_in, name="hashing", tag="hsh"
)
