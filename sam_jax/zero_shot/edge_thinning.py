"""Thin edges: non-maximum suppression across gradients (Canny 1986). Arrays of the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage


class Gradients(NamedTuple):
    """Gradients along rows and columns, (H, W) float32 each, on the host or a device; 0 off edges."""

    dy: Any
    dx: Any

    @property
    def strength(self) -> Any:
        """(H, W): their length, squared."""
        return self.dy**2 + self.dx**2


def thinned(gradients: Gradients) -> np.ndarray:
    """(H, W) uint8: 255 the strongest gradient, others in proportion, 0 where a neighbour across is stronger.

    Neighbours lie one pixel up and down the gradient, between pixels.
    """
    dy, dx = (np.asarray(part, np.float32) for part in gradients)
    strength = np.hypot(dy, dx)
    highest = strength.max(initial=0.0)
    edges = np.zeros(strength.shape, np.uint8)
    if highest > 0:
        ys, xs = np.nonzero(strength)
        own = strength[ys, xs]
        across = np.stack([dy[ys, xs], dx[ys, xs]]) / own
        place = np.stack([ys, xs])
        up, down = (ndimage.map_coordinates(strength, place + step * across, order=1) for step in (1, -1))
        kept = (own >= up) & (own >= down)
        edges[ys[kept], xs[kept]] = np.ceil(own[kept] / highest * 255)
    return edges
