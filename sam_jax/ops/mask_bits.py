"""Masks enlarged and packed to bits, eight pixels of a column to a byte: logits of full size never lie in memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sam_jax.ops.masks import bands
from sam_jax.ops.products import einsum


class Enlarging(NamedTuple):
    """Resizing matrices from a mask (h, w) to (Y, X) pixels, whole and by bands, see `ops.masks.bands`.

    Attributes:
      columns: (X, w); column_starts: (s,) int32 and column_bands: (s, X / s, k), the same by bands.
      row_starts: (t,) int32 and row_bands: (t, Y / t, k).
    """

    columns: jax.Array | np.ndarray
    column_starts: jax.Array | np.ndarray
    column_bands: jax.Array | np.ndarray
    row_starts: jax.Array | np.ndarray
    row_bands: jax.Array | np.ndarray


def enlarging(rows: np.ndarray, columns: np.ndarray, height: int) -> Enlarging:
    """Of matrices (Y, h) and (X, w), whose Y and X are multiples of a band's `height`."""
    return Enlarging(columns, *bands(columns, height), *bands(rows, height))


def bits_above(looks: jax.Array, levels: jax.Array, enlarge: Enlarging) -> jax.Array:
    """Where a mask lies above three levels.

    Args:
      looks: (1, h, w) logits, or (3, h, w), for the first level and the same for both others.
      levels: (3,) logits.

    Returns:
      (3, X, Y / 8) uint8: columns first, in the order in which run lengths are counted.
    """
    bits: jax.Array = jax.lax.platform_dependent(looks, levels, enlarge, cpu=_stacked, default=_side_by_side)
    return bits


def _side_by_side(looks: jax.Array, levels: jax.Array, enlarge: Enlarging) -> jax.Array:
    """Pixels of a byte lie beside each other."""
    wide = einsum("xw,nhw->nxh", enlarge.columns, looks)
    # Enlarged logits are many times the caches: each band becomes bits, which then tell all the rest.
    packed = []
    for start, band in zip(enlarge.row_starts, enlarge.row_bands, strict=True):
        near = jax.lax.dynamic_slice_in_dim(wide, start, band.shape[1], axis=2)
        logits = einsum("nxk,yk->nxy", near, band)
        packed.append(jnp.packbits(logits > levels[:, None, None], axis=-1))
    return jnp.concatenate(packed, axis=-1)


def _stacked(looks: jax.Array, levels: jax.Array, enlarge: Enlarging) -> jax.Array:
    """Pixels of a byte lie below each other: CPUs add up whole rows, but beside each other one bit after the other."""
    own = looks[: min(2, len(looks))]
    wide = []
    for start, band in zip(enlarge.column_starts, enlarge.column_bands, strict=True):
        near = jax.lax.dynamic_slice_in_dim(own, start, band.shape[1], axis=2)
        wide.append(einsum("nhk,xk->nhx", near, band))
    enlarged, packed = jnp.concatenate(wide, axis=-1), []
    for start, band in zip(enlarge.row_starts, enlarge.row_bands, strict=True):
        near = jax.lax.dynamic_slice_in_dim(enlarged, start, band.shape[1], axis=1)
        logits = rearrange(
            einsum("yk,nkx->nyx", rearrange(band, "(y b) k -> (b y) k", b=8), near), "n (b y) x -> n b y x", b=8
        )
        packed.append(jnp.stack([_packed(logits[0], levels[0]), *(_packed(logits[-1], level) for level in levels[1:])]))
    return jnp.concatenate(packed, axis=1).swapaxes(1, 2)


def _packed(logits: jax.Array, level: jax.Array) -> jax.Array:
    """(8, y, X) logits, by their place in a byte -> (y, X) uint8."""
    bits = [(row > level).astype(jnp.uint8) << (7 - place) for place, row in enumerate(logits)]
    return functools.reduce(jnp.bitwise_or, bits)
