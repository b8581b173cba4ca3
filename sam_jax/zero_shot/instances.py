"""Instance segmentation: masks for the boxes of any detector (SAM paper, section 7.4 and appendix D.4).

Each box is asked for three masks; the one with the highest predicted IoU is fed back together with the box, and what
comes of that is the object's mask. The detector's category and score stay.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from sam_jax.batch.prompt_files import ImageObjects, ObjectPrompt
from sam_jax.batch.segmenters import FoundObject, PromptedSegmenter
from sam_jax.evaluation.objects import Engine, ObjectGroup, Target
from sam_jax.models.sam import Sam, inference_variables

BOXES_AT_ONCE = 32


class InstanceSegmenter(PromptedSegmenter):
    """One mask for each box of an image's prompts; see the top of this file."""

    def __init__(self, model: Sam, variables: Any, boxes_per_batch: int = BOXES_AT_ONCE) -> None:
        """Takes a model, its variables, and how many boxes it works on at once."""
        if boxes_per_batch < 1:
            raise ValueError(f"boxes_per_batch is {boxes_per_batch}; expected 1 or more")
        self._model, self._variables = model, inference_variables(model.config, variables)
        self._boxes_per_batch = boxes_per_batch

    def find(self, image: np.ndarray, objects: ImageObjects | None) -> list[FoundObject]:  # type: ignore[override]
        """A mask per box, in their order; `image` is (H, W, 3) uint8.

        Raises:
          ValueError: an object has no box.
        """
        prompts = () if objects is None else objects.objects
        if any(prompt.box is None for prompt in prompts):
            raise ValueError("an object has no box; expected a detector's boxes")
        found: list[FoundObject] = []
        if prompts:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                engine = Engine(self._model, self._variables, pool)
                encoded = engine.encode([image], 1)
                for start in range(0, len(prompts), self._boxes_per_batch):
                    part = prompts[start : start + self._boxes_per_batch]
                    targets = [_Box(prompt, image.shape[:2]) for prompt in part]
                    found += _refined(ObjectGroup(engine, encoded, targets, (1, self._boxes_per_batch)), part)
        return found

    def on_device(self, device: jax.Device) -> InstanceSegmenter:
        """The same, with its variables on a device."""
        return InstanceSegmenter(self._model, jax.device_put(self._variables, device), self._boxes_per_batch)


class _Box(Target):
    """An object of which nothing is known but a box in an image of some size."""

    def __init__(self, prompt: ObjectPrompt, size: tuple[int, int]) -> None:
        self.image, self.mask = 0, np.broadcast_to(False, size)
        self.__dict__["box"] = np.array(prompt.box, np.float64)


def _refined(group: ObjectGroup, prompts: Sequence[ObjectPrompt]) -> list[FoundObject]:
    """The best of each box's masks, fed back with the box."""
    boxes = group.boxes()
    predictions = group.predict(boxes=boxes)
    best = 1 + group.gather(predictions.iou_predictions)[:, 1:].argmax(axis=1)
    logits, _ = group.choose(predictions, best)
    logits, estimates = group.choose(group.predict(boxes=boxes, mask_inputs=logits), np.zeros(len(prompts)))
    return [
        FoundObject(np.packbits(masks[0], axis=1), float(iou), prompt)
        for masks, iou, prompt in zip(group.in_image(logits, boxes), estimates, prompts, strict=True)
    ]
