"""What the image tower sees of a mask: the square around it, with its background or without.

Source: SAM paper, appendix D.6: the box is enlarged, made a square, and at training loses its background at times.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from sam_jax.config import TowersConfig
from sam_jax.ops.masks import mask_to_box


@dataclasses.dataclass(frozen=True, eq=False)
class Crop:
    """A square of an image at the image tower's size.

    Attributes:
      pixels: (S, S, 3) uint8. What lies outside of the image is the mean colour, which is zero to the tower.
      tokens_inside: (grid, grid) bool, the tokens that the mask touches.
    """

    pixels: np.ndarray
    tokens_inside: np.ndarray


def crop_mask(
    config: TowersConfig, image: np.ndarray, mask: np.ndarray, enlarge: float = 1.0, background: bool = True
) -> Crop:
    """The square around a mask.

    Args:
      image: (H, W, 3) uint8.
      mask: (H, W) bool.
      enlarge: side of the square, in longer sides of the mask's box.
      background: False puts the mean colour in the place of all that is not the mask.

    Raises:
      ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to look at")
    x0, y0, side = square_around(mask_to_box(mask), enlarge)
    h, w = mask.shape
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y0 + side, h), min(x0 + side, w)
    inside = mask[top:bottom, left:right]
    part = image[top:bottom, left:right]
    mean = np.rint(config.pixel_mean).astype(np.uint8)
    if not background:
        part = np.where(inside[..., None], part, mean)
    place = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
    canvas, shape = np.full((side, side, 3), mean, np.uint8), np.zeros((side, side), np.uint8)
    canvas[place], shape[place] = part, inside * np.uint8(255)
    vision = config.vision
    # The tokens of a tower whose patches do not fill its image end before the image does.
    seen = round(side * vision.grid_size * vision.patch_size / vision.image_size)
    tokens = Image.fromarray(shape).resize(
        (vision.grid_size,) * 2, Image.Resampling.BOX, (0, 0, max(1, seen), max(1, seen))
    )
    pixels = Image.fromarray(canvas).resize((vision.image_size,) * 2, Image.Resampling.BICUBIC)
    return Crop(np.asarray(pixels), np.asarray(tokens) > 0)


def square_around(box: np.ndarray, enlarge: float) -> tuple[int, int, int]:
    """x0, y0 and side, in whole pixels, of a square with a box's centre that is `enlarge` of its longer sides wide.

    `box` is (4,) xyxy, last pixel inclusive. The square never cuts the box.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    width, height = x1 + 1 - x0, y1 + 1 - y0
    side = max(1, round(max(width, height) * enlarge))
    return x0 - (side - width) // 2, y0 - (side - height) // 2, side
