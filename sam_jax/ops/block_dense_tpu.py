"""The dense layers of a block with the norm before them as TPU kernels: weights stay in VMEM, and neither normalised
tokens nor hidden channels are written to HBM.

A window with padding first brings its real tokens together, by a product with ones and zeros, and puts the results back
by another, so that a grid of 64 x 64 tokens in windows of 14 x 14 is multiplied as 4144 tokens in place of 4900.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam_jax.ops.attention_tiles import LANES
from sam_jax.ops.attention_tpu import NN, TN, VMEM_LIMIT, dot
from sam_jax.ops.gelu import gelu_in_kernel
from sam_jax.ops.int8_mlp import hidden_parts, quantize
from sam_jax.ops.products import dot_general

MAX_ROWS = 256
MAX_WEIGHTS = 28 * 2**20  # bytes, for which VMEM has room beside a step's tokens
TILE = 16  # rows of bfloat16


def supports(length: int, channels: int, features: int, dtype: Any, padded: bool = False) -> bool:
    """Whether the kernels support tokens (length, channels) with `features` channels behind the first layer.

    Windows with padding (`padded`) have to fit into one step.
    """
    in_steps = length <= MAX_ROWS or (length % MAX_ROWS == 0 and not padded)
    fits = channels % LANES == 0 and features % LANES == 0 and 4 * channels * features <= MAX_WEIGHTS
    return bool(dtype == jnp.bfloat16 and in_steps and fits)


def norm_dense(
    epsilon: float, real: np.ndarray | None, interpret: bool, x: jax.Array, *layers: jax.Array
) -> tuple[jax.Array]:
    """norm(x) kernel + bias for tokens x (B, n, L, C) bfloat16; padding counts as zero, after the norm.

    Args:
      real: (n, L), False for padding; None if there is none.
      layers: scale and shift (1, C) float32 of the norm, kernel (C, F) bfloat16, bias (1, F) float32.

    Returns:
      (B, n, L, F), in a tuple of one.
    """
    return _call(_norm_dense, "norm_dense", epsilon, real, interpret, x, layers)


def residual_mlp(
    epsilon: float, real: np.ndarray | None, interpret: bool, x: jax.Array, *layers: jax.Array
) -> tuple[jax.Array]:
    """x + gelu(norm(x) kernel_1 + bias_1) kernel_2 + bias_2 for tokens x (B, n, L, C) bfloat16; padding stays as it is.

    Args:
      real: (n, L), False for padding; None if there is none.
      layers: scale and shift (1, C) float32 of the norm, kernels (C, F) and (F, C) bfloat16, and biases (1, F) and
        (1, C) float32, each after its kernel.

    Returns:
      (B, n, L, C), in a tuple of one.
    """
    return _call(_residual_mlp, "residual_mlp", epsilon, real, interpret, x, layers)


def residual_int8_mlp(
    epsilon: float, real: np.ndarray | None, interpret: bool, x: jax.Array, *layers: jax.Array
) -> tuple[jax.Array]:
    """`residual_mlp` in 8-bit integers, see int8_mlp.py: `layers` are those of the norm, then kernel (int8), scale and
    bias of both layers, the last two as float32 rows."""
    return _call(_residual_int8_mlp, "residual_int8_mlp", epsilon, real, interpret, x, layers)


def _call(
    body: Callable[..., Any],
    name: str,
    epsilon: float,
    real: np.ndarray | None,
    interpret: bool,
    x: jax.Array,
    layers: tuple[jax.Array, ...],
) -> tuple[jax.Array]:
    b, n, length, channels = x.shape
    rows, features = min(length, MAX_ROWS), layers[-1].shape[1]
    weights, once = [layer for layer in layers if layer.shape[0] > 1], pl.Buffered(buffer_count=1)
    in_specs = [
        pl.BlockSpec((1, 1, rows, channels), lambda i, j, k: (i, j, k, 0)),
        *(pl.BlockSpec(layer.shape, lambda i, j, k: (0, 0), pipeline_mode=once) for layer in layers),
    ]
    padded: tuple[int, ...] = ()
    multiplied, operands = n * length, [x, *layers]
    if real is not None and not real.all():
        chosen = choices(real)
        padded = tuple(np.flatnonzero(~real.all(axis=1)).tolist())
        multiplied += len(padded) * (chosen.shape[1] - length)
        operands.append(jnp.asarray(chosen, x.dtype))
        in_specs.append(pl.BlockSpec((1, *chosen.shape[1:]), lambda i, j, k: (j, 0, 0)))
    size, kept = sum(weight.size for weight in weights), sum(weight.nbytes for weight in weights)
    out = pl.pallas_call(
        partial(_kernel, body, epsilon, padded),
        name=f"{name}_{rows}x{channels}x{weights[0].shape[1]}",
        grid=(b, n, length // rows),
        in_specs=in_specs,
        out_specs=pl.BlockSpec((1, 1, rows, features), lambda i, j, k: (i, j, k, 0)),
        out_shape=jax.ShapeDtypeStruct((b, n, length, features), x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * b * multiplied * size,
            transcendentals=0,
            bytes_accessed=2 * b * n * length * (channels + features) + kept,
        ),
        interpret=interpret,
    )(*operands)
    return (out,)


def choices(real: np.ndarray) -> np.ndarray:
    """(n, L) bool -> (n, P, L) float32: each of P rows has a one at one of the window's real tokens, or none.

    P is the most real tokens of a window with padding, in whole tiles; windows without padding have zeros.
    """
    counts = real.sum(axis=1)
    most = counts[counts < real.shape[1]].max(initial=0)
    chosen = np.zeros((len(real), -(-most // TILE) * TILE, real.shape[1]), np.float32)
    for window in np.flatnonzero(counts < real.shape[1]):
        chosen[window, np.arange(counts[window]), np.flatnonzero(real[window])] = 1
    return chosen


def _kernel(body: Callable[..., Any], epsilon: float, padded: tuple[int, ...], x_ref: Any, *refs: Any) -> None:
    *layers, out_ref = refs
    chosen_ref = layers.pop() if padded else None
    high = x_ref[0, 0].astype(jnp.float32)
    normal = high - high.mean(axis=1, keepdims=True)
    normal = normal * jax.lax.rsqrt((normal * normal).mean(axis=1, keepdims=True) + epsilon)
    y = (normal * layers[0][:] + layers[1][:]).astype(x_ref.dtype)
    is_padded = reduce(operator.or_, (pl.program_id(1) == window for window in padded), jnp.bool_(False))

    @pl.when(~is_padded)
    def _() -> None:
        out_ref[0, 0] = body(high, y, lambda x: x, *layers[2:]).astype(out_ref.dtype)

    if chosen_ref is not None:

        @pl.when(is_padded)
        def _() -> None:
            chosen = chosen_ref[0]
            some = dot(chosen, y).astype(y.dtype)
            out = body(high, some, lambda x: dot(chosen, x.astype(y.dtype), TN), *layers[2:])
            out_ref[0, 0] = out.astype(out_ref.dtype)


def _norm_dense(_: jax.Array, y: jax.Array, put_back: Callable[..., jax.Array], kernel: Any, bias: Any) -> jax.Array:
    return put_back(dot(y, kernel[:])) + bias[:]


def _residual_mlp(
    x: jax.Array,
    y: jax.Array,
    put_back: Callable[..., jax.Array],
    kernel_1: Any,
    bias_1: Any,
    kernel_2: Any,
    bias_2: Any,
) -> jax.Array:
    parts = hidden_parts(kernel_1.shape[1])  # one is activated while the next is multiplied
    width, total = kernel_1.shape[1] // parts, bias_2[:]
    for part in range(parts):
        own = slice(part * width, (part + 1) * width)
        hidden = gelu_in_kernel(dot(y, kernel_1[:, own]) + bias_1[:, own], y.dtype)
        total = total + dot(hidden.astype(y.dtype), kernel_2[own])
    return x + put_back(total)


def _residual_int8_mlp(
    x: jax.Array,
    y: jax.Array,
    put_back: Callable[..., jax.Array],
    kernel_1: Any,
    scale_1: Any,
    bias_1: Any,
    kernel_2: Any,
    scale_2: Any,
    bias_2: Any,
) -> jax.Array:
    values, scale = quantize(y, 1)
    parts = hidden_parts(kernel_1.shape[1])
    width = kernel_1.shape[1] // parts
    total: Any = 0.0
    for part in range(parts):
        own = slice(part * width, (part + 1) * width)
        hidden = _int8_dot(values, kernel_1[:, own]) * scale * scale_1[:, own] + bias_1[:, own]
        again, again_scale = quantize(gelu_in_kernel(hidden, y.dtype), 1)
        total = total + _int8_dot(again, kernel_2[own]) * again_scale
    return x + put_back(total * scale_2[:] + bias_2[:])


def _int8_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return dot_general(a, b, NN, preferred_element_type=jnp.int32).astype(jnp.float32)
