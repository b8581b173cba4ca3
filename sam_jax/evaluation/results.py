"""Results of an evaluation: scores of each mask, and their averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam_jax.evaluation.metrics import bootstrap_means, calibration, interval
from sam_jax.evaluation.options import ORACLE


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Scores of n masks of one set in c columns.

    Attributes:
      name: of the set.
      columns: what was scored, see `EvaluationOptions.columns` and `floors.floor_columns`.
      images: the names of the images that have a mask.
      indices: the index of each of these images in the set.
      image_of: (n,) int, index into `images`.
      mask_of: (n,) int, index of the mask in its image.
      areas: (n,) int, pixels of the true mask.
      iou, boundary_iou: (n, c) float64 with the true mask, in pixels of the image.
      predicted_iou: (n, c) float64, the model's own estimate; NaN if there is none.
      clicks: (n, K, 3) int x, y and label of the clicks; label -1 for no click.
      masks: with `keep_masks`, the scored masks: n tuples of c compressed COCO RLEs.
      skipped: error messages of images that could not be read.
    """

    name: str
    columns: tuple[str, ...]
    images: tuple[str, ...]
    indices: np.ndarray
    image_of: np.ndarray
    mask_of: np.ndarray
    areas: np.ndarray
    iou: np.ndarray
    boundary_iou: np.ndarray
    predicted_iou: np.ndarray
    clicks: np.ndarray
    masks: tuple[tuple[dict[str, Any], ...], ...] | None = None
    skipped: tuple[str, ...] = ()

    def miou(self, column: str) -> float:
        """Mean IoU over the masks of one column."""
        return float(self.iou[:, self.columns.index(column)].mean())

    def calibrated(self) -> tuple[str, ...]:
        """The columns whose calibration is meaningful. The oracle's is not: the true mask chose its mask."""
        with_estimate = ~np.isnan(self.predicted_iou).any(axis=0)
        return tuple(c for c, has in zip(self.columns, with_estimate, strict=True) if has and c != ORACLE)

    def calibration(self, column: str) -> dict[str, Any]:
        """`metrics.calibration` of one column."""
        number = self.columns.index(column)
        return calibration(self.predicted_iou[:, number], self.iou[:, number])

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """All averages, ready for JSON; intervals are 95 % bootstrap intervals over images."""
        return {
            "images": len(self.images),
            "masks": len(self.iou),
            "skipped": list(self.skipped),
            "miou": _averages(self.columns, self.iou, self.image_of, seed),
            "boundary_iou": _averages(self.columns, self.boundary_iou, self.image_of, seed),
            "calibration": {column: self.calibration(column) for column in self.calibrated()},
        }


def _averages(columns: Sequence[str], values: np.ndarray, image_of: np.ndarray, seed: int) -> dict[str, Any]:
    means, bounds = values.mean(axis=0), interval(bootstrap_means(values, image_of, seed=seed))
    return {
        column: {"mean": float(mean), "interval": [float(low), float(high)]}
        for column, mean, low, high in zip(columns, means, *bounds, strict=True)
    }


def average_over_sets(results: Sequence[EvaluationResult], seed: int = 0) -> dict[str, Any]:
    """Averages over sets as in the paper: each set has the same weight. Only columns that every set has.

    Intervals are 95 % bootstrap intervals over the images of each set; the sets are fixed.

    Returns:
      {"miou": {column: {"mean", "interval"}}, "boundary_iou": the same}.

    Raises:
      ValueError: there are no results.
    """
    if not results:
        raise ValueError("there is no result to average; evaluate at least one set")
    shared = [column for column in results[0].columns if all(column in r.columns for r in results)]
    out: dict[str, Any] = {}
    for name, field in (("miou", "iou"), ("boundary_iou", "boundary_iou")):
        means, draws = [], []
        for number, result in enumerate(results):
            values = getattr(result, field)[:, [result.columns.index(column) for column in shared]]
            means.append(values.mean(axis=0))
            draws.append(bootstrap_means(values, result.image_of, seed=seed + number))
        bounds = interval(np.mean(draws, axis=0))
        out[name] = {
            column: {"mean": float(mean), "interval": [float(low), float(high)]}
            for column, mean, low, high in zip(shared, np.mean(means, axis=0), *bounds, strict=True)
        }
    return out


def join(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """Joins the columns of results for the same masks, such as those of a model and of the floors.

    Raises:
      ValueError: the results are not for the same masks.
    """
    first = results[0]
    for other in results[1:]:
        if other.images != first.images or not np.array_equal(other.mask_of, first.mask_of):
            raise ValueError(f"results of {first.name} and {other.name} are not for the same masks")
    masks = None
    if all(result.masks is not None for result in results):
        masks = tuple(sum(rows, ()) for rows in zip(*(r.masks or () for r in results), strict=True))
    return EvaluationResult(
        first.name,
        sum((result.columns for result in results), ()),
        first.images,
        first.indices,
        first.image_of,
        first.mask_of,
        first.areas,
        np.concatenate([result.iou for result in results], axis=1),
        np.concatenate([result.boundary_iou for result in results], axis=1),
        np.concatenate([result.predicted_iou for result in results], axis=1),
        first.clicks,
        masks,
        first.skipped,
    )
