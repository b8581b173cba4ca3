"""The backward passes of mask_decoder_tpu.py as TPU kernels: what a step needs is recomputed from its inputs in VMEM.

Nothing but pixels, tokens and their gradients passes through HBM. Gradients of what all pixels of a prompt share (its
rows) or all prompts (weights, norms) are accumulated in VMEM, over the grid steps, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sam_jax.ops.attention_tiles import LANES
from sam_jax.ops.attention_tpu import NT, TN, dot
from sam_jax.ops.gelu import gelu_and_slope_in_kernel
from sam_jax.ops.mask_decoder_tpu import (
    block_of,
    call,
    kept_pixels,
    name_of,
    normalized,
    of_all,
    of_prompt,
    of_steps,
    over_tokens,
    pixels_spec,
    product,
    update_specs,
    upscaling_flops,
)


def read_pixels(
    rows: jax.Array,
    pixels: jax.Array,
    image_pe: jax.Array,
    outer: jax.Array,
    outer_pixels: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of rows and pixels, for those of the outputs, (B, N, R, C) and the shape of the pixels."""
    whole, own = pixels.shape[3], pixels.shape[1] == rows.shape[1]
    d_rows, d_pixels = call(
        _read_kernel,
        f"read_pixels_{name_of(rows, pixels)}_backward",
        (rows.shape[0], rows.shape[1], 1),
        [
            of_prompt(rows),
            pixels_spec(pixels, whole),
            pixels_spec(image_pe, whole, everyone=True),
            of_prompt(rows),
            *[of_steps(pixels, whole)] * own,
        ],
        [of_prompt(rows), of_steps(pixels, whole)],
        [rows, jax.ShapeDtypeStruct((*rows.shape[:2], *pixels.shape[2:]), pixels.dtype)],
        5 * product(rows, pixels),
        interpret,
    )(rows, pixels, image_pe, outer, *[outer_pixels] * own)
    return d_rows, d_pixels if own else _of_owner(d_pixels) + outer_pixels


def _read_kernel(*refs: Any) -> None:
    rows_ref, pixels_ref, pe_ref, outer_ref, *outer_pixels_ref, d_rows_ref, d_pixels_ref = refs
    rows, pixels, outer = rows_ref[0, 0], pixels_ref[0, 0], outer_ref[0, 0]
    seen = pixels + pe_ref[0, 0]
    logits = dot(rows, seen)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    weights = weights * (1.0 / weights.sum(axis=1, keepdims=True))
    slopes = dot(outer, pixels)
    slopes = weights * (slopes - (weights * slopes).sum(axis=1, keepdims=True))
    weights, slopes = weights.astype(pixels.dtype), slopes.astype(pixels.dtype)
    d_rows_ref[0, 0] = dot(slopes, seen, NT).astype(d_rows_ref.dtype)
    # Both parts in one product: its inner axis fills the matrix unit.
    d_pixels = dot(jnp.concatenate([outer, rows]), jnp.concatenate([weights, slopes]), TN)
    if outer_pixels_ref:
        d_pixels = d_pixels + outer_pixels_ref[0][0, 0].astype(jnp.float32)
    d_pixels_ref[0, 0] = d_pixels.astype(d_pixels_ref.dtype)


def update_pixels(
    pixels: jax.Array,
    image_pe: jax.Array,
    rows: jax.Array,
    constants: jax.Array,
    values: jax.Array,
    norm: jax.Array,
    words: jax.Array,
    outer: jax.Array,
    num_heads: int,
    epsilon: float,
    keep: float,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Gradients of pixels, rows, constants, values and norm, for that of the output, (B, N, C, S)."""
    block, one = block_of(pixels), jax.ShapeDtypeStruct
    steps = of_steps(pixels, block)
    lanes = one((*rows.shape[:3], LANES), jnp.float32)
    norms = one((*norm.shape[:2], LANES), jnp.float32)
    sums = one(rows.shape, jnp.float32)
    found = call(
        partial(_update_kernel, num_heads, epsilon, keep),
        f"update_pixels_{name_of(rows, pixels)}_backward",
        (rows.shape[0], rows.shape[1], pixels.shape[3] // block),
        [*update_specs(pixels, image_pe, rows, constants, values, norm, words), steps],
        [steps, *map(of_prompt, (sums, lanes, sums)), of_all(norms)],
        [one((*rows.shape[:2], *pixels.shape[2:]), pixels.dtype), sums, lanes, sums, norms],
        6 * product(rows, pixels),
        interpret,
        sums_up=True,
    )(pixels, image_pe, rows, constants, values, norm, words, outer)
    d_pixels, d_rows, d_constants, d_values, d_norm = found
    return (
        d_pixels if pixels.shape == d_pixels.shape else _of_owner(d_pixels),
        d_rows.astype(rows.dtype),
        d_constants.sum(axis=-1, keepdims=True),
        d_values.astype(values.dtype),
        d_norm.sum(axis=-1, keepdims=True),
    )


def _update_kernel(num_heads: int, epsilon: float, keep: float, *refs: Any) -> None:
    pixels_ref, pe_ref, rows_ref, constants_ref, values_ref, norm_ref, words_ref, outer_ref = refs[:8]
    d_pixels_ref, d_rows_ref, d_constants_ref, d_values_ref, d_norm_ref = refs[8:]
    _start((d_rows_ref, d_constants_ref, d_values_ref), (d_norm_ref,))
    pixels, rows, values = pixels_ref[0, 0], rows_ref[0, 0], values_ref[0, 0]
    dtype, seen = pixels.dtype, pixels + pe_ref[0, 0]
    weights = over_tokens(num_heads, dot(rows, seen) + constants_ref[0, 0])
    rounded = weights.astype(dtype)
    mixed = dot(values, rounded, TN) + norm_ref[0]
    kept = kept_pixels(words_ref, keep, mixed.shape) if keep < 1 else None
    if kept is not None:
        mixed = jnp.where(kept, mixed * (1 / keep), 0.0)
    normal, inverse = normalized(pixels.astype(jnp.float32) + mixed, epsilon)

    outer = outer_ref[0, 0].astype(jnp.float32)
    d_norm_ref[1] += _lanes(outer * normal)
    d_norm_ref[2] += _lanes(outer)
    slope = outer * norm_ref[1]
    shared = normal * (slope * normal).mean(axis=0, keepdims=True)
    slope = (slope - slope.mean(axis=0, keepdims=True) - shared) * inverse
    d_mixed = slope if kept is None else jnp.where(kept, slope * (1 / keep), 0.0)
    d_norm_ref[0] += _lanes(d_mixed)
    d_mixed = d_mixed.astype(dtype)
    d_values_ref[0, 0] += dot(rounded, d_mixed, NT)

    tokens = (-1, num_heads, weights.shape[1])
    d_weights, weights = dot(values, d_mixed).reshape(tokens), weights.reshape(tokens)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=0, keepdims=True))
    d_logits = d_logits.reshape(rounded.shape)
    d_constants_ref[0, 0] += _lanes(d_logits)
    d_logits = d_logits.astype(dtype)
    d_rows_ref[0, 0] += dot(d_logits, seen, NT)
    d_pixels_ref[0, 0] = (slope + dot(rows, d_logits, TN)).astype(dtype)


def upscale(
    pixels: jax.Array,
    first: jax.Array,
    norm: jax.Array,
    second: jax.Array,
    bias: jax.Array,
    rows: jax.Array,
    outer: jax.Array,
    epsilon: float,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Gradients of all arguments before `outer`, that of the output, (B, N, M, 16, S) float32."""
    block, m, size = block_of(pixels), rows.shape[2] // 4, pixels.shape[3]

    def sums(x: jax.Array, lanes: bool = False) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*x.shape[:-1], LANES) if lanes else x.shape, jnp.float32)

    weights = sums(first), sums(norm, lanes=True), sums(second), sums(bias, lanes=True)
    found = call(
        partial(_upscale_kernel, epsilon),
        f"upscale_{m}x16x{size}_backward",
        (pixels.shape[0], pixels.shape[1], size // block),
        [
            pixels_spec(pixels, block),
            *map(of_all, (first, norm, second, bias)),
            of_prompt(rows),
            pl.BlockSpec((1, 1, m, 16, block), lambda b, n, s: (b, n, 0, 0, s)),
        ],
        [of_steps(pixels, block), *map(of_all, weights), of_prompt(rows)],
        [pixels, *weights, sums(rows)],
        3 * upscaling_flops(pixels, first, second, m),
        interpret,
        sums_up=True,
    )(pixels, first, norm, second, bias, rows, outer)
    d_pixels, d_first, d_norm, d_second, d_bias, d_rows = found
    return (
        d_pixels,
        d_first.astype(first.dtype),
        d_norm.sum(axis=-1, keepdims=True),
        d_second.astype(second.dtype),
        d_bias.sum(axis=-1, keepdims=True),
        d_rows.astype(rows.dtype),
    )


def _upscale_kernel(epsilon: float, *refs: Any) -> None:
    pixels_ref, first_ref, norm_ref, second_ref, bias_ref, rows_ref, outer_ref = refs[:7]
    d_pixels_ref, d_first_ref, d_norm_ref, d_second_ref, d_bias_ref, d_rows_ref = refs[7:]
    _start((d_rows_ref,), (d_first_ref, d_norm_ref, d_second_ref, d_bias_ref))
    pixels, rows, features = pixels_ref[0, 0], rows_ref[0, 0], second_ref.shape[1]
    dtype = pixels.dtype
    both, slopes = dot(first_ref[:], pixels) + norm_ref[0], []
    for sub in range(4):
        own = slice(sub * features, (sub + 1) * features)
        inverse = jax.lax.rsqrt((both[own] * both[own]).mean(axis=0, keepdims=True) + epsilon)
        normal = both[own] * inverse
        x, x_slope = gelu_and_slope_in_kernel(normal * norm_ref[1, own] + norm_ref[2, own], dtype)
        x = x.astype(dtype)
        y, y_slope = gelu_and_slope_in_kernel(dot(second_ref[:], x) + bias_ref[:], dtype)

        masks = range(outer_ref.shape[2])
        outer = jnp.concatenate([outer_ref[0, 0, mask, 4 * sub : 4 * sub + 4] for mask in masks]).astype(dtype)
        d_rows_ref[0, 0] += dot(outer, y.astype(dtype), NT)
        slope = dot(rows, outer, TN) * y_slope
        d_bias_ref[:] += _lanes(slope)
        slope = slope.astype(dtype)
        d_second_ref[:] += dot(slope, x, NT)
        slope = dot(second_ref[:], slope, TN) * x_slope
        d_norm_ref[1, own] += _lanes(slope * normal)
        d_norm_ref[2, own] += _lanes(slope)
        slope = slope * norm_ref[1, own]
        slopes.append((slope - normal * (slope * normal).mean(axis=0, keepdims=True)) * inverse)
    slope = jnp.concatenate(slopes)
    d_norm_ref[0] += _lanes(slope)
    slope = slope.astype(dtype)
    d_first_ref[:] += dot(slope, pixels, NT)
    d_pixels_ref[0, 0] = dot(first_ref[:], slope, TN).astype(dtype)


def _start(prompts: Sequence[Any], everyones: Sequence[Any] = ()) -> None:
    """Sets sums over a prompt's steps, and over all steps, to zero at the first of them."""
    image, prompt, step = (pl.program_id(axis) for axis in range(3))
    for refs, begins in (prompts, step == 0), (everyones, (image == 0) & (prompt == 0) & (step == 0)):

        @pl.when(begins)
        def _(refs: Sequence[Any] = refs) -> None:
            for ref in refs:
                ref[...] = jnp.zeros_like(ref)


def _lanes(x: jax.Array) -> jax.Array:
    """(rows, S) -> (rows, 128): sums of every 128th pixel, without moving anything across lanes."""
    return sum(x[:, start : start + LANES] for start in range(0, x.shape[1], LANES))  # type: ignore[return-value]


def _of_owner(d_pixels: jax.Array) -> jax.Array:
    """The gradient of pixels (B, 1, C, S) that all prompts of an image share, from each prompt's."""
    return d_pixels.astype(jnp.float32).sum(axis=1, keepdims=True).astype(d_pixels.dtype)
