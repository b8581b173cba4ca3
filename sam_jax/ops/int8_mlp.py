"""Two dense layers with a GELU between, multiplied in 8-bit integers: twice the rate of bfloat16 on TPUs.

Activations are quantised dynamically, weights once. All values that one product sums over share a scale: a token's
input channels, one of `HIDDEN_PARTS` of its hidden channels, and the weights of one output channel.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam_jax.ops import int8_mlp_tpu
from sam_jax.ops.batch_partition import split_over_batch
from sam_jax.ops.gelu import gelu
from sam_jax.ops.int8_mlp_tpu import quantize
from sam_jax.ops.kernel_choice import run_kernel
from sam_jax.ops.products import einsum

HIDDEN_PARTS = 8  # at most; each has a multiple of 128 channels


class Int8Dense(NamedTuple):
    """A dense layer: kernel (in, out) int8, scale and bias (out,) float32."""

    kernel: jax.Array
    scale: jax.Array
    bias: jax.Array


def int8_mlp(x: jax.Array, first: Int8Dense, second: Int8Dense, implementation: str) -> jax.Array:
    """second(gelu(first(x))).

    Args:
      x: (B, n, L, C): n windows of L tokens. first: C -> hidden channels; second: hidden channels -> C.
      implementation: "auto", "xla" or "pallas", see `kernel_choice.run_kernel`.

    Returns:
      (B, n, L, C) in x's dtype.

    Raises:
      ValueError: implementation is "pallas" and the kernel does not support the shape.
    """
    hidden = first.kernel.shape[1]
    parts = next(n for n in range(HIDDEN_PARTS, 0, -1) if hidden % n == 0 and (n == 1 or hidden // n % 128 == 0))
    problem = int8_mlp_tpu.shape_problem(x.shape[2], x.shape[3], hidden)

    def kernel(*operands: jax.Array, interpret: bool) -> jax.Array:
        run = partial(int8_mlp_tpu.int8_mlp, parts, interpret)
        out: jax.Array = split_over_batch(run, (True, *(False,) * 6), (True,))(*operands)[0]
        return out

    name = "int8 MLP under attention"
    return run_kernel(name, implementation, problem, kernel, partial(_xla, parts), x, *first, *second)


def _xla(
    parts: int,
    x: jax.Array,
    kernel_1: jax.Array,
    scale_1: jax.Array,
    bias_1: jax.Array,
    kernel_2: jax.Array,
    scale_2: jax.Array,
    bias_2: jax.Array,
) -> jax.Array:
    values, scale = quantize(x, -1)
    product = einsum("bnlc,ch->bnlh", values, kernel_1, preferred_element_type=jnp.int32)
    hidden = gelu((product.astype(jnp.float32) * scale * scale_1 + bias_1).astype(x.dtype))
    values, scale = quantize(hidden.reshape(*x.shape[:3], parts, -1), -1)
    kernel_2 = kernel_2.reshape(parts, -1, x.shape[3])
    product = einsum("bnlpk,pkc->bnlpc", values, kernel_2, preferred_element_type=jnp.int32)
    out = (product.astype(jnp.float32) * scale).sum(axis=3)
    return (out * scale_2 + bias_2).astype(x.dtype)
