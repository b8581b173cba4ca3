"""The mask decoder's operations on pixels as TPU kernels: the pixels of one prompt stay in VMEM through each step.

A prompt's tokens attend to its pixels through rows (R, C), one per token and head, heads innermost; the projections of
the pixels are folded into them (see models/two_way_transformer.py). All arithmetic is on planes (C, S), and only the
inputs and outputs of that size pass through HBM. Accumulation, softmax and statistics are float32. The backward passes
are in mask_decoder_tpu_backward.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from sam_jax.ops.random_bits import chosen

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


def read_pixels(
    rows: jax.Array, pixels: jax.Array, image_pe: jax.Array, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """softmax(rows (pixels + image_pe)) pixels^T.

    Args:
      rows: (B, N, R, C); pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).

    Returns:
      (B, N, R, C), and the pixels, so that the backward pass can add to their gradient.
    """
    whole = pixels.shape[3]
    (read,) = call(
        _read_kernel,
        f"read_pixels_{name_of(rows, pixels)}",
        (rows.shape[0], rows.shape[1], 1),
        [of_prompt(rows), pixels_spec(pixels, whole), pixels_spec(image_pe, whole, everyone=True)],
        [of_prompt(rows)],
        [rows],
        2 * product(rows, pixels),
        interpret,
    )(rows, pixels, image_pe)
    return read, pixels


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
    words: jax.Array,
    num_heads: int,
    epsilon: float,
    keep: float,
    interpret: bool,
) -> tuple[jax.Array]:
    """norm(pixels + dropout(values^T softmax over tokens(rows (pixels + image_pe) + constants) + bias)).

    Args:
      pixels: (B, N or 1, C, S); image_pe: (1, 1, C, S).
      rows: (B, N, R, C); constants: (B, N, R, 1) float32, -inf for absent tokens; values: (B, N, R, C).
      norm: (3, C, 1) float32: bias, and the scale and shift of the LayerNorm over channels.
      words: (B, N, 2, 1) uint32, of `random_bits.draw`; keep: the probability of an element to be kept, 1 for no
        dropout.

    Returns:
      (B, N, C, S), in a tuple of one.
    """
    block = block_of(pixels)
    return call(
        partial(_update_kernel, num_heads, epsilon, keep),
        f"update_pixels_{name_of(rows, pixels)}",
        (rows.shape[0], rows.shape[1], pixels.shape[3] // block),
        update_specs(pixels, image_pe, rows, constants, values, norm, words),
        [of_steps(pixels, block)],
        [jax.ShapeDtypeStruct((*rows.shape[:2], *pixels.shape[2:]), pixels.dtype)],
        2 * product(rows, pixels),
        interpret,
    )(pixels, image_pe, rows, constants, values, norm, words)


def update_specs(pixels: jax.Array, image_pe: jax.Array, *rest: jax.Array) -> list[pl.BlockSpec]:
    """How `update_pixels` and its backward pass read the operands of `update_pixels`."""
    rows, constants, values, norm, words = rest
    block = block_of(pixels)
    seen = pixels_spec(pixels, block), pixels_spec(image_pe, block, everyone=True)
    return [*seen, *map(of_prompt, (rows, constants, values)), of_all(norm), of_prompt(words)]


def _update_kernel(num_heads: int, epsilon: float, keep: float, *refs: Any) -> None:
    pixels_ref, pe_ref, rows_ref, constants_ref, values_ref, norm_ref, words_ref, out_ref = refs
    pixels = pixels_ref[0, 0]
    weights = over_tokens(num_heads, dot(rows_ref[0, 0], pixels + pe_ref[0, 0]) + constants_ref[0, 0])
    bias, scale, shift = norm_ref[0], norm_ref[1], norm_ref[2]
    mixed = dot(values_ref[0, 0], weights.astype(pixels.dtype), TN) + bias
    if keep < 1:
        mixed = jnp.where(kept_pixels(words_ref, keep, mixed.shape), mixed * (1 / keep), 0.0)
    normal, _ = normalized(pixels.astype(jnp.float32) + mixed, epsilon)
    out_ref[0, 0] = (normal * scale + shift).astype(out_ref.dtype)


def over_tokens(num_heads: int, logits: jax.Array) -> jax.Array:
    """Softmax over the tokens of each head, (R, S) -> (R, S). Eight heads fill a tile, so that it is elementwise
    arithmetic between tiles."""
    tokens = logits.reshape(-1, num_heads, logits.shape[1])
    weights = jnp.exp(tokens - tokens.max(axis=0, keepdims=True))
    return (weights * (1.0 / weights.sum(axis=0, keepdims=True))).reshape(logits.shape)


def kept_pixels(words_ref: Any, keep: float, shape: tuple[int, ...]) -> jax.Array:
    """Which elements of a step's pixels (C, block) dropout keeps: those of `random_bits.Dropping`."""
    block = shape[1]
    row, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    first = (pl.program_id(2) * block).astype(jnp.uint32)
    number = row * jnp.uint32(pl.num_programs(2) * block) + (column + first)
    return chosen(number, words_ref[0, 0, 0:1], words_ref[0, 0, 1:2], keep)


def normalized(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """LayerNorm of (C, S) over channels without scale and shift, and the inverse deviations (1, S)."""
    x = x - x.mean(axis=0, keepdims=True)
    inverse = jax.lax.rsqrt((x * x).mean(axis=0, keepdims=True) + epsilon)
    return x * inverse, inverse


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
      (B, N, M, 16, S) float32, in a tuple of one.
    """
    block, m, size = block_of(pixels), rows.shape[2] // 4, pixels.shape[3]
    return call(
        partial(_upscale_kernel, epsilon),
        f"upscale_{m}x16x{size}",
        (pixels.shape[0], pixels.shape[1], size // block),
        [pixels_spec(pixels, block), *map(of_all, (first, norm, second, bias)), of_prompt(rows)],
        [pl.BlockSpec((1, 1, m, 16, block), lambda b, n, s: (b, n, 0, 0, s))],
        [jax.ShapeDtypeStruct((*pixels.shape[:2], m, 16, size), jnp.float32)],
        upscaling_flops(pixels, first, second, m),
        interpret,
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


def upscaling_flops(pixels: jax.Array, first: jax.Array, second: jax.Array, masks: int) -> int:
    """FLOPs of the matrix unit: (4 F, C), four times (4 G, F) and four times (4 M, 4 G), each padded to 128 x 128."""
    products = [(*first.shape, 1), (*second.shape, 4), (4 * masks, second.shape[0], 4)]
    flops = sum(2 * times * _padded(rows) * _padded(columns) for rows, columns, times in products)
    return flops * pixels.shape[0] * pixels.shape[1] * pixels.shape[3]


def block_of(pixels: jax.Array) -> int:
    """Number of pixels per grid step, for kernels that treat pixels independently."""
    return next(block for block in (1024, 512, 256, LANES) if pixels.shape[3] % block == 0)


def pixels_spec(pixels: jax.Array, block: int, everyone: bool = False) -> pl.BlockSpec:
    """`block` pixels of a prompt, of an image if its prompts share them, or of everyone."""
    own = pixels.shape[1] > 1
    shape = (1, 1, pixels.shape[2], block)
    if everyone:
        return pl.BlockSpec(shape, lambda b, n, s: (0, 0, 0, s))
    return pl.BlockSpec(shape, lambda b, n, s: (b, n if own else 0, 0, s))


def of_steps(pixels: jax.Array, block: int) -> pl.BlockSpec:
    """`block` pixels of a prompt of (B, N, C, S)."""
    return pl.BlockSpec((1, 1, pixels.shape[2], block), lambda b, n, s: (b, n, 0, s))


def of_prompt(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """All of a prompt's part of (B, N, ...)."""
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, n, s: (b, n, *(0,) * (x.ndim - 2)))


def of_all(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """All of an array that prompts share."""
    return pl.BlockSpec(x.shape, lambda b, n, s: (0,) * x.ndim)


def name_of(rows: jax.Array, pixels: jax.Array) -> str:
    """The sizes in a kernel's name."""
    return f"{rows.shape[2]}x{pixels.shape[2]}x{pixels.shape[3]}"


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def product(rows: jax.Array, pixels: jax.Array) -> int:
    """FLOPs of rows (R, C) times pixels (C, S), for all prompts."""
    return 2 * rows.size * pixels.shape[3]


def call(
    kernel: Any,
    name: str,
    grid: tuple[int, int, int],
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Sequence[pl.BlockSpec],
    results: Sequence[Any],
    flops: int,
    interpret: bool,
    sums_up: bool = False,
) -> Any:
    """A kernel whose results have the shapes and dtypes of `results`.

    Grid steps are independent, or add to the same results (`sums_up`). `flops` are of one pass of the matrix unit.
    """

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        out = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
        moved: list[Any] = [*arrays, *out]
        sizes = [math.prod(x.shape) * x.dtype.itemsize for x in moved]
        executed = flops * tpu_passes(arrays[0].dtype)
        called = pl.pallas_call(
            kernel,
            name=name,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary" if sums_up else "parallel",) * 3, vmem_limit_bytes=VMEM_LIMIT
            ),
            cost_estimate=pl.CostEstimate(flops=executed, transcendentals=0, bytes_accessed=sum(sizes)),
            interpret=interpret,
        )
        return tuple(called(*arrays))

    return run
