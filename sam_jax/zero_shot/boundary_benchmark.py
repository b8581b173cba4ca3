"""The boundary benchmark of BSDS500: how well soft edge maps agree with the boundaries that people drew.

At each of some thresholds an edge map is cut, thinned and compared with the boundaries of each person. A boundary pixel
is recalled where it has a partner among the edges; an edge pixel is right where it has one in anybody's boundaries.

  ODS  F measure of all images together at the best threshold for all ("optimal data set scale")
  OIS  F measure where each image has its own best threshold ("optimal image scale")
  AP   area under precision over recall
  R50  recall where precision is one half

Source: Arbelaez et al. 2011; `evaluation_bdry_image.m` and `collect_eval_bdry.m` of the benchmark, `edgesEvalDir.m` of
Dollar's toolbox for R50.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from etils import epath
from scipy.io import loadmat, matlab

from sam_jax.zero_shot.boundary_matching import MAX_DISTANCE, Boundary, thin

THRESHOLDS = 99
_STEPS = 100  # between two thresholds, where the best one is looked for
_NOT_BSDS = (matlab.MatReadError, OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError)


class GroundTruthError(ValueError):
    """Boundaries that cannot be read; the message names the file and what is expected."""


def read_boundaries(path: epath.PathLike) -> list[np.ndarray]:
    """(H, W) bool boundaries of each person, from a .mat file of BSDS500.

    Raises:
      GroundTruthError: it cannot be read, or is no such file.
    """
    try:
        people = loadmat(io.BytesIO(epath.Path(path).read_bytes()))["groundTruth"].ravel()
        found = [person["Boundaries"].item() > 0 for person in people]
    except _NOT_BSDS as error:
        raise GroundTruthError(
            f"{path} has no groundTruth{{i}}.Boundaries ({error}); expected a .mat file of BSDS500's groundTruth"
        ) from error
    if not found:
        raise GroundTruthError(f"{path} holds nobody's boundaries; expected a .mat file of BSDS500's groundTruth")
    return found


def cuts(count: int = THRESHOLDS) -> np.ndarray:
    """(count,) float64: thresholds spread evenly between 0 and 1, neither of them included."""
    return np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count)


def count_matches(
    edges: np.ndarray,
    boundaries: Sequence[np.ndarray],
    thresholds: np.ndarray,
    max_distance: float = MAX_DISTANCE,
) -> np.ndarray:
    """Counts of one image.

    Args:
      edges: (H, W) uint8, 255 for certain.
      boundaries: (H, W) bool each.
      thresholds: (n,) shares of 255.
      max_distance: of pixels that may be partners, as a share of the image's diagonal.

    Returns:
      (n, 4) int64: boundary pixels with a partner and all of them, summed over people; edge pixels with one and all.

    Raises:
      GroundTruthError: edges and boundaries differ in size.
    """
    for boundary in boundaries:
        if boundary.shape != edges.shape:
            (h, w), (y, x) = edges.shape, boundary.shape
            raise GroundTruthError(f"edges of {w}x{h} pixels and boundaries of {x}x{y}: they are not of one image")
    people = [Boundary(boundary, max_distance) for boundary in boundaries]
    total = sum(person.count for person in people)
    rows: list[tuple[int, int, int, int]] = []
    before = None
    for threshold in thresholds:
        above = edges / 255 >= threshold
        if before is None or not np.array_equal(above, before):
            found, right, recalled = thin(above), np.zeros(above.shape, bool), 0
            for person in people:
                pairs, matched = person.match(found)
                recalled += pairs
                right |= matched
            rows.append((recalled, total, int(right.sum()), int(found.sum())))
        else:
            rows.append(rows[-1])
        before = above
    return np.array(rows, np.int64)


@dataclass(frozen=True)
class BoundaryScores:
    """What the benchmark prints.

    Attributes:
      threshold, recall, precision, ods: at the best threshold for all images.
      ois_recall, ois_precision, ois: at each image's best threshold.
      ap, r50: see the top of this file.
      curve: (threshold, recall, precision) of all images together.
    """

    threshold: float
    recall: float
    precision: float
    ods: float
    ois_recall: float
    ois_precision: float
    ois: float
    ap: float
    r50: float
    curve: tuple[tuple[float, float, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def score(counts: np.ndarray, thresholds: np.ndarray) -> BoundaryScores:
    """The scores of a set.

    Args:
      counts: (images, n, 4) of `count_matches`.
      thresholds: (n,).
    """
    recall, precision = _rates(counts.sum(axis=0))
    threshold, best_recall, best_precision, ods = _best(thresholds, recall, precision)
    of_images = _f_measure(*_rates(counts))
    last_best = of_images.shape[1] - 1 - of_images[:, ::-1].argmax(axis=1)
    own_recall, own_precision = _rates(counts[np.arange(len(counts)), last_best].sum(axis=0))
    return BoundaryScores(
        threshold,
        best_recall,
        best_precision,
        ods,
        ois_recall=float(own_recall),
        ois_precision=float(own_precision),
        ois=float(_f_measure(own_recall, own_precision)),
        ap=_average_precision(recall, precision),
        r50=_recall_at_half(recall, precision),
        curve=tuple(map(tuple, np.stack([thresholds, recall, precision], axis=1).tolist())),
    )


def _rates(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 4) -> recall and precision (...); none of none is 0."""
    recalled, boundary, right, found = np.moveaxis(counts.astype(np.float64), -1, 0)
    return recalled / np.maximum(boundary, 1), right / np.maximum(found, 1)


def _f_measure(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    both = recall + precision
    return 2 * recall * precision / np.where(both == 0, 1, both)


def _best(thresholds: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> tuple[float, float, float, float]:
    """Threshold, recall, precision and F where F is highest, between thresholds as well."""
    places = np.arange(len(thresholds))
    fine = np.linspace(0, len(thresholds) - 1, (len(thresholds) - 1) * (_STEPS - 1) + 1)
    t, r, p = (np.interp(fine, places, values) for values in (thresholds, recall, precision))
    f = _f_measure(r, p)
    best = int(f.argmax())
    return float(t[best]), float(r[best]), float(p[best]), float(f[best])


def _average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under precision at recalls 0, .01, ..., 1; 0 beyond the recalls that were measured."""
    recalls, from_end = np.unique(recall[::-1], return_index=True)  # of equal ones the last, as MATLAB had it
    if len(recalls) < 2:
        return 0.0
    precisions = precision[::-1][from_end]
    return float(np.interp(np.arange(101) / 100, recalls, precisions, left=0, right=0).sum() / 100)


def _recall_at_half(recall: np.ndarray, precision: np.ndarray) -> float:
    """Recall where precision is .5; where it is always higher, recall at the lowest; 0 where it is never so high."""
    precisions, first = np.unique(precision, return_index=True)
    return float(np.interp(max(precisions[0], 0.5), precisions, recall[first], right=0))
