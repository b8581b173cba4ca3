"""Baselines without learning ("floors"), to print beside a model: any useful model beats them.

box, filled           the box itself
box, ellipse          the ellipse inside it
box, GrabCut          GrabCut (Rother et al. 2004), started from the box; needs opencv-python
1 click, Felzenszwalb the segment under the first click (Felzenszwalb and Huttenlocher 2004), at the middle of three
                      scales, and the best of the three; needs scikit-image
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.evaluation.clicks import first_click
from sam_jax.evaluation.objects import Target
from sam_jax.evaluation.options import EvaluationOptions
from sam_jax.evaluation.reading import SetReader
from sam_jax.evaluation.results import EvaluationResult
from sam_jax.evaluation.sets.image_sets import ImageSet, LabelledImage
from sam_jax.ops.rle import encode_mask
from sam_jax.ops.transforms import boxes_to_input_frame, resized_size, to_input_frame

FILLED, ELLIPSE, GRABCUT = "box, filled", "box, ellipse", "box, GrabCut"
FELZENSZWALB = ("1 click, Felzenszwalb", "1 click, Felzenszwalb, best of 3")
LONGEST_SIDE = 512  # pixels; GrabCut and Felzenszwalb work on larger images shrunk to this
GRABCUT_ROUNDS = 5
SCALES = (50.0, 200.0, 800.0)


def evaluate_floors(
    image_set: ImageSet, options: EvaluationOptions | None = None, progress: bool = False
) -> EvaluationResult:
    """Scores the baselines on the same images and masks as `evaluate` with the same options; see `floor_columns`.

    Raises:
      DataError: no image of the set has a mask.
    """
    options = options or EvaluationOptions()
    columns = floor_columns(options)
    score = partial(_score_image, columns=columns, keep=options.keep_masks)
    names, indices, rows, sizes = [], [], [], []
    # Two pools: in a single one, scoring and reading threads would wait for each other.
    with ThreadPoolExecutor(options.threads) as readers, ThreadPoolExecutor(options.threads) as workers:
        reader = SetReader(image_set, options, readers, progress)
        for batch in reader.batches():
            for (index, image), found in zip(batch, workers.map(score, (image for _, image in batch)), strict=True):
                names.append(image.name)
                indices.append(index)
                rows += found
                sizes.append(len(found))
    scores = np.array([row[1] for row in rows])
    return EvaluationResult(
        name=image_set.name,
        columns=columns,
        images=tuple(names),
        indices=np.array(indices, np.int64),
        image_of=np.repeat(np.arange(len(sizes)), sizes),
        mask_of=np.concatenate([np.arange(size) for size in sizes]),
        areas=np.array([row[0] for row in rows], np.int64),
        iou=scores[:, :, 0],
        boundary_iou=scores[:, :, 1],
        predicted_iou=np.full(scores.shape[:2], np.nan),
        clicks=np.full((len(rows), 0, 3), -1),
        masks=tuple(row[2] for row in rows) if options.keep_masks else None,
        skipped=tuple(reader.skipped),
    )


def floor_columns(options: EvaluationOptions) -> tuple[str, ...]:
    """The baselines for the prompts in `options` whose packages are installed."""
    found = [FILLED, ELLIPSE] if options.boxes else []
    if options.boxes and importlib.util.find_spec("cv2"):
        found.append(GRABCUT)
    if 1 in options.clicks and importlib.util.find_spec("skimage"):
        found += FELZENSZWALB
    return tuple(found)


def _score_image(
    image: LabelledImage, columns: Sequence[str], keep: bool
) -> list[tuple[int, list[tuple[float, float]], tuple[dict[str, Any], ...]]]:
    """Area, (IoU, boundary IoU) per column and kept masks of each object."""
    size = image.image.shape[:2]
    small_size = resized_size(size, LONGEST_SIDE) if max(size) > LONGEST_SIDE else size
    small = np.asarray(Image.fromarray(image.image).resize(small_size[::-1], Image.Resampling.BILINEAR))
    segmentations = felzenszwalb(small) if FELZENSZWALB[0] in columns else []
    found = []
    for rle in image.segmentations:
        target = Target(0, rle)
        box = boxes_to_input_frame(target.box, size, small_size)
        masks: dict[str, Callable[[], np.ndarray]] = {
            FILLED: partial(filled_box, target.box, size),
            ELLIPSE: partial(ellipse_in_box, target.box, size),
            GRABCUT: lambda box=box: _resized(grabcut(small, box), size),  # type: ignore[misc]
        }
        made = {column: make() for column, make in masks.items() if column in columns}
        if segmentations:
            click = first_click(target.mask)
            x, y = to_input_frame(np.array([click.x + 0.5, click.y + 0.5]), size, small_size).astype(int)
            regions = [_resized(labels == labels[y, x], size) for labels in segmentations]
            made[FELZENSZWALB[0]] = regions[len(regions) // 2]
            made[FELZENSZWALB[1]] = max(regions, key=target.iou)
        scores = [(target.iou(made[column]), target.boundary_iou(made[column])) for column in columns]
        kept = tuple(encode_mask(made[column]) for column in columns) if keep else ()
        found.append((int(np.count_nonzero(target.mask)), scores, kept))
    return found


def filled_box(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W) bool whose centres lie in a box xyxy."""
    x, y = _centres(size)
    return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])


def ellipse_in_box(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W) bool whose centres lie in the ellipse that touches a box xyxy."""
    x, y = _centres(size)
    (x0, y0, x1, y1) = box
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def _centres(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(size[1])[None, :] + 0.5, np.arange(size[0])[:, None] + 0.5


def grabcut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, box xyxy -> (H, W) bool; the filled box if GrabCut fails, as for a box as large as the image."""
    import cv2

    h, w = image.shape[:2]
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.minimum(np.ceil(box[2:]).astype(int), (w, h))
    labels = np.full((h, w), cv2.GC_BGD, np.uint8)
    labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    cv2.setRNGSeed(0)
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        # With GC_INIT_WITH_MASK the rectangle is ignored.
        cv2.grabCut(image, labels, (0, 0, 0, 0), *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return filled_box(box, (h, w))
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def felzenszwalb(image: np.ndarray) -> list[np.ndarray]:
    """(H, W, 3) uint8 -> segment numbers (H, W) int at each of SCALES."""
    from skimage.segmentation import felzenszwalb as segment

    return [segment(image, scale=scale, sigma=0.8, min_size=50) for scale in SCALES]


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(image).astype(bool)
