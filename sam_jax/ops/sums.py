"""Sums along one axis, in the way that is fastest on each platform."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from sam_jax.ops.products import matmul


def weighted_sum(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """The sum of float32 `x` times `weights` (x.shape[axis],) along an axis, which keeps length 1.

    On CPUs it is a matrix product: in the backward passes of norms and broadcasts, XLA's sums are many times slower.
    Other platforms add: float32 products take a TPU's matrix unit six passes.
    """
    axis %= x.ndim
    total: jax.Array = jax.lax.platform_dependent(
        x, weights, cpu=partial(_product, axis=axis), default=partial(_sum, axis=axis)
    )
    return total


def _sum(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    return (x * weights.reshape(-1, *(1,) * (x.ndim - 1 - axis))).sum(axis=axis, keepdims=True)


def _product(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    before, length, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    if after:
        rows = jnp.broadcast_to(weights, (math.prod(before), 1, length))
        total = matmul(rows, x.reshape(math.prod(before), length, math.prod(after)))
    else:
        total = matmul(x.reshape(-1, length), weights[:, None])
    return total.reshape(*before, 1, *after)


def plain_sum(x: jax.Array, axis: int) -> jax.Array:
    """`weighted_sum` with weights of one."""
    return weighted_sum(x, jnp.ones(x.shape[axis], x.dtype), axis)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def repeat(x: jax.Array, times: int, axis: int) -> jax.Array:
    """`jnp.repeat` of an axis of length 1, with a fast backward pass."""
    return jnp.repeat(x, times, axis)


def _repeat_forward(x: jax.Array, times: int, axis: int) -> tuple[jax.Array, None]:
    return repeat(x, times, axis), None


def _repeat_backward(times: int, axis: int, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (plain_sum(cotangent.astype(jnp.float32), axis).astype(cotangent.dtype),)


repeat.defvjp(_repeat_forward, _repeat_backward)
