"""Masks that a phrase may mean, whichever way they were found, as run lengths and crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sam_jax.config import TextOptions
from sam_jax.inference.overlays import mask_record
from sam_jax.inference.predictor import SamPredictor
from sam_jax.ops.rle import decode_mask
from sam_jax.text.crops import crop_mask
from sam_jax.text.embedding import LoadedTowers

Record = dict[str, Any]
_BOXES_AT_ONCE = 16  # whose masks are enlarged to the image together
_THREADS = 2  # Pillow leaves the interpreter lock while it resizes


class PhraseBoxes(NamedTuple):
    """What a detector found for one phrase: boxes (n, 4) xyxy in pixels of the image, and their scores (n,)."""

    boxes: np.ndarray
    scores: np.ndarray


# Any open-vocabulary detector: an image (H, W, 3) uint8 and phrases -> boxes of each phrase, in their order.
Detector = Callable[[np.ndarray, Sequence[str]], Sequence[PhraseBoxes]]


def detect(detector: Detector, image: np.ndarray, phrases: Sequence[str]) -> list[PhraseBoxes]:
    """What a detector finds, checked. Raises ValueError for what is not one `PhraseBoxes` per phrase."""
    found = [
        PhraseBoxes(np.asarray(b, float).reshape(-1, 4), np.asarray(s, float)) for b, s in detector(image, phrases)
    ]
    if len(found) != len(phrases):
        raise ValueError(f"the detector gave boxes of {len(found)} phrases for {len(phrases)}; expected one entry each")
    for phrase, (boxes, scores) in zip(phrases, found, strict=True):
        if scores.shape != (len(boxes),):
            raise ValueError(f"the detector gave {len(boxes)} boxes and scores {scores.shape} for {phrase!r}")
    return found


def masks_of_boxes(predictor: SamPredictor, image: np.ndarray, boxes: np.ndarray) -> list[Record]:
    """A record of each box (n, 4) xyxy, with its mask; the image is encoded once."""
    records = []
    if len(boxes):
        predictor.set_image(image)
    for start in range(0, len(boxes), _BOXES_AT_ONCE):
        part = boxes[start : start + _BOXES_AT_ONCE]
        masks, ious, _ = predictor.predict_many(boxes=part, multimask_output=False)
        for box, mask, iou in zip(part, masks[:, 0], ious[:, 0], strict=True):
            records.append(mask_record(0, mask, iou, {"box": box.tolist()}))
            del records[-1]["id"]
    predictor.reset_image()
    return records


def embed_masks(
    towers: LoadedTowers, image: np.ndarray, records: Sequence[Record], options: TextOptions, progress: bool = False
) -> np.ndarray:
    """Embeddings (n, E) float32 of length one of the records' masks: crops with and without background, weighted.

    Masks without a pixel have an embedding of zeros, which is like nothing.
    """

    def crops(record: Record) -> list[np.ndarray]:
        mask = decode_mask(record["segmentation"])
        looks = [(background, share) for background, share in shares if share]
        return [crop_mask(towers.config, image, mask, options.enlarge, look).pixels for look, _ in looks]

    shares = ((False, options.masked_share), (True, 1 - options.masked_share))
    weights = [share for _, share in shares if share]
    embeddings = np.zeros((len(records), towers.embed_dim), np.float32)
    seen = [i for i, record in enumerate(records) if record["area"]]
    if not seen:
        return embeddings
    with ThreadPoolExecutor(_THREADS, "crops") as pool:
        pixels = np.stack([one for part in pool.map(crops, [records[i] for i in seen]) for one in part])
    found = towers.embed_images(pixels, batch_size=options.batch_size, progress=progress)
    mean = np.einsum("nle,l->ne", found.reshape(len(seen), len(weights), -1), weights)
    embeddings[seen] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return embeddings
