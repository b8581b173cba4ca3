"""The mask decoder's operations on pixels as TPU kernels: the pixels of one prompt stay in VMEM through each step.

A prompt's tokens attend to its pixels through rows (R, C), one per token and head, heads innermost; the projections of
the pixels are folded into them (see models/two_way_transformer.py). All arithmetic is on planes (C, S), and only the
inputs and outputs of that size pass through HBM. Accumulation, softmax and statistics are float32.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam_jax.ops.attention_tiles import LANES
from sam_jax.ops.attention_tpu import NT, TN, VMEM_LIMIT, dot
from sam_jax.ops.gelu import gelu_in_kernel
from sam_jax.ops.products import tpu_passes

SUBLANES = 8
MAX_BYTES = 8 * 2**20  # of one prompt's pixels; VMEM must hold several such arrays


def shape_problem(channels: int, size: int, num_heads: int, itemsize: int) -> str | None:
    """Why the kernels do not support pixels (channels, size) with `num_heads` heads; None if they do."""
    if channels % LANES or size % LANES:
        return f"{channels} channels and {size} pixels are not both multiples of {LANES}"
    if num_heads % SUBLANES:
        return f"{num_heads} heads are not a multiple of {SUBLANES}"
    if channels * size * itemsize > MAX_BYTES:
        return f"{channels} channels of {size} pixels take more than {MAX_BYTES >> 20} MiB"
    return None


def read_pixels(rows: jax.Array, pixels: jax.Array, image_pe: jax.Array, interpret: bool) -> tuple[jax.Array]:
    """softmax(rows (pixels + image_pe)) pixels^T.

    Args:
      rows: (B, N, R, C); pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).

    Returns:
      (B, N, R, C), in a tuple of one, like all functions here.
    """
    whole = pixels.shape[3]
    return _call(
        _read_kernel,
        f"read_pixels_{_name(rows, pixels)}",
        (rows.shape[0], rows.shape[1], 1),
        [_of_prompt(rows), _pixels_spec(pixels, whole), _pixels_spec(image_pe, whole, everyone=True)],
        _of_prompt(rows),
        rows.shape,
        2 * _product(rows, pixels),
        interpret,
    )(rows, pixels, image_pe)


def _read_kernel(rows_ref: Any, pixels_ref: Any, pe_ref: Any, out_ref: Any) -> None:
    pixels = pixels_ref[0, 0]
    logits = dot(rows_ref[0, 0], pixels + pe_ref[0, 0])
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True)).astype(pixels.dtype)
    total = weights.astype(jnp.float32).sum(axis=1, keepdims=True)  # of the rounded weights, so that rounding cancels
    out_ref[0, 0] = (dot(weights, pixels, NT) * (1.0 / total)).astype(out_ref.dtype)


def update_pixels(
    pixels: jax.Array,
    image_pe: jax.Array,
    rows: jax.Array,
    constants: jax.Array,
    values: jax.Array,
    norm: jax.Array,
    num_heads: int,
    epsilon: float,
    interpret: bool,
) -> tuple[jax.Array]:
    """norm(pixels + values^T softmax over tokens(rows (pixels + image_pe) + constants) + bias).

    Args:
      pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).
      rows: (B, N, R, C); constants: (B, N, R, 1) float32, -inf for absent tokens; values: (B, N, R, C).
      norm: (3, C, 1) float32: bias, and the scale and shift of the LayerNorm over channels.

    Returns:
      (B, N, C, S).
    """
    block = _block(pixels)
    prompt = [_of_prompt(x) for x in (rows, constants, values)]
    return _call(
        partial(_update_kernel, num_heads, epsilon),
        f"update_pixels_{_name(rows, pixels)}",
        (rows.shape[0], rows.shape[1], pixels.shape[3] // block),
        [_pixels_spec(pixels, block), _pixels_spec(image_pe, block, everyone=True), *prompt, _of_all(norm)],
        pl.BlockSpec((1, 1, pixels.shape[2], block), lambda b, n, s: (b, n, 0, s)),
        (*rows.shape[:2], *pixels.shape[2:]),
        2 * _product(rows, pixels),
        interpret,
    )(pixels, image_pe, rows, constants, values, norm)


def _update_kernel(
    num_heads: int,
    epsilon: float,
    pixels_ref: Any,
    pe_ref: Any,
    rows_ref: Any,
    constants_ref: Any,
    values_ref: Any,
    norm_ref: Any,
    out_ref: Any,
) -> None:
    pixels = pixels_ref[0, 0]
    logits = dot(rows_ref[0, 0], pixels + pe_ref[0, 0]) + constants_ref[0, 0]
    # Eight heads fill a tile, so the softmax over tokens is elementwise arithmetic between tiles.
    tokens = logits.reshape(-1, num_heads, logits.shape[1])
    weights = jnp.exp(tokens - tokens.max(axis=0, keepdims=True))
    weights = (weights * (1.0 / weights.sum(axis=0, keepdims=True))).reshape(logits.shape)
    bias, scale, shift = norm_ref[0], norm_ref[1], norm_ref[2]
    x = pixels.astype(jnp.float32) + dot(values_ref[0, 0], weights.astype(pixels.dtype), TN) + bias
    x = x - x.mean(axis=0, keepdims=True)
    inverse = jax.lax.rsqrt((x * x).mean(axis=0, keepdims=True) + epsilon)
    out_ref[0, 0] = (x * inverse * scale + shift).astype(out_ref.dtype)


def upscale(
    pixels: jax.Array,
    first: jax.Array,
    norm: jax.Array,
    second: jax.Array,
    bias: jax.Array,
    rows: jax.Array,
    epsilon: float,
    interpret: bool,
) -> tuple[jax.Array]:
    """Both upscaling steps and the product with the hypernetworks, sub-pixels as planes.

    Args:
      pixels: (B, N, C, S).
      first: (4 F, C), the four sub-pixels of the first step, whose outputs sum to zero over F.
      norm: (3, 4 F, 1) float32: its bias, and scale and shift of the LayerNorm over F, for each sub-pixel.
      second: (4 G, F) and bias: (4 G, 1) float32, of the second step, also four sub-pixels.
      rows: (B, N, M * 4, 4 G), the weights of each mask's four sub-pixels.

    Returns:
      (B, N, M, 16, S) float32.
    """
    block, m = _block(pixels), rows.shape[2] // 4
    size = pixels.shape[3]
    # FLOPs of the matrix unit: (4 F, C), four times (4 G, F) and four times (4 M, 4 G), each padded to 128 x 128.
    products = [(*first.shape, 1), (*second.shape, 4), (4 * m, second.shape[0], 4)]
    flops = sum(2 * times * _padded(rows) * _padded(columns) for rows, columns, times in products)
    return _call(
        partial(_upscale_kernel, epsilon),
        f"upscale_{m}x16x{size}",
        (pixels.shape[0], pixels.shape[1], size // block),
        [_pixels_spec(pixels, block), *map(_of_all, (first, norm, second, bias)), _of_prompt(rows)],
        pl.BlockSpec((1, 1, m, 16, block), lambda b, n, s: (b, n, 0, 0, s)),
        (*pixels.shape[:2], m, 16, size),
        flops * pixels.shape[0] * pixels.shape[1] * size,
        interpret,
        jnp.float32,
    )(pixels, first, norm, second, bias, rows)


def _upscale_kernel(
    epsilon: float,
    pixels_ref: Any,
    first_ref: Any,
    norm_ref: Any,
    second_ref: Any,
    bias_ref: Any,
    rows_ref: Any,
    out_ref: Any,
) -> None:
    pixels, features = pixels_ref[0, 0], second_ref.shape[1]
    activation = partial(gelu_in_kernel, dtype=pixels.dtype)
    both = dot(first_ref[:], pixels) + norm_ref[0]
    for sub in range(4):
        own = slice(sub * features, (sub + 1) * features)
        x = both[own]
        inverse = jax.lax.rsqrt((x * x).mean(axis=0, keepdims=True) + epsilon)
        x = activation(x * inverse * norm_ref[1, own] + norm_ref[2, own]).astype(pixels.dtype)
        x = activation(dot(second_ref[:], x) + bias_ref[:]).astype(pixels.dtype)
        planes = dot(rows_ref[0, 0], x)
        for mask in range(out_ref.shape[2]):
            out_ref[0, 0, mask, 4 * sub : 4 * sub + 4] = planes[4 * mask : 4 * mask + 4]


def _block(pixels: jax.Array) -> int:
    """Number of pixels per grid step, for kernels that treat pixels independently."""
    return next(block for block in (1024, 512, 256, LANES) if pixels.shape[3] % block == 0)


def _pixels_spec(pixels: jax.Array, block: int, everyone: bool = False) -> pl.BlockSpec:
    """`block` pixels of a prompt, of an image if its prompts share them, or of everyone."""
    own = pixels.shape[1] > 1
    shape = (1, 1, pixels.shape[2], block)
    if everyone:
        return pl.BlockSpec(shape, lambda b, n, s: (0, 0, 0, s))
    return pl.BlockSpec(shape, lambda b, n, s: (b, n if own else 0, 0, s))


def _of_prompt(x: jax.Array) -> pl.BlockSpec:
    """All of a prompt's part of (B, N, ...)."""
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, n, s: (b, n, *(0,) * (x.ndim - 2)))


def _of_all(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda b, n, s: (0,) * x.ndim)


def _name(rows: jax.Array, pixels: jax.Array) -> str:
    return f"{rows.shape[2]}x{pixels.shape[2]}x{pixels.shape[3]}"


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def _product(rows: jax.Array, pixels: jax.Array) -> int:
    """FLOPs of rows (R, C) times pixels (C, S), for all prompts."""
    return 2 * rows.size * pixels.shape[3]


def _call(
    kernel: Any,
    name: str,
    grid: tuple[int, int, int],
    in_specs: list[pl.BlockSpec],
    out_spec: pl.BlockSpec,
    out_shape: tuple[int, ...],
    flops: int,
    interpret: bool,
    dtype: Any = None,
) -> Any:
    """A kernel of independent grid steps with one result; `dtype` None is that of its first argument."""

    def run(*arrays: jax.Array) -> tuple[jax.Array]:
        out = jax.ShapeDtypeStruct(out_shape, dtype or arrays[0].dtype)
        executed = flops * tpu_passes(arrays[0].dtype)
        sizes = [x.size * x.dtype.itemsize for x in arrays] + [math.prod(out.shape) * out.dtype.itemsize]
        called = pl.pallas_call(
            kernel,
            name=name,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_spec,
            out_shape=out,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT
            ),
            cost_estimate=pl.CostEstimate(flops=executed, transcendentals=0, bytes_accessed=sum(sizes)),
            interpret=interpret,
        )
        return (called(*arrays),)

    return run
