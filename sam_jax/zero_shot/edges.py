"""Edges of an image from the masks of a grid of points (SAM paper, section 7.2 and appendix D.2).

The masks of a 16x16 grid, all 768 of them whatever their scores, less those whose boxes overlap by more than 0.7; of
each the Sobel filter of its probabilities, zero but at the mask's outer boundary; at each pixel the strongest of all
masks; scaled to 0..1 over the image; and thinned. Masks stay on the device until all have been looked at. Those of a
model with edge refinement (`SamConfig.crf`) are refined first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.batch.prompt_files import ImageObjects
from sam_jax.config import AmgConfig
from sam_jax.inference.mask_candidates import SIDE_STEP, Candidates, Crop, encode_crops, find_in_crop
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.ops.boxes import nms
from sam_jax.ops.crf import CELL, CrfPixels, refine_masks
from sam_jax.ops.crops import build_layer_grids
from sam_jax.ops.masks import axis_matrix
from sam_jax.ops.planes import SIDE
from sam_jax.ops.products import einsum
from sam_jax.zero_shot.edge_thinning import thin_map

POINTS_PER_SIDE, BOX_NMS_THRESH = 16, 0.7
_MASKS_AT_ONCE = 64
Size = tuple[int, int]


class EdgeSegmenter:
    """Finds edges; see the top of this file. A `batch.segmenters.Segmenter` whose only record holds them."""

    def __init__(
        self,
        model: Sam,
        variables: Any,
        points_per_side: int = POINTS_PER_SIDE,
        points_per_batch: int = 64,
        box_nms_thresh: float = BOX_NMS_THRESH,
    ) -> None:
        """Takes a model, its variables, and settings as `AmgConfig` has them.

        Raises:
          ValueError: a setting is out of range.
        """
        self._model, self._variables = model, inference_variables(model.config, variables)
        self._config = AmgConfig(
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            box_nms_thresh=box_nms_thresh,
            pred_iou_thresh=0.0,
            stability_score_thresh=0.0,
            output_mode="low_res",
        )
        self._points = build_layer_grids(points_per_side, 0, 1)[0]

    def find(self, image: np.ndarray, objects: ImageObjects | None = None) -> jax.Array:
        """The device's part, of an image (H, W, 3) uint8. Takes no prompts."""
        h, w = image.shape[:2]
        (crop,) = encode_crops(self._model, self._variables, image, [(0, 0, w, h)])
        masks = find_in_crop(self._model, self._variables, self._config, crop, self._points)
        masks = masks.select(nms(masks.boxes, masks.iou, self._config.box_nms_thresh))
        return jax.block_until_ready(edge_strength(self._model, masks, crop))

    def records(self, found: jax.Array, size: Size) -> list[dict[str, Any]]:
        """[{"edges": (H, W) uint8}], 255 the strongest of the image."""
        return [{"edges": thin_map(np.asarray(found)[: size[0], : size[1]])}]

    def on_device(self, device: jax.Device) -> EdgeSegmenter:
        """The same, with its variables on a device."""
        return EdgeSegmenter(
            self._model,
            jax.device_put(self._variables, device),
            self._config.points_per_side or POINTS_PER_SIDE,
            self._config.points_per_batch,
            self._config.box_nms_thresh,
        )


def edge_strength(model: Sam, masks: Candidates, crop: Crop) -> jax.Array:
    """How strong the edges of the masks of an image are, at each pixel the strongest.

    Args:
      masks: with `low_res`.
      crop: the whole image.

    Returns:
      (Y, X) float32 on the device, Y and X at least those of the image; beyond it anything.
    """
    low_res = [chunk["low_res"][row] for chunk, row in masks.pixels]
    strongest = jnp.zeros([-(-side // SIDE_STEP) * SIDE_STEP for side in crop.size])
    pixels = crop.encoded.pixels
    grid = (SIDE if pixels is None else CELL) * model.config.image_encoder.grid_size
    rows, columns = (
        # Beyond the image its last row goes on, so that there is no edge along it.
        np.pad(axis_matrix(grid, model.config.image_size, resized, side), ((0, -side % SIDE_STEP), (0, 0)), "edge")
        for side, resized in zip(crop.size, crop.input_size, strict=True)
    )
    for start in range(0, len(low_res), _MASKS_AT_ONCE):
        part = low_res[start : start + _MASKS_AT_ONCE]
        filled = jnp.stack(part + part[:1] * (_MASKS_AT_ONCE - len(part)))  # the first one again changes nothing
        threshold = np.float32(model.config.mask_threshold)
        strongest = _strongest(strongest, filled, rows, columns, threshold, pixels)
    return strongest


@jax.jit
def _strongest(
    strongest: jax.Array,
    low_res: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    threshold: jax.Array,
    pixels: CrfPixels | None,
) -> jax.Array:
    """Edges (Y, X), and of more masks (n, l, l), enlarged by `rows` (Y, k) and `columns` (X, k); refined k is 2l."""

    def one(strongest: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        if pixels is not None:
            mask = refine_masks(mask[None, None], pixels)[0, 0]
        logits = einsum("yh,hw,xw->yx", rows, mask, columns)
        return jnp.maximum(strongest, _boundary_strength(logits, threshold)), None

    return jax.lax.scan(one, strongest, low_res)[0]


def _boundary_strength(logits: jax.Array, threshold: jax.Array) -> jax.Array:
    """Sobel's filter of a mask's probabilities (Y, X), zero but at the pixels that touch the mask from outside."""
    probability = jnp.pad(jax.nn.sigmoid(logits), 1, mode="edge")
    down = probability[:-2] + 2 * probability[1:-1] + probability[2:]
    across = probability[:, :-2] + 2 * probability[:, 1:-1] + probability[:, 2:]
    strength = jnp.hypot(down[:, 2:] - down[:, :-2], across[2:] - across[:-2])
    mask = logits > threshold
    padded = jnp.pad(mask, 1)
    tall = padded[:-2] | padded[1:-1] | padded[2:]
    outer = (tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]) & ~mask
    return jnp.where(outer, strength, 0)
