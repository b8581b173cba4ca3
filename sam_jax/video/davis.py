"""Region similarity J and contour accuracy F, by the rules of DAVIS 2016 and 2017.

Sources: Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object segmentation"; Pont-Tuset
et al. 2017, "The 2017 DAVIS challenge"; github.com/davisvideochallenge/davis2017-evaluation. The first frame, which is
given, and the last do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy import ndimage
from tqdm import tqdm

from sam_jax.video.label_images import VOID, read_labels

TOLERANCE = 0.008  # of the diagonal: how far contours may lie from each other
_RECALLED = 0.5
_QUARTERS = 4


class Scores(NamedTuple):
    """J and F (T,) float64 of one object on each frame that counts."""

    region: np.ndarray
    contour: np.ndarray


def region_similarity(mask: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two (H, W) bool masks; 1 if both are empty."""
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0


def contour_accuracy(mask: np.ndarray, truth: np.ndarray) -> float:
    """F: the harmonic mean of precision and recall of contour pixels of (H, W) bool masks, within `TOLERANCE`."""
    reach = math.ceil(TOLERANCE * math.hypot(*mask.shape))
    found, wanted = contour(mask), contour(truth)
    if not found.any() and not wanted.any():
        return 1.0
    if not found.any() or not wanted.any():
        return 0.0
    precision = (ndimage.distance_transform_edt(~wanted)[found] <= reach).mean()
    recall = (ndimage.distance_transform_edt(~found)[wanted] <= reach).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def contour(mask: np.ndarray) -> np.ndarray:
    """Contour pixels (H, W) bool: those that differ from the next to the right, below, or both (`seg2bmap`)."""
    framed = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, both = framed[:-1, 1:], framed[1:, :-1], framed[1:, 1:]
    return (mask != right) | (mask != below) | (mask != both)


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean, recall (share above .5) and decay (first quarter's mean minus the last's) of scores (T,)."""
    ends = np.round(np.linspace(1, len(values), _QUARTERS + 1) + 1e-10).astype(int) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return {
        "mean": float(values.mean()),
        "recall": float((values > _RECALLED).mean()),
        "decay": float(first.mean() - last.mean()),
    }


def score_frames(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[int, Scores]:
    """Scores of every object of the first true frame.

    Args:
      pairs: labels and true labels (H, W) uint8 of all frames in order. True labels of 0 and 255 alone are DAVIS 2016's
        single object, number 1; otherwise 255 is void, and counts as background.
    """
    region: dict[int, list[float]] = {}
    contours: dict[int, list[float]] = {}
    single = False
    for index, (labels, truth) in enumerate(pairs):
        if index == 0:
            values = set(np.unique(truth).tolist()) - {0}
            single = values == {VOID}
            objects = [1] if single else sorted(values - {VOID})
            region, contours = {k: [] for k in objects}, {k: [] for k in objects}
            continue
        for number in region:
            mask, true = labels == number, truth == (VOID if single else number)
            region[number].append(region_similarity(mask, true))
            contours[number].append(contour_accuracy(mask, true))
    return {k: Scores(np.array(region[k][:-1]), np.array(contours[k][:-1])) for k in region}


def evaluate_masks(masks: epath.PathLike, truth: epath.PathLike) -> dict[str, Any]:
    """J and F of a directory of indexed PNGs against true ones, by file name: per object, and the mean of all.

    Raises:
      ValueError: fewer than three true frames, a frame without a mask, or of another size.
    """
    files = sorted(f for f in epath.Path(truth).iterdir() if f.suffix.lower() == ".png" and f.name[0] != ".")
    if len(files) < 3:
        raise ValueError(f"{truth} holds {len(files)} true masks; expected at least 3 PNGs, as the ends do not count")

    def pairs() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for file in tqdm(files, unit="frame", desc="J&F", disable=None):
            found, true = epath.Path(masks) / file.name, read_labels(file)
            if not found.exists():
                raise ValueError(f"{file} has no mask {found}; frames and true masks need the same names")
            labels = read_labels(found)
            if labels.shape != true.shape:
                raise ValueError(f"{found} is {labels.shape[::-1]} pixels, and {file} {true.shape[::-1]}")
            yield labels, true

    scores = score_frames(pairs())
    if not scores:
        raise ValueError(f"{files[0]} shows no object; DAVIS scores the objects of the first frame")
    objects = {str(k): {"J": statistics(s.region), "F": statistics(s.contour)} for k, s in scores.items()}
    means = {name: float(np.mean([one[name]["mean"] for one in objects.values()])) for name in ("J", "F")}
    return {"J&F": (means["J"] + means["F"]) / 2} | means | {"objects": objects}
