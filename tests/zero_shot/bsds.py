"""Boundaries in files as BSDS500 has them."""

import numpy as np
from scipy.io import savemat


def write_boundaries(path, boundaries):
    """(H, W) bool each, one per person."""
    people = np.empty((1, len(boundaries)), object)
    for number, boundary in enumerate(boundaries):
        people[0, number] = {"Boundaries": boundary.astype(np.uint8), "Segmentation": boundary.astype(np.uint16)}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": people})
    return path


def square(size, top, left, side):
    """(H, W) bool: the outline of a square."""
    drawn = np.zeros(size, bool)
    drawn[top : top + side, left : left + side] = True
    drawn[top + 1 : top + side - 1, left + 1 : left + side - 1] = False
    return drawn
