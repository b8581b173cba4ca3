"""Stage 3, fully automatic: everything mode with the settings that SA-1B was made with, and no annotator."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam_jax.batch.result_files import ResultFiles
from sam_jax.batch.segmenters import EverythingSegmenter
from sam_jax.batch.stream import ImageResult
from sam_jax.config.engine_models import AutomaticConfig
from sam_jax.engine.finding import Found, LoadedVersion, drafts_of, find_in_images, image_file, new_records
from sam_jax.engine.rows import ACCEPTED, ASSISTED, AUTOMATIC, DELETED, SEMI_AUTOMATIC, ImageRow
from sam_jax.engine.store import Store


def annotate(
    store: Store,
    loaded: LoadedVersion,
    out: str | Path,
    config: AutomaticConfig | None = None,
    limit: int | None = None,
) -> Found:
    """Accepts the masks that a model finds in images that nobody has labelled, and writes them in SA-1B's format.

    `out`/NAME.json is written before the store says that an image is done: if the store does, the file is there. A run
    that ends early, for any reason, goes on where it stopped when it is started again.

    Args:
      out: directory of the files; made if it is missing.
      limit: go through so many images at most.

    Raises:
      OutputError: files can no longer be written.
      ValueError: another program's file is in the place of one of them.
    """
    config, version = config or AutomaticConfig(), loaded.version
    images = unlabelled_images(store, version.id, config)[:limit]
    amg = config.amg.of_model(loaded.model.config)
    files = ResultFiles(out, ("json",), {"model": version.name, "amg": vars(amg)})
    for image in images:
        files.is_finished(image_file(store, image))  # raises where another program's file is in the way
    segmenter = EverythingSegmenter(loaded.model, loaded.variables, **vars(amg))

    def save(image: ImageRow, result: ImageResult, pixels: np.ndarray) -> int | None:
        known = [mask.segmentation for mask in store.masks(image.id) if not mask.from_model or mask.version > 1]
        records = [record for record in new_records(result.records, known, config.max_overlap) if record["area"]]
        files.write(result.file, None, image.size, records, pixels)
        if not store.fill_image(image.id, drafts_of(records), AUTOMATIC, version.id, author=version.name):
            return None
        delete_replaced(store, image.id)
        return len(records)

    try:
        return find_in_images(store, images, segmenter, save)
    finally:
        delete_replaced(store)  # of an image that a run was killed in before it came to this


def unlabelled_images(store: Store, version: int, config: AutomaticConfig) -> list[ImageRow]:
    """The images that a model version has still to go through, by ascending id."""
    sql = "SELECT image_id FROM fills WHERE stage = ? AND ifnull(model_version = ?, 1)"
    skipped = {row["image_id"] for row in store.select(sql, AUTOMATIC, version if config.again else None)}
    if not config.everything:
        sql = "SELECT DISTINCT image_id FROM tasks WHERE state != 'open' AND stage IN (?, ?)"
        skipped |= {row["image_id"] for row in store.select(sql, ASSISTED, SEMI_AUTOMATIC)}
    return [image for image in store.images() if image.id not in skipped]


def delete_replaced(store: Store, image_id: int | None = None) -> int:
    """Deletes automatic masks where another version has gone through their image since, but for those that people have
    changed; of one image or of all. Returns how many."""
    sql = """UPDATE masks SET state = ?, author = 'model', updated_at = ?, version = version + 1
        WHERE stage = ? AND state = ? AND from_model = 1 AND masks.version = 1 AND ifnull(image_id = ?, 1)
        AND EXISTS (SELECT 1 FROM fills WHERE fills.image_id = masks.image_id AND fills.stage = masks.stage
            AND fills.model_version != masks.model_version AND fills.finished_at > masks.created_at)"""
    with store.transaction() as connection:
        count: int = connection.execute(sql, (DELETED, store.clock(), AUTOMATIC, ACCEPTED, image_id)).rowcount
    return count
