"""The compiled functions of an evaluation: decode prompts of many objects, enlarge masks to the images.

Shapes are fixed or rounded up to a few sizes, so that images of all sizes need only a handful of compiled programs.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.models.sam import Sam
from sam_jax.ops.crf import CrfPixels, refine_masks
from sam_jax.ops.masks import axis_matrix
from sam_jax.ops.products import einsum
from sam_jax.structs import MaskPredictions, Prompts

# Sides of images are rounded up to these: 64 pixels apart at first, then about an eighth.
_SMALL_STEP = 64
_SLOTS = (1, 4, 16, 64)


@partial(jax.jit, static_argnums=0)
def decode(model: Sam, variables: Any, embeddings: jax.Array, image_of: jax.Array, prompts: Prompts) -> MaskPredictions:
    """All masks of the decoder for each prompt.

    Args:
      embeddings: (B, h, w, C).
      image_of: (R,) int, the image of each row of prompts.
      prompts: (R, N, ...) in pixels of the input frame.

    Returns:
      low_res_masks (R, N, M, 4h, 4w), iou_predictions (R, N, M); the single mask comes first.
    """
    predictions: Any = model.apply(variables, embeddings[image_of], prompts, method="predict_masks")
    return predictions


@jax.jit
def choose(predictions: MaskPredictions, chosen: jax.Array) -> MaskPredictions:
    """Mask `chosen` (R, N) int of each prompt: low_res_masks (R, N, 1, 4h, 4w), iou_predictions (R, N, 1)."""
    take = chosen[..., None]
    masks = jnp.take_along_axis(predictions.low_res_masks, take[..., None, None], axis=2)
    return MaskPredictions(masks, jnp.take_along_axis(predictions.iou_predictions, take, axis=2))


@partial(jax.jit, static_argnames="patch_size")
def refine_edges(
    low_res_masks: jax.Array, pixels: CrfPixels, image_of: jax.Array, boxes: jax.Array | None, patch_size: int
) -> jax.Array:
    """Edge refinement (`ops.crf.refine_masks`): (R, N, M, l, l) logits -> (R, N, M, 2l, 2l).

    Args:
      pixels: of the B images.
      image_of: (R,) int, the image of each row.
      boxes: (R, N, 4) xyxy in pixels of the input frame, or None.
    """

    def row(argument: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        logits, image, limits = argument
        return refine_masks(logits, jax.tree.map(lambda x: x[image], pixels), limits, patch_size)

    return jax.lax.map(row, (low_res_masks, image_of, boxes))


@jax.jit
def enlarge(low_res_masks: jax.Array, rows: jax.Array, cols: jax.Array, threshold: float) -> jax.Array:
    """Logits on the decoder's grid -> masks in pixels of the image, eight pixels per byte.

    The two matrices per image of `ops.masks.postprocess_masks` are arguments here, so that images whose sizes round up
    to the same one share a program.

    Args:
      low_res_masks: (R, N, M, l, l) float32 logits.
      rows: (R, H, l); cols: (R, W, l): from `enlarging_matrices`. W is a multiple of 8.
      threshold: pixels with logits above this belong to the mask.

    Returns:
      (R, N, M, H, W / 8) uint8, for numpy.unpackbits.
    """

    def one(argument: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        logits, down, across = argument
        tall = einsum("yh,mhw->myw", down, logits)
        return jnp.packbits(einsum("myw,xw->myx", tall, across) > threshold, axis=-1)

    def row(argument: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        logits, down, across = argument
        # One object after the other: full-size logits of all objects would not fit into memory.
        return jax.lax.map(lambda x: one((x, down, across)), logits)

    return jax.lax.map(row, (low_res_masks, rows, cols))


def enlarging_matrices(
    low_res: int, image_size: int, input_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices for `enlarge` and R images: rows (R, H, l), cols (R, W, l) float32; H, W are rounded up with zero rows.

    Args:
      low_res: side l of the decoder's masks.
      image_size: side of the padded input frame, pixels.
      input_sizes: (h, w) of each image inside the input frame.
      original_sizes: (h, w) of each image.
    """
    matrices = []
    for axis in (0, 1):
        side = _rounded_up(max(size[axis] for size in original_sizes))
        out = np.zeros((len(original_sizes), side, low_res), np.float32)
        for number, (inner, outer) in enumerate(zip(input_sizes, original_sizes, strict=True)):
            out[number, : outer[axis]] = _axis_matrix(low_res, image_size, inner[axis], outer[axis])
        matrices.append(out)
    return matrices[0], matrices[1]


@lru_cache(maxsize=64)
def _axis_matrix(low_res: int, image_side: int, input_side: int, original_side: int) -> np.ndarray:
    return axis_matrix(low_res, image_side, input_side, original_side)


def _rounded_up(side: int) -> int:
    step = _SMALL_STEP
    while step * 8 < side:
        step *= 2
    return -(-side // step) * step


def slots_per_row(masks_per_image: list[int], prompts: int) -> int:
    """N, prompts per row: enough for the median image of a batch, so that few slots stay empty; R x N = `prompts`."""
    usual = float(np.median(masks_per_image))
    fitting = [size for size in _SLOTS if size <= prompts]
    return next((size for size in fitting if size >= usual), fitting[-1])
