"""A model at work on images of a store: what the stages 2 and 3 have in common."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco
from tqdm import tqdm

from sam_jax.batch.image_list import ImageFile
from sam_jax.batch.result_files import Record
from sam_jax.batch.run import describe
from sam_jax.batch.segmenters import Segmenter
from sam_jax.batch.stream import Hooks, ImageResult, segment_images
from sam_jax.engine.rows import ImageRow, MaskDraft, ModelVersion
from sam_jax.engine.store import Store
from sam_jax.models.sam import Sam

Save = Callable[[ImageRow, ImageResult, np.ndarray], int | None]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A model version with its weights, from `sam_jax.load_model`."""

    version: ModelVersion
    model: Sam
    variables: Any


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run over images came to.

    Attributes:
      images: that were gone through now. masks: saved in them.
      left: images that somebody has taken up or labelled in the meantime.
      failures: a line for each image that failed; the next run tries it again.
    """

    images: int = 0
    masks: int = 0
    left: int = 0
    failures: tuple[str, ...] = ()


def find_in_images(
    store: Store, images: Sequence[ImageRow], segmenter: Segmenter, save: Save, workers: int = 2
) -> Found:
    """Segments images with a progress bar, and saves what was found in each as soon as it is there.

    Args:
      save: saves an image's masks and returns how many; None where the image is no longer to be filled. Is called by
        several threads, each time for another image.

    Raises:
      OutputError: results can no longer be written.
    """
    rows = {str(store.image_path(image)): image for image in images}
    saved: dict[int, int | None] = {}

    def finish(result: ImageResult, _objects: Any, pixels: np.ndarray) -> None:
        image = rows[result.file.path]
        saved[image.id] = save(image, result, pixels)

    files = [image_file(store, image) for image in images]
    results = segment_images(files, segmenter, workers=workers, hooks=Hooks(finish=finish))
    failures = []
    try:
        for result in tqdm(results, total=len(files), unit="image", disable=None):
            if result.error is not None:
                failures.append(describe(result))
    finally:
        results.close()  # type: ignore[attr-defined]
    counts = [count for count in saved.values() if count is not None]
    return Found(len(counts), sum(counts), len(saved) - len(counts), tuple(failures))


def image_file(store: Store, image: ImageRow) -> ImageFile:
    """An image of a store as `batch` takes it."""
    return ImageFile(str(store.image_path(image)), image.file_name, store.result_name(image), image.id)


def new_records(records: Sequence[Record], known: Sequence[dict[str, Any]], max_overlap: float) -> list[Record]:
    """The records whose IoU of pixels with each of the `known` RLEs is at most `max_overlap`, the largest first."""
    ordered = sorted(records, key=lambda record: -record["area"])
    if not ordered or not known:
        return ordered
    overlaps = coco.iou([record["segmentation"] for record in ordered], list(known), [0] * len(known)).max(axis=1)
    return [record for record, overlap in zip(ordered, overlaps, strict=True) if overlap <= max_overlap]


def drafts_of(records: Sequence[Record]) -> list[MaskDraft]:
    """Records of everything mode as masks to be saved; empty ones, of which islands were all, are left out."""
    return [
        MaskDraft(
            key=str(uuid.uuid4()),
            segmentation=record["segmentation"],
            prompts={"point_coords": record["point_coords"], "point_labels": [1], "box": None},
            predicted_iou=record["predicted_iou"],
            stability_score=record["stability_score"],
        )
        for record in records
        if record["area"] > 0
    ]
