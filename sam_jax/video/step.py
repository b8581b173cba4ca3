"""The two compiled programs of a video: a frame is encoded, and masks are carried to it. Shapes as in matching.py."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from sam_jax.config import VideoConfig
from sam_jax.models.sam import Sam
from sam_jax.ops.transforms import normalize_batch
from sam_jax.structs import Prompts
from sam_jax.video.matching import FINEST, CellGrid, carry_masks, cell_distances, describe_cells

_STRONGEST = 8.0  # logits of the decoder beyond this are cut before they are averaged
_SURE = 0.99  # carried shares are cut here before they become logits
_HALF = 0.5


class EncodedFrame(NamedTuple):
    """image_embedding: (h, w, C) float32; cells: (S, F) float32."""

    image_embedding: jax.Array
    cells: jax.Array


class CarriedMasks(NamedTuple):
    """N objects on a frame.

    Attributes:
      low_res_masks: (N, 4h, 4w) float32 logits.
      shares: (N, S) float32, the share of each cell that the mask covers: what is remembered.
      iou_predictions: (N,) float32 of the mask decoder.
      found: (N,) bool: some cell is mostly covered by the carried mask.
    """

    low_res_masks: jax.Array
    shares: jax.Array
    iou_predictions: jax.Array
    found: jax.Array


@partial(jax.jit, static_argnames=("model", "settings", "grid"))
def encode_frame(
    model: Sam, variables: Any, frame: jax.Array, input_size: jax.Array, *, settings: VideoConfig, grid: CellGrid
) -> EncodedFrame:
    """Encodes a frame (H, W, 3) uint8, padded; `input_size` (2,) int is (h, w) of its valid part, pixels."""
    config = model.config
    images = normalize_batch(frame[None], input_size[None], config.pixel_mean, config.pixel_std)
    embedding: Any = model.apply(variables, images, method="encode_image")
    return EncodedFrame(embedding[0], describe_cells(config, settings, embedding[0], frame, grid))


@partial(jax.jit, static_argnames=("model", "settings", "grid"))
def carry_to_frame(
    model: Sam,
    variables: Any,
    encoded: EncodedFrame,
    remembered: jax.Array,
    masks: jax.Array,
    valid: jax.Array,
    radius: jax.Array,
    *,
    settings: VideoConfig,
    grid: CellGrid,
) -> CarriedMasks:
    """Finds the objects again by matching cells, and prompts the mask decoder with what was found.

    Args:
      remembered, masks, valid, radius: as for `carry_masks`.
    """
    distances = cell_distances(grid)
    shares, closed = carry_masks(encoded.cells, remembered, masks, valid, distances, radius, settings)
    side = encoded.image_embedding.shape[0] * grid.split
    carried = _to_low_res(shares, grid, side)
    found = shares.max(axis=1) > _HALF
    prompts = _prompts(model, shares, closed, found, grid)
    predicted: Any = model.apply(variables, encoded.image_embedding[None], prompts, method="predict_masks")
    decoded, ious = _most_alike(predicted.low_res_masks[0], predicted.iou_predictions[0], carried, grid)
    decoded = jnp.clip(decoded, -_STRONGEST, _STRONGEST)
    fused = (1 - settings.carried_share) * decoded + settings.carried_share * 2 * carried
    logits = apart(fused)
    return CarriedMasks(logits, cell_shares(logits, grid), ious, found)


def cell_shares(logits: jax.Array, grid: CellGrid) -> jax.Array:
    """Logits (N, 4h, 4w) -> the share of each cell that is covered: (N, S) float32."""
    inner = FINEST // grid.split
    covered = jax.nn.sigmoid(logits[:, : grid.rows * inner, : grid.cols * inner])
    return reduce(covered, "n (y i) (x j) -> n (y x)", "mean", i=inner, j=inner)


def apart(logits: jax.Array) -> jax.Array:
    """Logits (N, l, l) such that no two objects cover a pixel: the others lose what the strongest wins."""
    strongest = logits.max(axis=0)
    return jnp.where(logits < strongest, jnp.minimum(logits, -strongest), logits)


def _to_low_res(shares: jax.Array, grid: CellGrid, side: int) -> jax.Array:
    """(N, S) shares -> (N, 4h, 4w) float32 logits; outside the valid part the background is sure."""
    inner = FINEST // grid.split
    cells = rearrange(shares, "n (y x) -> n y x", y=grid.rows)
    smooth = jax.image.resize(cells, (cells.shape[0], grid.rows * inner, grid.cols * inner), "linear")
    spare = [(0, 0), *((0, side * inner - used) for used in smooth.shape[1:])]
    padded = jnp.clip(jnp.pad(smooth, spare), 1 - _SURE, _SURE)
    return jnp.log(padded) - jnp.log1p(-padded)


def _most_alike(masks: jax.Array, ious: jax.Array, carried: jax.Array, grid: CellGrid) -> tuple[jax.Array, jax.Array]:
    """Of M masks (N, M, l, l) of each object, the one with the highest IoU with the carried one (N, l, l), and its
    predicted IoU. The padding of the frame does not count."""
    inner = FINEST // grid.split
    rows, cols = grid.rows * inner, grid.cols * inner
    mine, theirs = masks[..., :rows, :cols] > 0, carried[:, None, :rows, :cols] > 0
    overlap = (mine & theirs).sum((2, 3)) / jnp.maximum((mine | theirs).sum((2, 3)), 1)
    best = overlap.argmax(axis=1)
    numbers = jnp.arange(len(best))
    return masks[numbers, best], ious[numbers, best]


def _prompts(model: Sam, shares: jax.Array, closed: jax.Array, found: jax.Array, grid: CellGrid) -> Prompts:
    """Prompts of what was carried: the box, and the point farthest inside of it whose matches are mutual.

    The carried logits are no prompt: on moving cut-outs the decoder then repeats their mistakes.
    """
    cells = rearrange(shares, "n (y x) -> n y x", y=grid.rows)
    calm = _mean(cells, 3) > _HALF  # without single cells, which would stretch the box
    covered = jnp.where(calm.any(axis=(1, 2), keepdims=True), calm, cells > _HALF)
    pixels = model.config.image_size / (model.config.image_encoder.grid_size * grid.split)
    boxes = jnp.stack([*_ends(covered.any(axis=1)), *_ends(covered.any(axis=2))], axis=-1)[:, jnp.array([0, 2, 1, 3])]
    inside = _mean(cells * rearrange(closed, "(y x) -> y x", y=grid.rows), 5)
    peak = inside.reshape(inside.shape[0], -1).argmax(axis=1)
    points = jnp.stack([peak % grid.cols, peak // grid.cols], axis=-1) + _HALF
    return Prompts(
        point_coords=(points * pixels)[None, :, None],
        point_labels=jnp.where(found, 1, -1)[None, :, None],
        boxes=boxes[None] * pixels,
        box_valid=found[None],
    )


def _ends(line: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(N, n) bool -> the first covered place, and one past the last: (N,) each."""
    return line.argmax(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1)


def _mean(x: jax.Array, side: int) -> jax.Array:
    """Means over windows of side x side: (N, y, x) -> the same; zeros beyond the edges."""
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, side, side), (1, 1, 1), "SAME")
    return total / side**2
