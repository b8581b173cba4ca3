"""Metrics: IoU, boundary IoU, calibration of predicted IoU, and bootstrap intervals of averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, stats

BOUNDARY_RATIO = 0.02  # of the image's diagonal (Cheng et al. 2021)
CALIBRATION_BINS = 10
BOOTSTRAP_ROUNDS = 1000
_ROUNDS_AT_ONCE = 50  # resamples held in memory at once


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks; 0 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def boundary_width(size: tuple[int, int], ratio: float = BOUNDARY_RATIO) -> int:
    """Width in pixels of the boundary region of a mask (h, w): `ratio` of the diagonal, rounded, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def mask_boundary(mask: np.ndarray, ratio: float = BOUNDARY_RATIO) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: the mask's pixels within `boundary_width` of its outside.

    As the authors' `mask_to_boundary`: the mask minus its erosion by a square; pixels beyond the image are outside.
    Source: Cheng et al. 2021, "Boundary IoU", section 4 and github.com/bowenc0221/boundary-iou-api.
    """
    boundary = np.zeros_like(mask)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        window = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
        part = mask[window]  # beyond the window all is outside: the filter pads with 0
        side = 2 * boundary_width(mask.shape, ratio) + 1
        eroded = ndimage.minimum_filter(part.astype(np.uint8), size=side, mode="constant", cval=0)
        boundary[window] = part & (eroded == 0)
    return boundary


def bootstrap_means(
    values: np.ndarray, image_of: np.ndarray, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0
) -> np.ndarray:
    """Bootstrap means over masks. Images, not masks, are resampled: masks of one image are not independent.

    Args:
      values: (n, c), one row per mask.
      image_of: (n,) int, the image of each mask.

    Returns:
      (rounds, c) float64.
    """
    _, image_of = np.unique(image_of, return_inverse=True)
    images = int(image_of.max()) + 1
    sums = np.stack([np.bincount(image_of, column, images) for column in values.T], axis=1)
    counts = np.bincount(image_of, minlength=images)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, rounds, _ROUNDS_AT_ONCE):
        draws = rng.integers(images, size=(min(_ROUNDS_AT_ONCE, rounds - start), images))
        means.append(sums[draws].sum(axis=1) / counts[draws].sum(axis=1)[:, None])
    return np.concatenate(means)


def interval(draws: np.ndarray) -> np.ndarray:
    """(rounds, ...) -> (2, ...): the bounds of the central 95 %."""
    return np.quantile(draws, (0.025, 0.975), axis=0)


def calibration(predicted: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """How well predicted IoU agrees with true IoU, both (n,).

    Returns:
      spearman: rank correlation, None if either is constant; mean_absolute_error; mean_error: predicted minus true;
      expected_calibration_error: |mean predicted - mean true| of the bins, weighted by count; bins: nonempty bins of
      equal width in predicted IoU over 0..1 (values beyond count in the end bins), each {low, high, count, predicted,
      true}.
    """
    estimate, truth = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    number = np.clip((estimate * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    bins = [
        {
            "low": i / CALIBRATION_BINS,
            "high": (i + 1) / CALIBRATION_BINS,
            "count": int((number == i).sum()),
            "predicted": float(estimate[number == i].mean()),
            "true": float(truth[number == i].mean()),
        }
        for i in np.unique(number).tolist()
    ]
    constant = len(estimate) < 2 or np.ptp(estimate) == 0 or np.ptp(truth) == 0
    gap = sum(b["count"] * abs(b["predicted"] - b["true"]) for b in bins)
    return {
        "spearman": None if constant else float(stats.spearmanr(estimate, truth).statistic),
        "mean_absolute_error": float(np.abs(estimate - truth).mean()),
        "mean_error": float((estimate - truth).mean()),
        "expected_calibration_error": gap / len(estimate),
        "bins": bins,
    }
