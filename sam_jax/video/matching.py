"""Dense correspondence: finds the cells of remembered frames again in another frame, and carries masks along.

S are the cells of a frame, row by row; F the features of a cell; R remembered frames; N objects. Label propagation of
this kind is the usual zero-shot use of features in video (Jabri et al. 2020, "Space-time correspondence as a
contrastive random walk"; Caron et al. 2021, "Emerging properties in self-supervised vision transformers", appendix).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from sam_jax.config import SamConfig, VideoConfig
from sam_jax.models.details import pixel_embeddings, split_details
from sam_jax.ops.products import einsum

_FAR = -1e9
_UNCHECKED = 0.1  # weight of a match whose way back ends elsewhere
FINEST = 4  # the mask decoder's logits are four times finer than the image embedding


class CellGrid(NamedTuple):
    """Cells that lie in the valid part of the input frame.

    Attributes:
      rows, cols: their numbers; S = rows * cols.
      split: cells along a side of an embedding cell: 1, 2 or 4.
    """

    rows: int
    cols: int
    split: int


def cell_grid(sam: SamConfig, settings: VideoConfig, input_size: tuple[int, int]) -> CellGrid:
    """The grid for frames whose valid part has `input_size` (h, w) pixels of the input frame."""
    grid = sam.image_encoder.grid_size
    split = max([s for s in (2, FINEST) if s * grid <= settings.cells], default=1)
    side = sam.image_size / (grid * split)
    rows, cols = (int(np.ceil(pixels / side)) for pixels in input_size)
    return CellGrid(rows, cols, split)


def describe_cells(
    sam: SamConfig, settings: VideoConfig, image_embedding: jax.Array, frame: jax.Array, grid: CellGrid
) -> jax.Array:
    """Features by which cells are found again: the embedding, details if the model has them, and the mean colour.

    Args:
      image_embedding: (h, w, C) float32.
      frame: (H, W, 3) uint8 RGB, the input frame.

    Returns:
      (S, F) float32. Embedding and details have the length 1 after subtracting their means over the frame.
    """
    proper, details = split_details(image_embedding[None].astype(jnp.float32), sam.prompt_embed_dim)
    h, w, split = *image_embedding.shape[:2], grid.split
    parts = [jax.image.resize(proper[0], (h * split, w * split, proper.shape[-1]), "linear")]
    if details is not None:
        fine = pixel_embeddings(details.masks, (h, w))[0].astype(jnp.float32)
        inner = FINEST // split
        parts.append(rearrange(fine, "(y i) (x j) f -> y x (i j f)", i=inner, j=inner))
    parts = [_directions(part[: grid.rows, : grid.cols]) for part in parts]
    colours = reduce(frame.astype(jnp.float32) / 255, "(y i) (x j) c -> y x c", "mean", y=h * split, x=w * split)
    parts.append(settings.colour_weight * colours[: grid.rows, : grid.cols])
    return rearrange(jnp.concatenate(parts, axis=-1), "y x f -> (y x) f")


def _directions(features: jax.Array) -> jax.Array:
    """(y, x, f) -> the same without their mean, of length 1."""
    centred = features - features.mean(axis=(0, 1))
    return centred / (jnp.linalg.norm(centred, axis=-1, keepdims=True) + 1e-6)


def cell_distances(grid: CellGrid) -> jax.Array:
    """(S, S) float32 distances between the centres of cells, in cells."""
    y, x = (places.ravel().astype(jnp.float32) for places in jnp.indices((grid.rows, grid.cols)))
    return jnp.hypot(y[:, None] - y[None], x[:, None] - x[None])


def carry_masks(
    cells: jax.Array,
    remembered: jax.Array,
    masks: jax.Array,
    valid: jax.Array,
    distances: jax.Array,
    radius: jax.Array,
    settings: VideoConfig,
) -> tuple[jax.Array, jax.Array]:
    """Carries masks of remembered frames to a frame by soft matches within a radius, checked by the way back.

    A cell's best match is followed back to this frame. If it ends near the cell, both matches are mutual and the
    remembered frame counts fully for this cell; if not, the cell is new, hidden or ambiguous there, and counts little.

    Args:
      cells: (S, F) of the frame.
      remembered: (R, S, F).
      masks: (R, N, S) float32, shares from 0 to 1.
      valid: (R, N) bool: whether a remembered mask of an object counts.
      distances: (S, S), see `cell_distances`.
      radius: (R,) float32, in cells: how far cells may have moved since each remembered frame.

    Returns:
      Shares (N, S) float32 that the object covers of each cell, 0 for objects without a valid mask; and (S,) float32
      in 0..1, how well the cycles of the best remembered frame close.
    """
    products = einsum("qf,rkf->rqk", cells, remembered)
    lengths = jnp.sum(cells**2, -1)[None, :, None] + jnp.sum(remembered**2, -1)[:, None, :]
    used = valid.any(axis=1)
    near = (distances[None] <= radius[:, None, None]) & used[:, None, None]
    scores = jnp.where(near, (2 * products - lengths) / settings.temperature, _FAR)
    there, back = scores.argmax(axis=2), scores.argmax(axis=1)
    home = jnp.take_along_axis(back, there, axis=1)
    missed = distances[jnp.arange(cells.shape[0])[None], home] / settings.cycle_radius
    closed = jnp.where(used[:, None], jnp.exp(-(missed**2)), 0.0)
    best = scores.max(axis=(0, 2))
    weights = jnp.exp(scores - best[None, :, None]) * (_UNCHECKED + closed)[:, :, None]
    votes = einsum("rqk,rnk->rnq", weights, masks * valid[:, :, None])
    counted = einsum("rq,rn->nq", weights.sum(axis=2), valid.astype(jnp.float32))
    return votes.sum(axis=0) / jnp.maximum(counted, 1e-12), closed.max(axis=0)
