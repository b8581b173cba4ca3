"""Thin edges: non-maximum suppression as Canny (1986) does it. Arrays of the host."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SMOOTHING = 1.0  # pixels: masks that differ by a pixel at an object's border are to make one edge
_RIDGES = 2.0  # pixels: the scale at which the direction of an edge is looked for


def thin_map(strength: np.ndarray) -> np.ndarray:
    """Edges as strong as (H, W) float32 says -> (H, W) uint8: one pixel wide, 255 the strongest.

    The map is smoothed a little, and at each pixel the direction in which it bends most is across the edge, as in
    Dollar and Zitnick 2013 (`edgesDetect.m`). The paper names Canny's suppression and says no more.
    """
    smooth = ndimage.gaussian_filter(np.asarray(strength, np.float32), SMOOTHING)
    orders = (2, 0), (0, 2), (1, 1)
    yy, xx, xy = (ndimage.gaussian_filter(smooth, _RIDGES, order=order) for order in orders)
    angle = np.arctan2(2 * xy, xx - yy) / 2 + np.where(xx + yy < 0, np.pi / 2, 0)
    return suppress(smooth, np.sin(angle), np.cos(angle))


def suppress(strength: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Non-maximum suppression: (H, W) uint8, 255 the strongest, others in proportion, 0 where one across is stronger.

    Args:
      strength: (H, W), not negative.
      dy, dx: (H, W), the direction across the edge, of any length; neighbours lie a pixel up and down it.
    """
    highest = strength.max(initial=0.0)
    edges = np.zeros(strength.shape, np.uint8)
    if highest > 0:
        ys, xs = np.nonzero(strength)
        own = strength[ys, xs]
        across = np.stack([dy[ys, xs], dx[ys, xs]])
        across = across / np.maximum(np.hypot(*across), np.finfo(np.float32).tiny)
        place = np.stack([ys, xs])
        up, down = (ndimage.map_coordinates(strength, place + step * across, order=1) for step in (1, -1))
        kept = (own >= up) & (own >= down)
        edges[ys[kept], xs[kept]] = np.round(own[kept] / highest * 255)
    return edges
