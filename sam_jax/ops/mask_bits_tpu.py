"""Masks enlarged, compared and packed to bits as one TPU kernel: neither wide nor full-size logits leave VMEM.

A grid step takes a tile of columns of a mask. It widens the mask to these columns, then enlarges it band by band, from
the rows that each reads. Rows of a band are ordered by their place in a byte, so that a byte is eight vector registers
compared and put together; all three levels share a word, one byte each, which is also counted there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sam_jax.ops.attention_tiles import LANES
from sam_jax.ops.attention_tpu import NT, VMEM_LIMIT, dot
from sam_jax.ops.products import tpu_passes

TILES = (512, 384, 256)  # columns of a grid step
SUBLANES = 8
LEVELS = 3
BAND = 64  # rows
MAX_BANDS = 512  # their matrices must fit into VMEM


def fits(row_bands: Any) -> bool:
    """Whether the kernel supports these bands."""
    return row_bands.shape[0] <= MAX_BANDS and row_bands.shape[1] == BAND and row_bands.shape[2] + SUBLANES <= LANES


def see(
    looks: jax.Array,
    levels: jax.Array,
    columns: jax.Array,
    row_starts: jax.Array,
    row_bands: jax.Array,
    size: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pixels of M masks above three levels.

    Args:
      looks: logits (M, 1, h, w) float32, or (M, 2, h, w): of the first level, and of the other two.
      levels: (3,) float32.
      columns, row_starts, row_bands: as in `mask_bits.Enlarging`, with bands of 64 rows: (X, w), (t,), (t, 64, k).
      size: (2,) int32 (h, w) of the crop in pixels: pixels outside do not count.

    Returns:
      bits (M, X, 8 t) uint8 of the first level, counts (M, 3, X) int32 of pixels above each level in each column, and
      (M, tiles, 8, 8 t) int32, whose bitwise or over the two inner axes are the rows with any bit.
    """
    count, maps, height, width = looks.shape
    starts, bands = _aligned(row_starts, row_bands)
    bytes_ = SUBLANES * len(bands)
    tile = min(min(TILES, key=lambda tile: pl.cdiv(len(columns), tile) * tile), len(columns))
    tiles = pl.cdiv(len(columns), tile)
    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    flops = 2 * count * maps * tiles * tile * (height * width + len(bands) * BAND * LANES)
    found: tuple[jax.Array, jax.Array, jax.Array] = pl.pallas_call(
        _kernel,
        name=f"mask_bits_{bytes_}x{len(columns)}",
        grid=(count, tiles),
        in_specs=[
            *(smem, smem, smem),
            pl.BlockSpec((1, maps, height, width), lambda m, x: (m, 0, 0, 0)),
            pl.BlockSpec((tile, width), lambda m, x: (x, 0)),
            pl.BlockSpec(bands.shape, lambda m, x: (0, 0, 0)),
        ],
        out_specs=[
            pl.BlockSpec((1, tile, bytes_), lambda m, x: (m, x, 0)),
            pl.BlockSpec((1, LEVELS, tile), lambda m, x: (m, 0, x)),
            pl.BlockSpec((1, 1, SUBLANES, bytes_), lambda m, x: (m, x, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((count, len(columns), bytes_), jnp.uint8),
            jax.ShapeDtypeStruct((count, LEVELS, len(columns)), jnp.int32),
            jax.ShapeDtypeStruct((count, tiles, SUBLANES, bytes_), jnp.int32),
        ],
        scratch_shapes=[
            # A band may begin in the last rows.
            pltpu.VMEM((maps, height + bands.shape[2], tile), jnp.float32),
            pltpu.VMEM((-(-bytes_ // LANES) * LANES, tile), jnp.int32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT),
        cost_estimate=pl.CostEstimate(flops=flops * tpu_passes(looks.dtype), bytes_accessed=0, transcendentals=0),
        interpret=interpret,
    )(starts, size, levels, looks, columns, bands)
    return found


def _aligned(starts: jax.Array, bands: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Starts at multiples of eight, and bands (t, 64, k) that begin there, with rows ordered by their place in a byte.

    A row of the second axis is then 8 * place + byte; the third axis is longer by eight, a multiple of it.
    """
    shift = starts % SUBLANES
    wide = jnp.pad(jnp.asarray(bands), ((0, 0), (0, 0), (0, SUBLANES + -bands.shape[2] % SUBLANES)))
    wide = jax.vmap(partial(jnp.roll, axis=1))(wide, shift)
    by_place = wide.reshape(len(bands), -1, SUBLANES, wide.shape[2]).swapaxes(1, 2)
    return starts - shift, by_place.reshape(wide.shape)


def _kernel(
    starts_ref: Any,
    size_ref: Any,
    levels_ref: Any,
    looks_ref: Any,
    columns_ref: Any,
    bands_ref: Any,
    bits_ref: Any,
    counts_ref: Any,
    down_ref: Any,
    wide_ref: Any,
    packed_ref: Any,
) -> None:
    maps, height, tile = looks_ref.shape[1], looks_ref.shape[2], columns_ref.shape[0]
    bands, _, read = bands_ref.shape
    for number in range(maps):
        wide_ref[number, :height] = dot(looks_ref[0, number], columns_ref[...], NT)
        wide_ref[number, height:] = jnp.zeros((read, tile), jnp.float32)
    packed_ref[...] = jnp.zeros(packed_ref.shape, jnp.int32)
    levels = [levels_ref[number] for number in range(LEVELS)]
    left_out = pl.program_id(1) * tile + jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, tile), 1) >= size_ref[1]
    byte = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, tile), 0)

    def one_band(band: Any, counts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start = pl.multiple_of(starts_ref[band], SUBLANES)
        near = [dot(bands_ref[band], wide_ref[number, pl.ds(start, read)]) for number in range(maps)]
        word = jnp.zeros((SUBLANES, tile), jnp.int32)
        for place in range(SUBLANES):
            rows = slice(place * SUBLANES, (place + 1) * SUBLANES)
            for number, level in enumerate(levels):
                above = near[min(number, maps - 1)][rows] > level
                word |= jnp.where(above, 1 << (SUBLANES * number + SUBLANES - 1 - place), 0)
        rows_left = jnp.clip(size_ref[0] - SUBLANES * (SUBLANES * band + byte), 0, SUBLANES)
        inside = jnp.where(left_out, 0, jax.lax.shift_right_logical(0xFF00, rows_left) & 0xFF)
        word &= inside * 0x010101
        packed_ref[pl.ds(pl.multiple_of(SUBLANES * band, SUBLANES), SUBLANES)] = word & 0xFF
        ones = _ones_in_bytes(word)
        return tuple(total + ((ones >> SUBLANES * number) & 0xFF) for number, total in enumerate(counts))

    # Several bands together keep the matrix unit busy.
    unroll = next(number for number in (4, 2, 1) if bands % number == 0)
    none = (jnp.zeros((SUBLANES, tile), jnp.int32),) * LEVELS
    counts = jax.lax.fori_loop(0, bands, one_band, none, unroll=unroll)
    counts_ref[0] = jnp.concatenate([total.sum(axis=0, keepdims=True) for total in counts])
    columns_first = packed_ref[...].T[:, : bits_ref.shape[2]]
    bits_ref[0] = columns_first.astype(jnp.uint8)
    parts = [columns_first[first : first + SUBLANES] for first in range(0, tile, SUBLANES)]
    while len(parts) > 1:
        parts = [*(a | b for a, b in zip(parts[::2], parts[1::2], strict=False)), *parts[len(parts) & ~1 :]]
    down_ref[0, 0] = parts[0]


def _ones_in_bytes(word: jax.Array) -> jax.Array:
    """Each byte's number of ones, in its place."""
    word = word - ((word >> 1) & 0x555555)
    word = (word & 0x333333) + ((word >> 2) & 0x333333)
    return (word + (word >> 4)) & 0x0F0F0F
