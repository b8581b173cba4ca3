"""Segments one image with prompts and writes the results: the work behind `infer.py` with prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from sam_jax.inference.images import as_array
from sam_jax.inference.overlays import (
    caption,
    draw_prompts,
    label_masks,
    labels_of,
    mask_record,
    overlay_masks,
    side_by_side,
    write_image,
    write_records,
)
from sam_jax.inference.predictor import PredictedMasks, SamPredictor, check_labels
from sam_jax.ops.rle import decode_mask


@dataclass(frozen=True, eq=False)
class ImagePrompts:
    """Prompts for one image, in its pixels.

    Attributes:
      points: (P, 2) x, y; all for one object.
      labels: (P,) 1 on the object, 0 off it.
      boxes: (N, 4) xyxy; each is a separate object.
      mask_input: (1, 4h, 4w) logits for a single object.
    """

    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    boxes: np.ndarray | None = None
    mask_input: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            check_labels(self.labels, allowed=(0, 1))
        has_more = self.points is not None or self.mask_input is not None
        if self.boxes is not None and len(self.boxes) > 1 and has_more:
            raise ValueError(
                f"{len(self.boxes)} boxes are {len(self.boxes)} objects, but points and a mask belong to one object; "
                "give one box with them, or boxes alone"
            )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to segment."""
        return self.points is None and self.boxes is None and self.mask_input is None

    @property
    def is_ambiguous(self) -> bool:
        """Whether the prompt is a single point, which may mean a part, an object or a group: it gets three masks."""
        return self.boxes is None and self.mask_input is None and self.points is not None and len(self.points) == 1


def segment_image(predictor: SamPredictor, image: np.ndarray | Image.Image, prompts: ImagePrompts) -> PredictedMasks:
    """Masks of all objects of an image, (M, H, W) bool; for an ambiguous prompt, in descending predicted IoU."""
    predictor.set_image(image)
    if prompts.boxes is not None and len(prompts.boxes) != 1:  # an object each
        many = predictor.predict_many(boxes=prompts.boxes, multimask_output=False)
        return PredictedMasks(*(part.reshape(-1, *part.shape[2:]) for part in many))
    box = None if prompts.boxes is None else prompts.boxes[0]
    flat = predictor.predict(
        prompts.points, prompts.labels, box, prompts.mask_input, multimask_output=prompts.is_ambiguous
    )
    if prompts.is_ambiguous:
        order = np.argsort(-flat.iou_predictions, kind="stable")
        flat = PredictedMasks(*(part[order] for part in flat))
    return flat


def prompt_fields(prompts: ImagePrompts, index: int) -> dict[str, Any]:
    """The prompt of mask `index`, as fields of its record."""
    fields: dict[str, Any] = {}
    if prompts.points is not None and prompts.labels is not None:
        fields |= {"point_coords": prompts.points.tolist(), "point_labels": prompts.labels.tolist()}
    if prompts.boxes is not None:
        fields["box"] = prompts.boxes[index].tolist()
    return fields


def write_results(
    out: epath.PathLike,
    path: epath.PathLike,
    image: np.ndarray | Image.Image,
    prompts: ImagePrompts,
    predicted: PredictedMasks,
) -> epath.Path:
    """Writes `NAME.masks.json`, `NAME.mask_0.png` ... and `NAME.overlay.jpg` into the directory `out`.

    Returns:
      The overlay's path. The JSON is written last: if it exists, the results are complete.
    """
    annotations = [
        mask_record(index, mask, iou, prompt_fields(prompts, index))
        for index, (mask, iou, _) in enumerate(zip(*predicted, strict=True))
    ]
    return _write(out, path, as_array(image), annotations, lambda: draw_overlay(image, prompts, predicted))


def write_phrase_results(
    out: epath.PathLike, path: epath.PathLike, image: np.ndarray, records: Sequence[dict[str, Any]]
) -> epath.Path:
    """As `write_results`, of records with run lengths, `text` and `score`, which the overlay tells."""
    masks = [decode_mask(record["segmentation"]) for record in records]
    annotations = [{"id": index, **record} for index, record in enumerate(records)]
    return _write(
        out, path, image, annotations, lambda: label_masks(overlay_masks(image, masks), masks, labels_of(records))
    )


def _write(
    out: epath.PathLike,
    path: epath.PathLike,
    pixels: np.ndarray,
    annotations: list[dict[str, Any]],
    draw: Callable[[], np.ndarray],
) -> epath.Path:
    folder, name = epath.Path(out), epath.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier_results(folder, name.stem)
    for index, record in enumerate(annotations):
        mask = decode_mask(record["segmentation"])
        write_image(folder / f"{name.stem}.mask_{index}.png", mask.astype(np.uint8) * 255)
    overlay = folder / f"{name.stem}.overlay.jpg"
    write_image(overlay, draw())
    size = {"file_name": name.name, "width": pixels.shape[1], "height": pixels.shape[0]}
    write_records(folder / f"{name.stem}.masks.json", size, annotations)
    return overlay


def _remove_earlier_results(folder: epath.Path, stem: str) -> None:
    """Removes results of an earlier run, its JSON first, so that it never describes missing files."""
    (folder / f"{stem}.masks.json").unlink(missing_ok=True)
    for file in list(folder.iterdir()):
        if re.fullmatch(re.escape(stem) + r"\.mask_\d+\.png", file.name):
            file.unlink()


def draw_overlay(image: np.ndarray | Image.Image, prompts: ImagePrompts, predicted: PredictedMasks) -> np.ndarray:
    """The image with masks and prompts drawn over it; for an ambiguous prompt, one panel per mask."""
    pixels = as_array(image)

    def panel(masks: np.ndarray) -> np.ndarray:
        return draw_prompts(overlay_masks(pixels, list(masks)), prompts.points, prompts.labels, prompts.boxes)

    if not prompts.is_ambiguous:
        return panel(predicted.masks)
    panels = [
        caption(panel(mask[None]), f"mask {index}: predicted IoU {iou:.2f}")
        for index, (mask, iou, _) in enumerate(zip(*predicted, strict=True))
    ]
    return side_by_side(panels)
