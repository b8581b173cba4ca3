"""Layer normalisation with a custom backward pass, which saves memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sam_jax.ops.sums import plain_sum, weighted_sum

TWO_PASSES, ONE_PASS, CENTRED = "two passes", "one pass", "centred"


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: int = -1, statistics: str = TWO_PASSES
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the C channels, computed in float32.

    The backward pass keeps the input and two numbers per position; autodiff would keep float32 copies of all channels.

    Args:
      x: (..., C), or (..., C, S) with axis -2; scale, bias: (C,) float32.
      statistics: TWO_PASSES computes the variance exactly; ONE_PASS as E[x^2] - E[x]^2, which is enough for bfloat16;
        CENTRED assumes that the channels sum to zero and computes no mean.

    Returns:
      The shape and dtype of x.
    """
    return _forward(x, scale, bias, epsilon, axis, statistics)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis: int, statistics: str
) -> tuple[jax.Array, Any]:
    high = x.astype(jnp.float32)
    mean = jnp.zeros(()) if statistics == CENTRED else high.mean(axis=axis, keepdims=True)
    if statistics == ONE_PASS:
        variance = jnp.maximum(jnp.square(high).mean(axis=axis, keepdims=True) - jnp.square(mean), 0)
    else:
        variance = jnp.square(high - mean).mean(axis=axis, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    out = (high - mean) * inverse * _along(scale, axis) + _along(bias, axis)
    return out.astype(x.dtype), (x, scale, mean, inverse)


def _backward(
    epsilon: float, axis: int, statistics: str, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = kept
    slope = cotangent.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    share = scale / scale.size
    d_x = slope * _along(scale, axis) - normal * weighted_sum(slope * normal, share, axis)
    if statistics != CENTRED:
        d_x = d_x - weighted_sum(slope, share, axis)
    d_scale, d_bias = _over_positions(slope * normal, axis), _over_positions(slope, axis)
    return (d_x * inverse).astype(x.dtype), d_scale, d_bias


layer_norm.defvjp(_forward, _backward)


def _along(vector: jax.Array, axis: int) -> jax.Array:
    """(C,) shaped to broadcast against channels on that axis."""
    return vector if axis == -1 else vector[:, None]


def _over_positions(x: jax.Array, axis: int) -> jax.Array:
    """The sum over all axes except the channels: (C,)."""
    if axis == -1:  # sums over leading axes are slow on CPUs
        return plain_sum(x.reshape(-1, x.shape[-1]), 0)[0]
    return x.sum(axis=(*range(x.ndim - 2), x.ndim - 1))
