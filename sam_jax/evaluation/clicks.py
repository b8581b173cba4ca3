"""Simulated clicks of the interactive protocol.

In the SAM paper (appendix D.1) the first point is the one farthest from the object's border, and each further point the
one farthest from the border of the error region. If a mask has both false negatives and false positives, the paper
leaves "the error region" to "standard practice in interactive segmentation" (its references 64, 92, 109). This follows
RITM (Sofiiuk et al. 2021, `isegm/inference/clicker.py`), the paper's own baseline:

  - false negatives and false positives are two regions with a distance transform each, so that a thin false negative
    beside a thin false positive is not one thick error;
  - the deeper of the two gets the click (not the one with more pixels); in a tie the false positives do;
  - the image's border counts as a border; a pixel is not clicked twice;
  - of several deepest pixels, the first in reading order is clicked.

RITM keeps clicking on a perfect mask; here a perfect mask ends the clicking.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Click(NamedTuple):
    """x, y: the pixel's column and row in the image; label: 1 on the object, 0 off it."""

    x: int
    y: int
    label: int


def first_click(target: np.ndarray) -> Click:
    """The first click on an object (H, W) bool, which must not be empty."""
    click = next_click(target, np.zeros_like(target))
    assert click is not None
    return click


def next_click(target: np.ndarray, predicted: np.ndarray, taken: Iterable[Click] = ()) -> Click | None:
    """The click that corrects a mask.

    Args:
      target, predicted: (H, W) bool.
      taken: earlier clicks on this object.

    Returns:
      None if there is nothing left to click: the mask is perfect, or every wrong pixel was clicked.
    """
    taken = list(taken)
    missed, missed_at = _deepest(target & ~predicted, taken)
    surplus, surplus_at = _deepest(predicted & ~target, taken)
    if missed == surplus == 0:
        return None
    return Click(*missed_at, 1) if missed > surplus else Click(*surplus_at, 0)


def _deepest(region: np.ndarray, taken: list[Click]) -> tuple[float, tuple[int, int]]:
    """The largest distance from a pixel of the region to the nearest one outside, and that pixel's (x, y)."""
    rows, cols = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not len(rows):
        return 0.0, (0, 0)
    top, left = int(rows[0]), int(cols[0])
    part = region[top : rows[-1] + 1, left : cols[-1] + 1]
    # A ring of zeros is enough: no pixel farther out can be nearer.
    distance = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    h, w = part.shape
    for x, y, _ in taken:
        if top <= y < top + h and left <= x < left + w:
            distance[y - top, x - left] = 0
    y, x = divmod(int(distance.argmax()), w)
    return float(distance[y, x]), (left + x, top + y)
