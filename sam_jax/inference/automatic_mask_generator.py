"""Everything mode: masks of everything in an image, prompted by a grid of points.

Arguments and records are those of the official class of the same name; `AmgConfig` explains them, and which are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from sam_jax.config import AmgConfig
from sam_jax.inference.images import as_array
from sam_jax.inference.mask_candidates import Candidates, concatenate, encode_crops, find_in_crop, refine_edges
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.ops.boxes import nms, xyxy_to_xywh
from sam_jax.ops.crops import build_layer_grids, generate_crop_boxes
from sam_jax.ops.masks import mask_to_box, remove_small_regions
from sam_jax.ops.rle import encode_mask, run_lengths

Record = dict[str, Any]
# In images with a side this short most masks are one pixel wide or high. Their boxes have area 0 in the official code,
# whose NMS therefore keeps all duplicates. Larger images follow its rule.
FEW_PIXELS = 4


class SamAutomaticMaskGenerator:
    """Finds everything in an image.

        generator = SamAutomaticMaskGenerator(*sam_jax.load_model())
        records = generator.generate(sam_jax.read_image("image.jpg"))

    Options are the fields of `AmgConfig`, by name.
    """

    def __init__(
        self,
        model: Sam,
        variables: dict[str, Any],
        *,
        point_grids: Sequence[np.ndarray] | None = None,
        **options: Any,
    ) -> None:
        """Takes a model, its variables and options.

        Args:
          model, variables: from `load_model`.
          point_grids: for each crop layer, points (n, 2) of (x, y) in [0, 1], as fractions of the crop's sides;
            `points_per_side` must then be None.
          options: see `AmgConfig`.

        Raises:
          ValueError: an option is unknown or out of range.
        """
        known = {field.name for field in dataclasses.fields(AmgConfig)}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"unknown options {unknown}; known are {sorted(known)}")
        self.model, self.variables = model, inference_variables(model.config, variables)
        self.config = AmgConfig(**options).of_model(model.config)
        self.point_grids = _point_grids(self.config, point_grids)

    def generate(self, image: np.ndarray | Image.Image) -> list[Record]:
        """Masks of an image.

        Args:
          image: (H, W, 3) uint8 RGB, or a Pillow image, whose EXIF rotation is applied, as for files.

        Returns:
          One dictionary per mask: `segmentation` (see `AmgConfig.output_mode`), `area` in pixels, `bbox` [x, y, w, h],
          `predicted_iou`, `point_coords` [[x, y]], `stability_score` and `crop_box` [x, y, w, h]; all in pixels of the
          image. Empty if no mask was found.
        """
        pixels = as_array(image)
        return self.records(self.find(pixels), pixels.shape[:2])

    def count_points(self, size: tuple[int, int]) -> int:
        """How many points `find` decodes for an image of (H, W) pixels."""
        layers = generate_crop_boxes(size, self.config.crop_n_layers, self.config.crop_overlap_ratio)
        first = int(self.config.skip_full_image)
        return sum(len(boxes) * len(grid) for boxes, grid in list(zip(layers, self.point_grids, strict=False))[first:])

    def find(self, image: np.ndarray | Image.Image, on_points: Callable[[int], None] | None = None) -> Candidates:
        """The device's part of `generate`: the masks that pass all filters on scores and boxes.

        Args:
          image: as for `generate`.
          on_points: called with the number of points of each batch before it is decoded. What it raises ends the work.
        """
        image = as_array(image)
        config = self.config
        layers = generate_crop_boxes(image.shape[:2], config.crop_n_layers, config.crop_overlap_ratio)
        thin = min(image.shape[:2]) <= FEW_PIXELS
        found: list[Candidates] = []
        for layer, boxes in enumerate(layers):
            if layer == 0 and config.skip_full_image:
                continue
            for crop in encode_crops(self.model, self.variables, image, boxes):
                masks = find_in_crop(self.model, self.variables, config, crop, self.point_grids[layer], on_points)
                masks = masks.select(nms(masks.boxes, masks.iou, config.box_nms_thresh, thin))
                if self.model.config.crf:
                    masks = refine_edges(self.model, config, crop, masks)
                    masks = masks.select(nms(masks.boxes, masks.iou, config.box_nms_thresh, thin))
                found.append(masks)
        together = concatenate(found)
        if len(found) > 1:
            sides = (together.crop_boxes[:, 2:] - together.crop_boxes[:, :2]).astype(np.float32)
            together = together.select(nms(together.boxes, 1 / sides.prod(axis=1), config.crop_nms_thresh, thin))
        return together

    def records(self, found: Candidates, size: tuple[int, int]) -> list[Record]:
        """The host's part of `generate`: from candidates to records. `size` is (H, W) of the image."""
        config = self.config
        boxes, area, unchanged = found.boxes.copy(), found.area.copy(), np.ones(len(found), np.float32)
        masks: dict[int, np.ndarray] = {}  # only for output modes that need them: all may not fit into memory
        rles = []
        for i in range(len(found)):
            mask = _uncrop(found.mask(i), found.crop_boxes[i], size)
            if config.min_mask_region_area > 0:
                mask, changed = remove_small_regions(mask, config.min_mask_region_area)
                boxes[i], area[i], unchanged[i] = mask_to_box(mask), mask.sum(), not changed
            rles.append(encode_mask(mask))
            if config.output_mode in ("binary_mask", "uncompressed_rle"):
                masks[i] = mask
        chosen = np.arange(len(found))
        if config.min_mask_region_area > 0:  # drop the duplicates that this made; unchanged masks win
            chosen = nms(boxes, unchanged, max(config.box_nms_thresh, config.crop_nms_thresh), min(size) <= FEW_PIXELS)
        if config.mask_nms_thresh is not None:
            chosen = chosen[_mask_nms([rles[i] for i in chosen], found.iou[chosen], config.mask_nms_thresh)]
        records = []
        for i in chosen.tolist():
            segmentation = {
                "binary_mask": lambda i: masks[i],
                "coco_rle": lambda i: rles[i],
                "uncompressed_rle": lambda i: {"size": list(size), "counts": run_lengths(masks[i])},
                "low_res": found.low_res,
            }[config.output_mode](i)
            records.append(
                {
                    "segmentation": segmentation,
                    "area": int(area[i]),
                    "bbox": xyxy_to_xywh(boxes[i]).tolist(),
                    "predicted_iou": float(found.iou[i]),
                    "point_coords": [found.points[i].tolist()],
                    "stability_score": float(found.stability[i]),
                    "crop_box": xyxy_to_xywh(found.crop_boxes[i]).tolist(),
                }
            )
        return records


def _point_grids(config: AmgConfig, given: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    if (config.points_per_side is None) == (given is None):
        raise ValueError("give either points_per_side or point_grids: with point_grids, set points_per_side=None")
    if config.points_per_side is not None:
        return build_layer_grids(config.points_per_side, config.crop_n_layers, config.crop_n_points_downscale_factor)
    grids = [np.asarray(grid, np.float64).reshape(-1, 2) for grid in given or ()]
    if len(grids) <= config.crop_n_layers:
        raise ValueError(
            f"{len(grids)} point_grids are too few for the whole image and {config.crop_n_layers} crop layers"
        )
    return grids


def _uncrop(mask: np.ndarray, crop_box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A crop's mask in the image's frame: (H, W) bool, in column-major order, as RLE needs."""
    if mask.shape == size:
        return mask
    x0, y0, x1, y1 = crop_box
    whole = np.zeros(size, bool, order="F")
    whole[y0:y1, x0:x1] = mask
    return whole


def _mask_nms(rles: list[dict[str, Any]], iou: np.ndarray, threshold: float) -> list[int]:
    """NMS by the IoU of mask pixels: indices of the masks that stay, in input order."""
    kept: list[int] = []
    for i in np.argsort(-iou, kind="stable"):
        others = [rles[k] for k in kept]
        if not others or coco.iou([rles[i]], others, [0] * len(others)).max() <= threshold:
            kept.append(int(i))
    return sorted(kept)
