"""Planes: arrays (..., rows, S) whose last axis runs over the S = h*w pixels of the embedding grid, row-major.

The decoder has few channels and many pixels. A TPU moves arrays in tiles of 8 x 128 of their last two axes: with pixels
last every tile is full, while with 4, 16, 32 or 64 channels last most of each tile would be empty.

A mask of (4h, 4w) is 16 planes, one per sub-pixel of an embedding cell, in the order of two strided convolutions: row
2a + c and column 2b + d of the cell is plane ((a b) (c d)). Masks stay in planes between interactions, and losses are
the same sums in any order; sub-pixels are joined only for output.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from sam_jax.ops.products import matmul

SIDE = 4  # sub-pixels per side of an embedding cell


def split_subpixels(masks: jax.Array) -> jax.Array:
    """(..., 4h, 4w) -> planes (..., 16, h*w)."""
    return rearrange(masks, "... (h a c) (w b d) -> ... (a b c d) (h w)", a=2, b=2, c=2, d=2)


def join_subpixels(planes: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Planes (..., 16, h*w) -> (..., 4h, 4w)."""
    rows = rearrange(planes, "... (a b c d) (h w) -> ... h a c (b d) w", a=2, b=2, c=2, d=2, h=grid[0])
    # Rows, then columns: one transposition takes a TPU a quarter longer.
    return rearrange(jax.lax.optimization_barrier(rows), "... h a c t w -> ... (h a c) (w t)")


def subpixel_position(index: jax.Array, width: int, size: int) -> jax.Array:
    """Position in the joined mask of an index into the flattened planes (16 * size): (..., 2) int32 (x, y).

    Args:
      width: w of the embedding grid; size: its h*w.
    """
    plane, cell = index // size, index % size
    a, b, c, d = (plane // step % 2 for step in (8, 4, 2, 1))
    return jnp.stack([cell % width * SIDE + 2 * b + d, cell // width * SIDE + 2 * a + c], axis=-1)


def project(kernel: jax.Array, planes: jax.Array) -> jax.Array:
    """Multiplies every pixel by one matrix (in, out): (..., in, S) -> (..., out, S)."""
    return _each(kernel.T, planes)


def split(matrices: jax.Array, bias: jax.Array, planes: jax.Array) -> jax.Array:
    """A product with a matrix per sub-pixel (x, out, in), plus a bias (out,): (..., in, S) -> (..., x, out, S)."""
    out = jax.lax.platform_dependent(matrices, planes, cpu=_each_at_once, default=_each)
    return out + bias[:, None]


def stack(matrices: jax.Array, bias: jax.Array, planes: jax.Array) -> jax.Array:
    """`split` as a single product, faster for few features: (..., in, S) -> (..., x * out, S)."""
    matrix = rearrange(matrices, "x o i -> i (x o)")
    return project(matrix, planes) + jnp.tile(bias, len(matrices))[:, None]


def _each(matrices: jax.Array, planes: jax.Array) -> jax.Array:
    """(x, out, in) or (out, in) times (..., in, S) -> (..., x, out, S) or (..., out, S).

    Both sides are broadcast to the same leading axes, which makes this one product per prompt and sub-pixel. Otherwise
    compilers make one large product, whose result and gradient then have to be transposed.
    """
    some = matrices.ndim - 2
    lead = planes.shape[:-2]
    planes = planes.reshape(*lead, *(1,) * some, *planes.shape[-2:])
    planes = jnp.broadcast_to(planes, (*lead, *matrices.shape[:-2], *planes.shape[-2:]))
    return matmul(jnp.broadcast_to(matrices, (*lead, *matrices.shape)), planes)


def _each_at_once(matrices: jax.Array, planes: jax.Array) -> jax.Array:
    """As `_each` of (x, out, in), in one product: three times as fast on CPUs, which need no transposition."""
    out = _each(jax.lax.optimization_barrier(rearrange(matrices, "x o i -> (x o) i")), planes)
    return rearrange(out, "... (x o) s -> ... x o s", x=len(matrices))
