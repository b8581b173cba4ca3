"""Boxes, xyxy in pixels. As in the official code x1 and y1 are the last pixels inside, yet the width is x1 - x0.

Source: official `utils/amg.py`; torchvision's `nms`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def box_area(boxes: jax.Array) -> jax.Array:
    """(..., 4) -> (...), in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """IoU of every box with every other: (n, 4) and (m, 4) float32 -> (n, m); 0 / 0 is NaN, as in torchvision."""
    low = jnp.maximum(boxes[:, None, :2], others[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = jnp.maximum(high - low, 0)
    overlap = sides[..., 0] * sides[..., 1]
    return overlap / (box_area(boxes)[:, None] + box_area(others)[None] - overlap)


def pixel_iou(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """As `box_iou`, except that where it is NaN (two boxes of zero area) the last pixels count as inside."""
    found, last = box_iou(boxes, others), jnp.array([0, 0, 1, 1], boxes.dtype)
    return jnp.where(jnp.isnan(found), box_iou(boxes + last, others + last), found)


@partial(jax.jit, static_argnames=("thin", "block"))
def _nms_keep(boxes: jax.Array, threshold: jax.Array, valid: jax.Array, thin: bool, block: int = 128) -> jax.Array:
    """Greedy suppression of (n, 4) boxes in descending order of score: (n,) bool. n is a multiple of `block`.

    The IoU matrix is computed one block of rows at a time: for everything mode, n x n floats would take 40 MB.
    """
    count = boxes.shape[0]
    places = jnp.arange(count)
    iou = pixel_iou if thin else box_iou

    def of_block(start: jax.Array, keep: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_slice_in_dim(boxes, start, block)
        overlaps = iou(rows, boxes) > threshold

        def of_row(row: jax.Array, keep: jax.Array) -> jax.Array:
            place = start + row
            return keep & ~(keep[place] & overlaps[row] & (places > place))

        return jax.lax.fori_loop(0, block, of_row, keep)

    return jax.lax.fori_loop(0, count // block, lambda i, keep: of_block(i * block, keep), valid)


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, thin: bool = False) -> np.ndarray:
    """Non-maximum suppression, as in torchvision: indices of the kept boxes by descending score, ties in input order.

    Args:
      boxes: (n, 4) xyxy. scores: (n,).
      iou_threshold: a box is dropped if its IoU with a kept box of higher score is above this.
      thin: also drop boxes one pixel wide or high, whose area is 0, if the IoU of their pixels is above it.
    """
    order = np.argsort(-scores, kind="stable")
    if len(order) < 2:
        return order
    # Padded to powers of two, so that few programs are compiled.
    padded = 128 << max(0, int(np.ceil(np.log2(len(order) / 128))))
    sorted_boxes = np.zeros((padded, 4), np.float32)
    sorted_boxes[: len(order)] = boxes[order]
    keep = _nms_keep(sorted_boxes, np.float32(iou_threshold), np.arange(padded) < len(order), thin)
    return order[np.flatnonzero(np.asarray(keep)[: len(order)])]


def near_crop_edge(
    boxes: np.ndarray, crop_box: np.ndarray, image_box: np.ndarray, tolerance: float = 20.0
) -> np.ndarray:
    """Which boxes touch an edge of the crop that is not an edge of the image: (n,) bool.

    Args:
      boxes: (n, 4) xyxy in pixels of the crop.
      crop_box, image_box: (4,) xyxy in pixels of the image.
      tolerance: pixels within which a box touches an edge.
    """
    boxes = boxes + np.asarray(crop_box)[[0, 1, 0, 1]]
    at_crop = np.abs(boxes - crop_box) <= tolerance
    at_image = np.abs(boxes - image_box) <= tolerance
    return (at_crop & ~at_image).any(axis=1)


def xyxy_to_xywh(box: np.ndarray) -> np.ndarray:
    """(..., 4) x0, y0, x1, y1 -> x, y, x1 - x0, y1 - y0."""
    return np.concatenate([box[..., :2], box[..., 2:] - box[..., :2]], axis=-1)
