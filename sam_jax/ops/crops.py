"""Point grids and overlapping crops for everything mode. Source: official `utils/amg.py`."""

from __future__ import annotations

import itertools
import math

import numpy as np

Box = tuple[int, int, int, int]  # xyxy


def build_point_grid(points_per_side: int) -> np.ndarray:
    """An even grid of (x, y) in [0, 1]², x fastest: (points_per_side², 2) float64."""
    offset = 1 / (2 * points_per_side)
    along = np.linspace(offset, 1 - offset, points_per_side)
    x, y = np.meshgrid(along, along)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def build_layer_grids(points_per_side: int, layers: int, downscale: int) -> list[np.ndarray]:
    """A point grid for the whole image and one for each layer of crops, in [0, 1]².

    Args:
      points_per_side: of the whole image.
      layers: number of crop layers.
      downscale: divides points_per_side once per layer.

    Raises:
      ValueError: a layer would have no points.
    """
    sides = [int(points_per_side / downscale**layer) for layer in range(layers + 1)]
    if 0 in sides:
        raise ValueError(
            f"points_per_side {points_per_side} divided by {downscale} per layer leaves no point in layer "
            f"{sides.index(0)}; use fewer crop layers or a smaller crop_n_points_downscale_factor"
        )
    return [build_point_grid(side) for side in sides]


def generate_crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[list[Box]]:
    """The crops of each layer as xyxy boxes: the whole image, then 4, 16, ... crops, y fastest.

    Empty crops, on which the official code fails, are left out.

    Args:
      size: (h, w) of the image, pixels.
      layers: number of crop layers besides the whole image.
      overlap_ratio: overlap of the first layer's crops as a fraction of the shorter side; each later layer halves it.
    """
    h, w = size
    boxes: list[list[Box]] = [[(0, 0, w, h)]]
    for layer in range(layers):
        across = 2 ** (layer + 1)
        overlap = int(overlap_ratio * min(h, w) * (2 / across))
        crop_w, crop_h = (math.ceil((overlap * (across - 1) + side) / across) for side in (w, h))
        corners = itertools.product(*([int((side - overlap) * i) for i in range(across)] for side in (crop_w, crop_h)))
        # Crop sizes are rounded up, so on a side of few pixels the last crops may be empty.
        boxes.append([(x, y, min(x + crop_w, w), min(y + crop_h, h)) for x, y in corners if x < w and y < h])
    return boxes
