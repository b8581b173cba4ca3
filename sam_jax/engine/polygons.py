"""Polygons as pixels, by the rule of the page: a pixel is inside if its centre is, by the even-odd rule."""

from __future__ import annotations

import numpy as np


def fill_polygon(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 2) corners (x, y) in pixels of the image, the first pixel's corner at 0 -> (H, W) bool.

    Centres on a left or upper edge are inside, on a right or lower edge outside, so that polygons that share an edge
    share no pixel. Parts beyond the image are cut off.
    """
    height, width = size
    changes = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        (low, high) = sorted((y0, y1))
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (low, high))
        rows = np.arange(first, last)  # those whose centres lie from low to below high
        if len(rows):
            crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            changes[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)] += 1
    inside: np.ndarray = np.cumsum(changes, axis=1)[:, :-1] % 2 == 1
    return inside


def rectangle_corners(x: float, y: float, width: float, height: float, degrees: float = 0.0) -> np.ndarray:
    """(4, 2): the corners of a rectangle that is turned clockwise about its corner (x, y)."""
    angle = np.deg2rad(degrees)
    along = np.array([np.cos(angle), np.sin(angle)]) * width
    down = np.array([-np.sin(angle), np.cos(angle)]) * height
    corner = np.array([x, y])
    return np.stack([corner, corner + along, corner + along + down, corner + down])
