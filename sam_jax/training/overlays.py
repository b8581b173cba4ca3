"""Images of predictions for monitoring a run: image, ground truth and predicted masks side by side."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.config import TrainConfig
from sam_jax.models.sam import Sam
from sam_jax.training.prompts import first_prompts, reduce_masks
from sam_jax.training.step import Batch, TrainState, finer_than_decoder, image_embeddings, model_variables

ROWS, MASKS = 4, 3  # number of images, and of masks per image
_COLOURS = np.array([[230, 60, 60], [60, 160, 240], [250, 200, 40]], np.float32)


def predict_clicks(
    model: Sam, config: TrainConfig, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One click into each mask: points (B, N, 2) float32 (x, y) in pixels of the input frame, and the masks of highest
    predicted IoU, (B, N, S/4, S/4) bool."""
    variables = model_variables(config, state)
    embeddings = image_embeddings(model, variables, batch)
    targets = reduce_masks(batch["masks"], finer_than_decoder(batch["masks"], embeddings))
    prompts = first_prompts(dataclasses.replace(config.interaction, box_probability=0.0), key, targets)
    predictions = model.apply(variables, embeddings, prompts, method="predict_masks")
    best = 1 + predictions.iou_predictions[..., 1:].argmax(axis=-1)  # type: ignore[union-attr]
    masks = jnp.take_along_axis(predictions.low_res_masks, best[..., None, None, None], axis=2)  # type: ignore[union-attr]
    assert prompts.point_coords is not None
    return prompts.point_coords[:, :, 0], masks[:, :, 0] > 0


def draw(batch: dict[str, np.ndarray], points: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8, a row per image: the image, its true masks, and the masks that one click each predicted."""
    rows = []
    for b in range(min(ROWS, len(batch["image"]))):
        image = batch["image"][b].astype(np.float32)
        count = min(MASKS, int(batch["mask_valid"][b].sum()))
        truth, answer = image.copy(), image.copy()
        for n in range(count):
            for canvas, mask in ((truth, batch["masks"][b, n]), (answer, masks[b, n])):
                stride = len(image) // len(mask)
                inside = mask.repeat(stride, 0).repeat(stride, 1)
                canvas[inside] = canvas[inside] * 0.45 + _COLOURS[n] * 0.55
            x, y = points[b, n].astype(int)
            side = max(2, image.shape[0] // 100)
            answer[max(0, y - side) : y + side, max(0, x - side) : x + side] = 255
        rows.append(np.concatenate([image, truth, answer], axis=1))
    return np.concatenate(rows).astype(np.uint8)
