"""Object proposals: the masks of a dense grid of points, best first (SAM paper, section 7.3 and appendix D.3).

A 64x64 grid, no filters; of boxes that overlap by more than 0.9 the better stays; ranked by the mean of predicted IoU
and stability; 1000 of them. A grid of 4096 points has 12,288 masks, which together fill gigabytes: in a first pass only
their scores and boxes are kept; in a second one the masks that were chosen are made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sam_jax.batch.prompt_files import ImageObjects
from sam_jax.config import AmgConfig
from sam_jax.inference.mask_candidates import Candidates, Crop, encode_crops, find_in_crop, refine_edges
from sam_jax.models.sam import Sam, inference_variables
from sam_jax.ops.boxes import nms, xyxy_to_xywh
from sam_jax.ops.crops import build_layer_grids
from sam_jax.ops.rle import encode_mask

Size = tuple[int, int]


@dataclass(frozen=True)
class ProposalOptions:
    """What the paper sets.

    Attributes:
      points_per_side: of the grid. points_per_batch: decoded at once; their masks lie in memory together.
      box_nms_thresh: of two masks whose boxes overlap by more than this IoU, the worse one goes.
      most: how many proposals of an image are kept.
      single_output: one mask a point, the decoder's for prompts that are not ambiguous, in place of three.
    """

    points_per_side: int = 64
    points_per_batch: int = 32
    box_nms_thresh: float = 0.9
    most: int = 1000
    single_output: bool = False

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}; expected 1 or more")

    @property
    def amg(self) -> AmgConfig:
        """The same as settings of everything mode. Raises ValueError for what is out of range."""
        return AmgConfig(
            points_per_side=self.points_per_side,
            points_per_batch=self.points_per_batch,
            box_nms_thresh=self.box_nms_thresh,
            pred_iou_thresh=0.0,
            stability_score_thresh=0.0,
        )


class ProposalSegmenter:
    """Proposes objects; see the top of this file. A `batch.segmenters.Segmenter`, of SA-1B's records with a `score`."""

    def __init__(self, model: Sam, variables: Any, options: ProposalOptions | None = None) -> None:
        """Takes a model, its variables and settings."""
        self._model, self._variables = model, inference_variables(model.config, variables)
        self._options = options or ProposalOptions()
        self._config = self._options.amg
        self._grid = build_layer_grids(self._options.points_per_side, 0, 1)[0]

    def find(self, image: np.ndarray, objects: ImageObjects | None = None) -> list[dict[str, Any]]:
        """All of the work, of an image (H, W, 3) uint8, as masks cannot wait. Takes no prompts."""
        h, w = image.shape[:2]
        (crop,) = encode_crops(self._model, self._variables, image, [(0, 0, w, h)])
        boxes, scores, areas, per_point = self._scores(crop)
        there = np.flatnonzero(areas)  # an empty mask proposes nothing
        best = there[nms(boxes[there], scores[there], self._config.box_nms_thresh)][: self._options.most]
        records: dict[int, dict[str, Any]] = {}
        points = np.unique(best // per_point)
        for numbers in self._batches(points):
            masks = self._masks(crop, self._grid[numbers])
            rows = {
                int(place): row for row, place in enumerate((numbers[:, None] * per_point + np.arange(per_point)).flat)
            }
            wanted = [place for place in best.tolist() if place in rows]
            chosen = masks.select(np.array([rows[place] for place in wanted], int))
            if crop.encoded.pixels is not None:
                chosen = refine_edges(self._model, self._config, crop, chosen)
            records |= {place: _record(chosen, row) for row, place in enumerate(wanted)}
        return [records[place] for place in best.tolist()]

    def records(self, found: list[dict[str, Any]], size: Size) -> list[dict[str, Any]]:
        """What `find` has found, best first."""
        return found

    def on_device(self, device: jax.Device) -> ProposalSegmenter:
        """The same, with its variables on a device."""
        return ProposalSegmenter(self._model, jax.device_put(self._variables, device), self._options)

    def _scores(self, crop: Crop) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Boxes (n, 4), scores (n,) and areas (n,) of the masks of all points, and how many a point has."""
        boxes, scores, areas = [], [], []
        for numbers in self._batches(np.arange(len(self._grid))):
            masks = self._masks(crop, self._grid[numbers])
            boxes.append(masks.boxes)
            scores.append((masks.iou + masks.stability) / 2)
            areas.append(masks.area)
        count = sum(map(len, scores))
        return np.concatenate(boxes), np.concatenate(scores), np.concatenate(areas), count // len(self._grid)

    def _batches(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), self._options.points_per_batch):
            yield numbers[start : start + self._options.points_per_batch]

    def _masks(self, crop: Crop, grid: np.ndarray) -> Candidates:
        """All masks of some points, point after point: without filters none is dropped."""
        return find_in_crop(
            self._model, self._variables, self._config, crop, grid, single_output=self._options.single_output
        )


def _record(masks: Candidates, row: int) -> dict[str, Any]:
    iou, stability = float(masks.iou[row]), float(masks.stability[row])
    return {
        "segmentation": encode_mask(masks.mask(row)),
        "area": int(masks.area[row]),
        "bbox": xyxy_to_xywh(masks.boxes[row]).tolist(),
        "predicted_iou": iou,
        "point_coords": [masks.points[row].tolist()],
        "stability_score": stability,
        "score": (iou + stability) / 2,
    }
