"""Edges without learning, to print beside a model's: Sobel's filter, and Canny's detector where scikit-image is there.

Values are square roots of strengths, so that 8 bits tell weak edges apart; which edges stay at which threshold does not
change by that.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from PIL import Image
from scipy import ndimage

from sam_jax.zero_shot.edge_thinning import suppress

SOBEL, CANNY = "Sobel", "Canny"
CANNY_LEVELS = 32
# Of MATLAB's `edge(..., 'canny')`, with which the benchmark's own figures were made.
CANNY_SIGMA, CANNY_LOW = 2**0.5, 0.4
_STRONGEST = 4 * 2**0.5  # of Sobel's filter, on values of 0 to 1


def edge_floors() -> tuple[str, ...]:
    """What can be had here."""
    return (SOBEL, CANNY) if importlib.util.find_spec("skimage") else (SOBEL,)


def draw_floor(name: str, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> edges (H, W) uint8."""
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32) / 255
    return {SOBEL: sobel_edges, CANNY: canny_edges}[name](grey)


def sobel_edges(grey: np.ndarray) -> np.ndarray:
    """(H, W) float32 of 0..1 -> Sobel's filter, thinned, (H, W) uint8."""
    dy, dx = ndimage.sobel(grey, axis=0, mode="nearest"), ndimage.sobel(grey, axis=1, mode="nearest")
    strength = np.hypot(dy, dx)
    kept = suppress(strength, dy, dx) > 0
    return np.ceil(255 * np.sqrt(np.where(kept, strength, 0) / _STRONGEST)).astype(np.uint8)


def canny_edges(grey: np.ndarray) -> np.ndarray:
    """(H, W) float32 of 0..1 -> (H, W) uint8: the highest of some thresholds at which Canny keeps a pixel."""
    from skimage.feature import canny

    edges = np.zeros(grey.shape, np.uint8)
    for level in np.arange(1, CANNY_LEVELS) / CANNY_LEVELS:
        high = level**2 * _STRONGEST
        found = canny(grey, CANNY_SIGMA, CANNY_LOW * high, high, mode="nearest")
        edges[found] = np.ceil(255 * level)
    return edges
