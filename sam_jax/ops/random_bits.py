"""Many random bits at little cost, the same whatever the mesh.

JAX's own generator (threefry) takes more than 100 integer operations an element, which adds a fifth to a training step
where a decoder's pixels have dropout. XLA's `RngBitGenerator` is quick, but what it draws depends on how an array is
split over devices.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def bernoulli(key: jax.Array, probability: float, shape: tuple[int, ...]) -> jax.Array:
    """True with a probability, for each element of a shape (..., M, N) alone; bool.

    JAX's generator draws two words for each matrix (M, N); each element's number within its matrix is hashed with the
    first and then with the second. A matrix must have fewer than 2^32 elements.
    """
    *leading, rows, columns = shape
    assert math.prod((rows, columns)) < 2**32
    # Without the barrier XLA draws the words again for every element.
    words = jax.lax.optimization_barrier(jax.random.bits(key, (2, *leading, 1, 1)))
    inner = (1,) * len(leading) + (rows, columns)
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, inner, len(inner) - 2 + axis) for axis in (0, 1))
    hashed = _hash(_hash((row * jnp.uint32(columns) + column) ^ words[0]) ^ words[1])
    return hashed < jnp.uint32(min(round(probability * 2**32), 2**32 - 1))


def _hash(x: jax.Array) -> jax.Array:
    """A permutation of uint32 in which every bit depends on every other: C. Wellons's "lowbias32"."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
