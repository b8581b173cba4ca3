"""Two dense layers with a GELU between, multiplied in 8-bit integers: twice the rate of bfloat16 on TPUs.

Activations are quantised dynamically, weights once. All values that one product sums over share a scale: a token's
input channels, one of `hidden_parts` of its hidden channels, and the weights of one output channel.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam_jax.ops.gelu import gelu
from sam_jax.ops.products import einsum

MOST_PARTS = 8


class Int8Dense(NamedTuple):
    """A dense layer: kernel (in, out) int8, scale and bias (out,) float32."""

    kernel: jax.Array
    scale: jax.Array
    bias: jax.Array


def int8_mlp(x: jax.Array, first: Int8Dense, second: Int8Dense) -> jax.Array:
    """second(gelu(first(x))) for tokens x (T, C), in their dtype."""
    hidden = first.kernel.shape[1]
    parts = hidden_parts(hidden)
    values, scale = quantize(x, -1)
    product = einsum("tc,ch->th", values, first.kernel, preferred_element_type=jnp.int32)
    activated = gelu((product.astype(jnp.float32) * scale * first.scale + first.bias).astype(x.dtype))
    values, scale = quantize(activated.reshape(len(x), parts, -1), -1)
    kernel = second.kernel.reshape(parts, hidden // parts, -1)
    product = einsum("tpk,pkc->tpc", values, kernel, preferred_element_type=jnp.int32)
    out = (product.astype(jnp.float32) * scale).sum(axis=1)
    return (out * second.scale + second.bias).astype(x.dtype)


def hidden_parts(hidden: int) -> int:
    """In how many parts hidden channels are taken: each has a multiple of 128 channels, or there is one."""
    return next(n for n in range(MOST_PARTS, 0, -1) if hidden % n == 0 and (n == 1 or hidden // n % 128 == 0))


def quantize(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """int8 values and float32 scales, whose `axis` has length 1; values * scales differs from x by at most half a
    scale."""
    high = x.astype(jnp.float32)
    scale = jnp.abs(high).max(axis=axis, keepdims=True) * (1 / 127)
    return jnp.round(high * (1.0 / jnp.where(scale > 0, scale, 1.0))).astype(jnp.int8), scale
