"""The dense layers of the image encoder's blocks, with the norm before them: norm1 and qkv, norm2 and the MLP.

Each function has an XLA form, written here, and a TPU kernel (block_dense_tpu.py) for bfloat16. `implementation`
chooses as in `kernel_choice.run_kernel`, but what the kernel does not support takes the XLA form in any case.
Gradients are those of the XLA form; with the kernel, nothing is kept for them but the operands. Tokens are
(B, n, L, C): n windows of L tokens, some of which may be padding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.ops import block_dense_tpu
from sam_jax.ops.batch_partition import split_over_batch
from sam_jax.ops.gelu import gelu
from sam_jax.ops.int8_mlp import Int8Dense, int8_mlp
from sam_jax.ops.kernel_choice import run_kernel
from sam_jax.ops.layer_norm import ONE_PASS, TWO_PASSES, layer_norm
from sam_jax.ops.products import matmul


class Norm(NamedTuple):
    """Scale and shift (C,), and what is added to the variance."""

    scale: jax.Array
    shift: jax.Array
    epsilon: float


class Layer(NamedTuple):
    """A dense layer: kernel (in, out) and bias (out,), in any dtype; they are computed with in that of the tokens."""

    kernel: jax.Array
    bias: jax.Array


def norm_dense(
    x: jax.Array, norm: Norm, layer: Layer, implementation: str, real: np.ndarray | None = None
) -> jax.Array:
    """The layer of norm(x); padding counts as zero, after the norm.

    Args:
      x: (B, n, L, C).
      layer: C -> F channels.
      implementation: "auto", "xla" or "pallas".
      real: (n, L) bool, False for padding; None if there is none.

    Returns:
      (B, n, L, F) in x's dtype.
    """

    def xla(x: jax.Array, scale: jax.Array, shift: jax.Array, *layer: jax.Array) -> jax.Array:
        y = _normalized(x, Norm(scale, shift, norm.epsilon))
        y = y if real is None else jnp.where(real[:, :, None], y, 0)
        return _dense(y.reshape(-1, x.shape[-1]), *layer).reshape(*x.shape[:-1], -1)

    return _run(block_dense_tpu.norm_dense, xla, x, norm, layer, implementation, real)


def residual_mlp(
    x: jax.Array,
    norm: Norm,
    first: Layer | Int8Dense,
    second: Layer | Int8Dense,
    implementation: str,
    real: np.ndarray | None = None,
) -> jax.Array:
    """x + second(gelu(first(norm(x)))).

    Args:
      x: (B, n, L, C).
      first: C -> F channels; second: F -> C. Both may be in 8-bit integers.
      implementation: "auto", "xla" or "pallas".
      real: (n, L) bool, False for padding, whose result does not matter; None if there is none.

    Returns:
      (B, n, L, C) in x's dtype.
    """

    int8 = isinstance(first, Int8Dense)

    def xla(x: jax.Array, scale: jax.Array, shift: jax.Array, *layers: jax.Array) -> jax.Array:
        y = _normalized(x, Norm(scale, shift, norm.epsilon)).reshape(-1, x.shape[-1])
        if int8:
            return x + int8_mlp(y, Int8Dense(*layers[:3]), Int8Dense(*layers[3:])).reshape(x.shape)
        return x + _dense(gelu(_dense(y, *layers[:2])), *layers[2:]).reshape(x.shape)

    tpu = block_dense_tpu.residual_int8_mlp if int8 else block_dense_tpu.residual_mlp
    return _run(tpu, xla, x, norm, (*first, *second), implementation, real)


def _normalized(x: jax.Array, norm: Norm) -> jax.Array:
    statistics = ONE_PASS if x.dtype == jnp.bfloat16 else TWO_PASSES  # see `layers.LayerNorm`
    return layer_norm(x, norm.scale, norm.shift, norm.epsilon, -1, statistics)


def _dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """One two-dimensional product, see `layers.dense`."""
    return matmul(x, kernel.astype(x.dtype)) + bias.astype(x.dtype)


def _run(
    tpu: Callable[..., Any],
    xla: Callable[..., jax.Array],
    x: jax.Array,
    norm: Norm,
    layers: tuple[jax.Array, ...],
    implementation: str,
    real: np.ndarray | None,
) -> jax.Array:
    operands = x, norm.scale, norm.shift, *layers
    padded = real is not None and not real.all()
    if not block_dense_tpu.supports(x.shape[2], x.shape[3], layers[0].shape[1], x.dtype, padded):
        return xla(*operands)

    def kernel(*operands: jax.Array, interpret: bool) -> jax.Array:
        run = partial(tpu, norm.epsilon, real, interpret)
        divided = split_over_batch(run, (True, *(False,) * (len(operands) - 1)), (True,))

        @jax.custom_vjp
        def differentiable(x: jax.Array, *layers: jax.Array) -> jax.Array:
            out: jax.Array = divided(x, *(_operand(layer, x.dtype) for layer in layers))[0]
            return out

        def backward(operands: tuple[jax.Array, ...], slope: jax.Array) -> tuple[jax.Array, ...]:
            slopes: tuple[jax.Array, ...] = jax.vjp(xla, *operands)[1](slope)
            return slopes

        differentiable.defvjp(lambda *operands: (differentiable(*operands), operands), backward)
        found: jax.Array = differentiable(*operands)
        return found

    out: jax.Array = run_kernel("dense layers", implementation, None, kernel, xla, *operands)
    return out


def _operand(layer: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Kernels in the tokens' dtype or int8, and vectors as float32 rows."""
    if layer.ndim == 2:
        return layer if layer.dtype == jnp.int8 else layer.astype(dtype)
    return layer.astype(jnp.float32)[None]
