"""Regions that a model finds in an image and is sure of, as masks to train on.

The last stage of the paper's data engine (section 4): everything mode's confident and stable masks. Here a mask has to
agree with itself as well: its own box, as a prompt, gives nearly the same again, and that second mask is kept.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam

MIN_AGREEMENT = 0.8  # IoU of a mask and of what its box gives
MAX_SHARE = 0.9  # of the image: what covers nearly all of it is no object
POINTS_PER_SIDE = 16


class RegionFinder:
    """Finds regions in images.

    Args:
      model, variables: from `load_model`.
      min_agreement: the mask of a box is kept if its IoU with the mask that the box is of is at least so much.
        With `SamConfig.crf` the edges of what is kept are refined, not of all that everything mode finds.
      options: fields of `AmgConfig`; 16 points per side unless given.
    """

    def __init__(
        self, model: Sam, variables: dict[str, Any], min_agreement: float = MIN_AGREEMENT, **options: Any
    ) -> None:
        if not 0 < min_agreement <= 1:
            raise ValueError(f"min_agreement is {min_agreement}; expected an IoU above 0, at most 1")
        self._min_agreement = min_agreement
        coarse = Sam(dataclasses.replace(model.config, crf=False))
        options = {"points_per_side": POINTS_PER_SIDE, "output_mode": "binary_mask", **options}
        self._generator = SamAutomaticMaskGenerator(coarse, variables, **options)
        self._predictor = SamPredictor(model, variables)

    def find(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> regions (n, H, W) bool, the one of the highest predicted IoU first; n may be 0."""
        records = self._generator.generate(image)
        records = [record for record in records if record["area"] <= MAX_SHARE * record["segmentation"].size]
        if not records:
            return np.zeros((0, *image.shape[:2]), bool)
        records.sort(key=lambda record: -record["predicted_iou"])
        regions = np.stack([record["segmentation"] for record in records])
        boxes = np.array([record["bbox"] for record in records], float)  # x, y, width, height
        boxes[:, 2:] += boxes[:, :2]
        self._predictor.set_image(image)
        again = self._predictor.predict_many(boxes=boxes, multimask_output=False).masks[:, 0]
        shared = (regions & again).sum(axis=(1, 2))
        return again[shared >= self._min_agreement * (regions | again).sum(axis=(1, 2))]
