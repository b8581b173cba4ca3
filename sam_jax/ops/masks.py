"""Masks: from the decoder's low-resolution logits to the image, and operations on binary masks.

Source: official `modeling/sam.py` (postprocess_masks) and `utils/amg.py` (batched_mask_to_box).
"""

from __future__ import annotations

import jax
import numpy as np
from scipy import ndimage

from sam_jax.ops.products import einsum


def bilinear_matrix(target: int, source: int) -> np.ndarray:
    """(target, source) float64 matrix of torch's bilinear interpolation along one axis (align_corners False).

    As `F.interpolate`: no antialiasing when shrinking, edges repeated.
    """
    centre = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(centre.astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source))
    rows, share = np.arange(target), centre - low
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, high), share)
    return matrix


def axis_matrix(low_res: int, image_side: int, input_side: int, original_side: int) -> np.ndarray:
    """(original_side, low_res) float32: from the decoder's grid to the image along one axis (`postprocess_masks`)."""
    enlarge = bilinear_matrix(image_side, low_res)[:input_side]  # to the input frame, padding cropped
    return np.matmul(bilinear_matrix(original_side, input_side), enlarge).astype(np.float32)


def bands(matrix: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits a resizing matrix into bands of rows, each with only the columns that it reads: far fewer products.

    Args:
      matrix: (n * height, m).

    Returns:
      starts (n,) int32, and bands (n, height, k): `matrix` is zero except `bands[i]` at rows `i * height` and columns
      `starts[i]` onwards.
    """
    parts = matrix.reshape(-1, height, matrix.shape[1])
    used = [np.flatnonzero(part.any(axis=0)) for part in parts]
    width = max(columns[-1] + 1 - columns[0] if len(columns) else 1 for columns in used)
    width = min(-(-width // 8) * 8, matrix.shape[1])  # rounded up, so that few programs are compiled
    starts = np.array([min(columns[0] if len(columns) else 0, matrix.shape[1] - width) for columns in used], np.int32)
    return starts, np.stack([part[:, start : start + width] for part, start in zip(parts, starts, strict=True)])


def postprocess_masks(
    low_res_masks: jax.Array,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    image_size: tuple[int, int],
) -> jax.Array:
    """Mask logits on the decoder's grid -> mask logits in the original frame.

    SAM enlarges to the input frame, crops the padding and resizes to the image. Both resizes are linear along each
    axis, so one small matrix per axis does all three steps.

    Args:
      low_res_masks: (..., 4h, 4w) float32 logits.
      input_size: (h, w) of the resized image inside the input frame, pixels.
      original_size: (h, w) of the image, pixels.
      image_size: (H, W) of the padded input frame, pixels.

    Returns:
      (..., *original_size) float32 logits; the mask is where they are above the model's `mask_threshold`.
    """
    sides = zip(low_res_masks.shape[-2:], image_size, input_size, original_size, strict=True)
    rows, cols = (axis_matrix(*side) for side in sides)
    tall = einsum("yh,...hw->...yw", rows, low_res_masks)
    return einsum("...yw,xw->...yx", tall, cols)


def mask_to_box(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (4,) int xyxy of the outermost mask pixels, both ends inclusive; zeros for an empty mask."""
    cols, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(cols):
        return np.zeros(4, np.int64)
    return np.array([cols[0], rows[0], cols[-1], rows[-1]], np.int64)


def remove_small_regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fills holes, then removes islands, of fewer than `min_area` pixels (8-connected).

    If all islands are smaller, the largest stays. Source: official `utils/amg.py`.

    Args:
      mask: (H, W) bool.
      min_area: pixels.

    Returns:
      The mask (H, W) bool, and whether anything changed.
    """
    eight = np.ones((3, 3), int)
    holes, _ = ndimage.label(~mask, eight)
    areas = np.bincount(holes.ravel())
    small = np.flatnonzero(areas < min_area)
    small = small[small > 0]
    filled = mask | np.isin(holes, small) if len(small) else mask
    islands, _ = ndimage.label(filled, eight)
    sizes = np.bincount(islands.ravel())[1:]
    large = np.flatnonzero(sizes >= min_area) + 1
    if len(large) == len(sizes):
        return filled, bool(len(small))
    return np.isin(islands, large if len(large) else [sizes.argmax() + 1]), True
