"""Softmax for attention trained in bfloat16."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from sam_jax.ops.sums import plain_sum


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def low_precision_softmax(logits: jax.Array, axis: int) -> jax.Array:
    """Softmax computed in float32; the result, and what the backward pass keeps, have the dtype of the logits.

    Autodiff would keep the float32 weights: with (T * heads, S) weights per prompt that is more memory traffic than the
    rest of the attention.
    """
    return jax.nn.softmax(logits.astype(jnp.float32), axis=axis).astype(logits.dtype)


def _forward(logits: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    weights = low_precision_softmax(logits, axis)
    return weights, weights


def _backward(axis: int, weights: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    high, slope = weights.astype(jnp.float32), cotangent.astype(jnp.float32)
    return ((high * (slope - plain_sum(high * slope, axis))).astype(weights.dtype),)


low_precision_softmax.defvjp(_forward, _backward)
