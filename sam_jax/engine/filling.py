"""Stage 2, semi-automatic: a model proposes confident masks; annotators accept or correct them, and add the rest.

SAM paper, section 4: annotators are to spend their time on objects that stand out less. The paper detects confident
masks with a box detector; here they are those of everything mode, far above the thresholds of the model in use.
"""

from __future__ import annotations

import numpy as np

from sam_jax.batch.segmenters import EverythingSegmenter
from sam_jax.batch.stream import ImageResult
from sam_jax.config.engine_models import FillConfig
from sam_jax.engine.finding import Found, LoadedVersion, drafts_of, find_in_images, new_records
from sam_jax.engine.rows import ASSISTED, OPEN, SEMI_AUTOMATIC, ImageRow
from sam_jax.engine.store import Store


def fill(store: Store, loaded: LoadedVersion, config: FillConfig | None = None, limit: int | None = None) -> Found:
    """Proposes masks in the images that wait for an annotator, each once per model version.

    Held-out images get none: masks that the present model has proposed would speak for it when it is compared with
    another. A run that ends early, for any reason, goes on where it stopped when it is started again.

    Args:
      limit: go through so many images at most; those that come first for annotators.
    """
    config = config or FillConfig()
    images = waiting_images(store, loaded.version.id)[:limit]
    segmenter = EverythingSegmenter(loaded.model, loaded.variables, **vars(config.of_model(loaded.model.config)))

    def save(image: ImageRow, result: ImageResult, _pixels: np.ndarray) -> int | None:
        known = [mask.segmentation for mask in store.masks(image.id, state=None)]
        drafts = drafts_of(new_records(result.records, known, config.max_overlap))
        done = store.fill_image(image.id, drafts, SEMI_AUTOMATIC, loaded.version.id, author=loaded.version.name)
        return len(drafts) if done else None

    return find_in_images(store, images, segmenter, save)


def waiting_images(store: Store, version: int) -> list[ImageRow]:
    """Images to train on with an open task that a model version has not filled, in the order in which annotators get
    them."""
    sql = "SELECT image_id FROM fills WHERE stage = ? AND model_version = ?"
    skipped = {row["image_id"] for row in store.select(sql, SEMI_AUTOMATIC, version)}
    skipped |= {image.id for image in store.images(held_out=True)}
    tasks = (task for stage in (ASSISTED, SEMI_AUTOMATIC) for task in store.tasks(stage, OPEN))
    wanted = sorted((task.id, task.image_id) for task in tasks if task.image_id not in skipped)
    return [store.image(image_id) for _, image_id in wanted]
