"""From an image to the model's input frame and back: resizing, coordinates, normalisation.

Source: official `utils/transforms.py` (ResizeLongestSide) and `modeling/sam.py` (preprocess).
The *original frame* is the image in its own pixels; the *input frame* is the resized image, padded at the right and
bottom.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


def resized_size(original_size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """(h, w) in pixels after scaling the longest side to `longest_side`; sides are rounded half up, at least 1."""
    scale = longest_side / max(original_size)
    h, w = (max(1, int(side * scale + 0.5)) for side in original_size)
    return h, w


def resize_longest_side(image: np.ndarray, longest_side: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w, 3) uint8 whose longest side is `longest_side` pixels.

    SAM was trained with PIL's antialiased bilinear filter, rounded to uint8.
    """
    h, w = resized_size(image.shape[:2], longest_side)
    return np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))


def to_input_frame(coords: np.ndarray, original_size: tuple[int, int], input_size: tuple[int, int]) -> np.ndarray:
    """(..., 2) (x, y), original frame -> input frame, float64. The axes have different ratios, as sides are rounded."""
    ratio = np.array([input_size[1] / original_size[1], input_size[0] / original_size[0]])
    return np.asarray(coords, np.float64) * ratio


def boxes_to_input_frame(boxes: np.ndarray, original_size: tuple[int, int], input_size: tuple[int, int]) -> np.ndarray:
    """(..., 4) xyxy boxes, original frame -> input frame, float64."""
    corners = np.asarray(boxes).reshape(*np.shape(boxes)[:-1], 2, 2)
    return to_input_frame(corners, original_size, input_size).reshape(np.shape(boxes))


def pad_to_square(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) -> (side, side, 3), zeros at the right and bottom."""
    h, w = image.shape[:2]
    return np.pad(image, ((0, side - h), (0, side - w), (0, 0)))


def normalize_batch(
    images: jax.Array,
    input_sizes: jax.Array,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> jax.Array:
    """Normalises padded images for the image encoder, and sets the padding to zero.

    Args:
      images: (B, H, W, 3) uint8 or float RGB in 0..255, valid in the top left.
      input_sizes: (B, 2) int (h, w) of the valid part, pixels.
      mean, std: of RGB, in 0..255.

    Returns:
      (B, H, W, 3) float32. The padding is zero *after* normalisation, which is the mean colour.
    """
    pixels = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    rows = jnp.arange(images.shape[1])[None, :, None] < input_sizes[:, 0, None, None]
    cols = jnp.arange(images.shape[2])[None, None, :] < input_sizes[:, 1, None, None]
    return jnp.where((rows & cols)[..., None], pixels, 0.0)
