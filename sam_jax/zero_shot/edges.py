"""Edges of an image from the masks of a grid of points (SAM paper, section 7.2 and appendix D.2).

The masks of a 16x16 grid, all 768 of them whatever their scores, less those whose boxes overlap by more than 0.7; of
each the Sobel filter of its probabilities, zero but at the mask's outer boundary; at each pixel the strongest of all
masks; one image's edges scaled to 0..1; and thinned by non-maximum suppression as Canny does it, across the gradient of
the mask that was strongest. Masks stay on the device until all have been looked at.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.batch.prompt_files import ImageObjects
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.mask_candidates import SIDE_STEP, Candidates
from sam_jax.models.sam import Sam
from sam_jax.ops.masks import axis_matrix
from sam_jax.ops.products import einsum
from sam_jax.ops.transforms import resized_size
from sam_jax.zero_shot.edge_thinning import Gradients, thinned

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
          ValueError: a setting is out of range, or the model refines masks, which this has no use for.
        """
        if model.config.crf:
            raise ValueError("edges are those of the model's own masks; load the model with crf=False")
        self._options = {
            "points_per_side": points_per_side,
            "points_per_batch": points_per_batch,
            "box_nms_thresh": box_nms_thresh,
        }
        self._generator = SamAutomaticMaskGenerator(
            model, variables, pred_iou_thresh=0.0, stability_score_thresh=0.0, output_mode="low_res", **self._options
        )

    def find(self, image: np.ndarray, objects: ImageObjects | None = None) -> Gradients:
        """The device's part, of an image (H, W, 3) uint8. Takes no prompts."""
        model = self._generator.model
        size = image.shape[:2]
        found = strongest_gradients(self._generator.find(image), size, model.config.image_size, _threshold(model))
        return jax.block_until_ready(found)

    def records(self, found: Gradients, size: Size) -> list[dict[str, Any]]:
        """[{"edges": (H, W) uint8}], 255 the strongest of the image."""
        h, w = size
        return [{"edges": thinned(Gradients(*(np.asarray(part)[:h, :w] for part in found)))}]

    def on_device(self, device: jax.Device) -> EdgeSegmenter:
        """The same, with its variables on a device."""
        variables = jax.device_put(self._generator.variables, device)
        return EdgeSegmenter(self._generator.model, variables, **self._options)  # type: ignore[arg-type]


def _threshold(model: Sam) -> np.float32:
    return np.float32(model.config.mask_threshold)


def strongest_gradients(masks: Candidates, size: Size, image_side: int, threshold: np.float32) -> Gradients:
    """The gradients of all masks of an image, at each pixel the strongest.

    Args:
      masks: with `low_res`.
      size: (H, W) of the image. image_side: of the model's input frame, pixels.
      threshold: logits above it are the mask.

    Returns:
      (Y, X) each on the device, Y and X at least H and W; beyond those anything.
    """
    low_res = [chunk["low_res"][row] for chunk, row in masks.pixels]
    sides = [-(-side // SIDE_STEP) * SIDE_STEP for side in size]
    strongest = Gradients(jnp.zeros(sides), jnp.zeros(sides))
    if not low_res:
        return strongest
    rows, columns = (
        # Beyond the image its last row goes on, so that there is no edge along it.
        np.pad(axis_matrix(low_res[0].shape[0], image_side, resized, side), ((0, -side % SIDE_STEP), (0, 0)), "edge")
        for side, resized in zip(size, resized_size(size, image_side), strict=True)
    )
    for start in range(0, len(low_res), _MASKS_AT_ONCE):
        part = low_res[start : start + _MASKS_AT_ONCE]
        filled = jnp.stack(part + part[:1] * (_MASKS_AT_ONCE - len(part)))  # the first one again changes nothing
        strongest = _add(strongest, filled, rows, columns, threshold)
    return strongest


@jax.jit
def _add(
    strongest: Gradients, low_res: jax.Array, rows: jax.Array, columns: jax.Array, threshold: jax.Array
) -> Gradients:
    """The strongest gradients with those of more masks (n, l, l), enlarged by `rows` (Y, l) and `columns` (X, l)."""

    def one(strongest: Gradients, mask: jax.Array) -> tuple[Gradients, None]:
        logits = einsum("yh,hw,xw->yx", rows, mask, columns)
        own = _boundary_gradients(logits, threshold)
        wins = own.strength > strongest.strength
        return jax.tree.map(lambda new, old: jnp.where(wins, new, old), own, strongest), None

    return jax.lax.scan(one, strongest, low_res)[0]


def _boundary_gradients(logits: jax.Array, threshold: jax.Array) -> Gradients:
    """Sobel's filter of a mask's probabilities (Y, X), zero but at the pixels that touch the mask from outside."""
    probability = jnp.pad(jax.nn.sigmoid(logits), 1, mode="edge")
    smooth_rows = probability[:-2] + 2 * probability[1:-1] + probability[2:]
    smooth_columns = probability[:, :-2] + 2 * probability[:, 1:-1] + probability[:, 2:]
    dx = smooth_rows[:, 2:] - smooth_rows[:, :-2]
    dy = smooth_columns[2:] - smooth_columns[:-2]
    mask = logits > threshold
    padded = jnp.pad(mask, 1)
    tall = padded[:-2] | padded[1:-1] | padded[2:]
    outer = (tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]) & ~mask
    return Gradients(jnp.where(outer, dy, 0), jnp.where(outer, dx, 0))
