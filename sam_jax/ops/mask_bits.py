"""Enlarges masks and packs eight pixels of a column into a byte: full-size logits are never stored."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sam_jax.ops import mask_bits_tpu
from sam_jax.ops.masks import bands
from sam_jax.ops.products import einsum, matmul


class Enlarging(NamedTuple):
    """Resizing matrices from a mask (h, w) to (Y, X) pixels, whole and in bands, see `ops.masks.bands`.

    Attributes:
      columns: (X, w); column_starts: (s,) int32 and column_bands: (s, X / s, k), the same in bands.
      row_starts: (t,) int32 and row_bands: (t, Y / t, k).
    """

    columns: jax.Array | np.ndarray
    column_starts: jax.Array | np.ndarray
    column_bands: jax.Array | np.ndarray
    row_starts: jax.Array | np.ndarray
    row_bands: jax.Array | np.ndarray


def enlarging(rows: np.ndarray, columns: np.ndarray, height: int) -> Enlarging:
    """The `Enlarging` of matrices `rows` (Y, h) and `columns` (X, w); Y and X are multiples of a band's `height`."""
    return Enlarging(columns, *bands(columns, height), *bands(rows, height))


class Seen(NamedTuple):
    """M masks at the size of their crop, (Y, X) pixels; for a single mask without the axis M.

    Attributes:
      bits: (M, X, Y / 8) uint8, pixels above the first level: columns first, as in COCO run lengths.
      areas: (M, 3) int32, number of pixels above each of three levels.
      across: (M, X) bool, columns with any bit set; down: (M, Y / 8) uint8, rows with any bit set.
    """

    bits: jax.Array
    areas: jax.Array
    across: jax.Array
    down: jax.Array


def bits_inside(enlarge: Enlarging, size: jax.Array) -> jax.Array:
    """(X, Y / 8) uint8: pixels inside a crop of `size` (2,) (h, w), for `see`; the same for all masks of a crop."""
    rows = enlarge.row_bands.shape[0] * enlarge.row_bands.shape[1]
    inside = (jnp.arange(len(enlarge.columns)) < size[1])[:, None] & (jnp.arange(rows) < size[0])
    return jnp.packbits(inside, axis=-1)


def see(looks: jax.Array, levels: jax.Array, enlarge: Enlarging, inside: jax.Array) -> Seen:
    """Enlarges one mask and compares it with three levels.

    Args:
      looks: logits (1, h, w), or (3, h, w): one map per level, those of the last two levels being equal.
      levels: (3,) logits.
      inside: (X, Y / 8) uint8 from `bits_inside`: pixels outside do not count.
    """
    bits = _side_by_side(looks, levels, enlarge) & inside
    areas = jax.lax.population_count(bits.view(jnp.uint32)).astype(jnp.int32).sum(axis=(1, 2))
    return Seen(bits[0], areas, bits[0].any(axis=1), jnp.bitwise_or.reduce(bits[0], axis=0))


def see_stacked(looks: jax.Array, levels: jax.Array, enlarge: Enlarging, size: jax.Array) -> Seen:
    """`see` for CPUs, of M masks (M, 1 or 3, h, w) at once; `size` (2,) is (h, w) of the crop in pixels.

    The pixels of a byte stay on separate rows until all is counted, so that CPUs work on whole rows.
    """
    bits = _stacked(looks, levels, enlarge)
    rows = jnp.packbits(jnp.arange(8 * bits.shape[2]) < size[0])[:, None]
    bits = bits & jnp.where(jnp.arange(bits.shape[3]) < size[1], rows, 0)
    # XLA's reductions of whole arrays are slow; these unrolled sums work row by row.
    by_rows = rearrange(bits, "m n (t r) x -> r m n t x", t=len(enlarge.row_bands))
    counts = functools.reduce(jnp.add, [jax.lax.population_count(row).astype(jnp.uint16) for row in by_rows])
    across = functools.reduce(jnp.bitwise_or, by_rows[:, :, 0]).any(axis=1)
    first = bits[:, 0]
    down = jnp.bitwise_or.reduce(first, axis=2)
    return Seen(first.swapaxes(1, 2), counts.astype(jnp.int32).sum(axis=(2, 3)), across, down)


def fits_kernel(enlarge: Enlarging) -> bool:
    """Whether `see_many` supports a crop: others have more than 32,768 rows, or are far smaller than the mask."""
    return mask_bits_tpu.fits(enlarge.row_bands)


def see_many(looks: jax.Array, levels: jax.Array, enlarge: Enlarging, size: jax.Array, interpret: bool = False) -> Seen:
    """`see_stacked` for TPUs, as a kernel; `interpret` runs it elsewhere, slowly."""
    own = looks[:, : min(2, looks.shape[1])]
    parts = jnp.asarray(enlarge.columns), jnp.asarray(enlarge.row_starts), jnp.asarray(enlarge.row_bands)
    bits, counts, down = mask_bits_tpu.see(own, levels, *parts, size, interpret)
    rows = jnp.bitwise_or.reduce(rearrange(down, "m t s y -> m (t s) y"), axis=1)
    return Seen(bits, counts.sum(axis=2), counts[:, 0] > 0, rows.astype(jnp.uint8))


def _side_by_side(looks: jax.Array, levels: jax.Array, enlarge: Enlarging) -> jax.Array:
    """Pixels of one mask above three levels, (3, X, Y / 8) uint8; the pixels of a byte are adjacent."""
    wide = einsum("xw,nhw->nxh", enlarge.columns, looks)
    # Enlarged logits are far larger than the caches, so each band is reduced to bits at once.
    packed = []
    for start, band in zip(enlarge.row_starts, enlarge.row_bands, strict=True):
        near = jax.lax.dynamic_slice_in_dim(wide, start, band.shape[1], axis=2)
        logits = einsum("nxk,yk->nxy", near, band)
        packed.append(jnp.packbits(logits > levels[:, None, None], axis=-1))
    return jnp.concatenate(packed, axis=-1)


def _stacked(looks: jax.Array, levels: jax.Array, enlarge: Enlarging) -> jax.Array:
    """Pixels of M masks above three levels, (M, 3, Y / 8, X) uint8; the pixels of a byte are on separate rows."""
    own = looks[:, : min(2, looks.shape[1])]
    wide = []
    for start, band in zip(enlarge.column_starts, enlarge.column_bands, strict=True):
        near = jax.lax.dynamic_slice_in_dim(own, start, band.shape[1], axis=3)
        wide.append(einsum("mnhk,xk->mnhx", near, band))
    enlarged, packed = jnp.concatenate(wide, axis=-1), []
    for start, band in zip(enlarge.row_starts, enlarge.row_bands, strict=True):
        near = jax.lax.dynamic_slice_in_dim(enlarged, start, band.shape[1], axis=2)
        # One product per mask: a single product for all would need its rows reordered afterwards.
        places = rearrange(jnp.asarray(band), "(y b) k -> (b y) k", b=8)
        logits = matmul(jnp.broadcast_to(places, (*near.shape[:2], *places.shape)), near)
        logits = rearrange(logits, "m n (b y) x -> m n b y x", b=8)
        if logits.shape[1] > 1:
            logits = logits[:, np.array([0, 1, 1])]
        packed.append(_packed(logits, levels[:, None, None]))
    return jnp.concatenate(packed, axis=2)


def _packed(logits: jax.Array, level: jax.Array) -> jax.Array:
    """Logits (..., 8, y, X), by position in a byte -> (..., y, X) uint8, a bit for each that is above the level."""
    bits = [(logits[..., place, :, :] > level).astype(jnp.uint8) << (7 - place) for place in range(8)]
    return functools.reduce(jnp.bitwise_or, bits)
