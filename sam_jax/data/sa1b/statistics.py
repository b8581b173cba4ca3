"""The SAM paper's statistics of SA-1B (section 5, figures 5 and 6), for any data set in its layout."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull

from sam_jax.data.records import DataError
from sam_jax.data.rle_grid import Runs, decode_runs
from sam_jax.data.sa1b.pairs import Sa1bPairs

BINS = 50
CENTRE_BINS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class MaskStatistics:
    """Figures of m masks in n images.

    Attributes:
        masks_per_image: (n,) int64.
        relative_size: (m,) float64, square root of mask area over image area.
        concavity: (m,) float64, 1 - mask area / area of its convex hull, pixels being squares.
        centres: (m, 2) float64, (x, y) of the mean mask pixel, from 0 to 1 along each side of the image.
        bad: images left out because their JSON or one of their masks cannot be read.
    """

    masks_per_image: np.ndarray
    relative_size: np.ndarray
    concavity: np.ndarray
    centres: np.ndarray
    bad: int


def measure(source: Sa1bPairs, limit: int, progress: Callable[[np.ndarray], Iterable[int]] = iter) -> MaskStatistics:
    """Measures `limit` images spread evenly over the data set, or all if 0. Empty masks are ignored."""
    count = min(limit, len(source)) or len(source)
    rows: list[np.ndarray] = []
    bad = 0
    for index in progress(np.arange(count) * len(source) // count):
        try:
            rows.append(measure_image(source.annotations(int(index))))
        except DataError:
            bad += 1
    if not sum(map(len, rows)):
        raise DataError(f"{source.path}: none of {count} images has a mask; `check` lists what is wrong")
    table = np.concatenate(rows)
    number = np.array([len(row) for row in rows], np.int64)
    return MaskStatistics(number, table[:, 0], table[:, 1], table[:, 2:], bad)


def measure_image(annotations: list[dict[str, Any]]) -> np.ndarray:
    """(n, 4) float64: relative size, concavity, x and y of the centre, of each non-empty mask."""
    if not annotations:
        return np.zeros((0, 4))  # the image's size is known from masks only
    try:
        h, w = (int(side) for side in annotations[0]["segmentation"]["size"])
    except (KeyError, TypeError, ValueError):
        raise DataError("mask 0 is not an RLE") from None
    runs = decode_runs([annotation["segmentation"] for annotation in annotations], (h, w))
    runs = runs.select(runs.areas > 0)
    relative = np.sqrt(runs.areas / (h * w))
    return np.column_stack([relative, 1 - runs.areas / hull_areas(runs), centres(runs) / (w, h)])


def centres(runs: Runs) -> np.ndarray:
    """(n, 2) float64: mean (x, y) of each mask's pixels, pixel centres at 0.5; no mask may be empty."""
    owner, column, top, bottom = runs.strips()
    length = bottom - top
    x = np.bincount(owner, (column + 0.5) * length, len(runs.areas))
    y = np.bincount(owner, (top + bottom) / 2 * length, len(runs.areas))
    return np.stack([x, y], axis=1) / runs.areas[:, None]


def hull_areas(runs: Runs) -> np.ndarray:
    """(n,) float64: area of the convex hull of each mask's pixels, taken as squares; no mask may be empty."""
    owner, column, top, bottom = runs.strips()
    # Only the outermost corners of each column can be on the hull.
    begins = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(column, prepend=-1) != 0))
    x = column[begins]
    low, high = np.minimum.reduceat(top, begins), np.maximum.reduceat(bottom, begins)
    corners = np.stack([x, low, x, high, x + 1, low, x + 1, high], axis=1).reshape(-1, 4, 2).astype(float)
    bounds = np.searchsorted(owner[begins], np.arange(len(runs.areas) + 1))
    masks = (corners[begin:end].reshape(-1, 2) for begin, end in itertools.pairwise(bounds))
    return np.array([ConvexHull(points).volume for points in masks], float)


def summary(statistics: MaskStatistics) -> dict[str, Any]:
    """The content of stats.json: mean, quartiles and histogram of each figure, and a 2D histogram of centres, top row
    first."""
    most = int(statistics.masks_per_image.max())
    centre_counts, _, _ = np.histogram2d(
        statistics.centres[:, 1], statistics.centres[:, 0], CENTRE_BINS, ((0, 1), (0, 1))
    )
    return {
        "images": len(statistics.masks_per_image),
        "masks": len(statistics.relative_size),
        "unreadable_images": statistics.bad,
        "masks_per_image": _figure(statistics.masks_per_image, 10 * (most // 10 + 1)),
        "relative_size": _figure(statistics.relative_size, 1),
        "concavity": _figure(statistics.concavity, 1),
        "centres": {
            "mean": statistics.centres.mean(axis=0).tolist(),
            "counts": centre_counts.astype(int).tolist(),
        },
    }


def _figure(values: np.ndarray, top: float) -> dict[str, Any]:
    counts, edges = np.histogram(values, BINS, (0, top))
    quartiles = np.quantile(values, (0.25, 0.5, 0.75))
    return {
        "mean": float(values.mean()),
        "quartiles": quartiles.tolist(),
        "smallest": float(values.min()),
        "largest": float(values.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def table(figures: dict[str, Any]) -> str:
    """The figures of `summary` as text for a terminal."""
    lines = [f"{figures['images']} images, {figures['masks']} masks"]
    if figures["unreadable_images"]:
        lines.append(f"{figures['unreadable_images']} images could not be read and are left out: run `check`")
    lines.append(f"{'':17}{'mean':>8}{'25 %':>8}{'median':>8}{'75 %':>8}{'least':>8}{'most':>8}")
    for name, digits in (("masks_per_image", 1), ("relative_size", 3), ("concavity", 3)):
        figure = figures[name]
        values = [figure["mean"], *figure["quartiles"], figure["smallest"], figure["largest"]]
        lines.append(f"{name.replace('_', ' '):17}" + "".join(f"{value:8.{digits}f}" for value in values))
    x, y = figures["centres"]["mean"]
    lines.append(f"{'mean centre':17}{x:8.3f}{y:8.3f}  (x, y as shares of the sides)")
    return "\n".join(lines)
