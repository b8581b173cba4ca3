"""The 8-bit integer MLP as one TPU kernel: weights stay in VMEM, and hidden channels are never written to HBM."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam_jax.ops.attention_tiles import LANES
from sam_jax.ops.attention_tpu import NN, VMEM_LIMIT
from sam_jax.ops.gelu import gelu_in_kernel
from sam_jax.ops.products import dot_general

MAX_ROWS = 256
MAX_WEIGHTS = 24 * 2**20  # bytes; VMEM holds two copies of them


def shape_problem(length: int, channels: int, hidden: int) -> str | None:
    """Why the kernel does not support tokens (length, channels) with `hidden` channels; None if it does."""
    if channels % LANES or hidden % LANES:
        return f"{channels} and {hidden} channels are not both multiples of {LANES}"
    if length > MAX_ROWS and length % MAX_ROWS:
        return f"{length} tokens are more than {MAX_ROWS} and not a multiple of it"
    if 2 * channels * hidden > MAX_WEIGHTS:
        return f"{channels} x {hidden} weights take more than {MAX_WEIGHTS >> 20} MiB"
    return None


def int8_mlp(parts: int, interpret: bool, x: jax.Array, *layers: jax.Array) -> tuple[jax.Array]:
    """Applies two layers to tokens x (B, n, L, C); `layers` are the int8 kernel and float32 scale and bias of each.

    Returns (B, n, L, C) in x's dtype, in a tuple of one.
    """
    b, n, length, channels = x.shape
    rows, hidden = min(length, MAX_ROWS), layers[0].shape[1]
    columns = [layer if layer.ndim == 2 else layer[None] for layer in layers]
    tokens = pl.BlockSpec((1, 1, rows, channels), lambda i, j, k: (i, j, k, 0))
    out = pl.pallas_call(
        partial(_kernel, parts),
        name=f"int8_mlp_{rows}x{channels}x{hidden}",
        grid=(b, n, length // rows),
        in_specs=[tokens, *(pl.BlockSpec(layer.shape, lambda i, j, k: (0, 0)) for layer in columns)],
        out_specs=tokens,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * x.size * hidden,
            transcendentals=x.size // channels * hidden,
            bytes_accessed=2 * x.size * x.dtype.itemsize + 2 * channels * hidden,
        ),
        interpret=interpret,
    )(x, *columns)
    return (out,)


def _kernel(
    parts: int,
    x_ref: Any,
    kernel_1: Any,
    scale_1: Any,
    bias_1: Any,
    kernel_2: Any,
    scale_2: Any,
    bias_2: Any,
    out_ref: Any,
) -> None:
    values, scale = quantize(x_ref[0, 0], 1)
    width = kernel_1.shape[1] // parts
    total: Any = 0.0
    for part in range(parts):
        own = slice(part * width, (part + 1) * width)
        hidden = _dot(values, kernel_1[:, own]) * scale * scale_1[:, own] + bias_1[:, own]
        again, again_scale = quantize(gelu_in_kernel(hidden, x_ref.dtype), 1)
        total = total + _dot(again, kernel_2[own]) * again_scale
    out_ref[0, 0] = (total * scale_2[:] + bias_2[:]).astype(out_ref.dtype)


def quantize(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """int8 values and float32 scales, whose `axis` has length 1; values * scales differs from x by at most half a
    scale."""
    high = x.astype(jnp.float32)
    scale = jnp.abs(high).max(axis=axis, keepdims=True) * (1 / 127)
    return jnp.round(high * (1.0 / jnp.where(scale > 0, scale, 1.0))).astype(jnp.int8), scale


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return dot_general(a, b, NN, preferred_element_type=jnp.int32).astype(jnp.float32)
