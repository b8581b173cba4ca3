"""Converts every form of COCO segmentation to a compressed RLE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sam_jax.data.records import DataError

Rle = dict[str, Any]
Size = tuple[int, int]
MIN_COORDINATES = 6  # of a polygon: three corners


def to_rles(segmentations: Iterable[Any], size: Size, name: str = "") -> list[Rle]:
    """COCO segmentations -> compressed RLEs of `size` (h, w).

    Each is a list of polygons [x, y, x, y, ...] of one object, or an RLE, compressed or not. None, and objects without
    a polygon of at least three corners, are left out.

    Raises:
      DataError: a segmentation is neither, or is an RLE of another size.
    """
    found = []
    for number, segmentation in enumerate(segmentations):
        try:
            rle = _to_rle(segmentation, size)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            where = f"{name}: " if name else ""
            raise DataError(
                f"{where}mask {number} is neither polygons nor an RLE of {size[0]} x {size[1]}: {error}"
            ) from None
        found += [rle] if rle else []
    return found


def _to_rle(segmentation: Any, size: Size) -> Rle | None:
    h, w = size
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if not np.array_equal(segmentation["size"], size):
            raise ValueError(f"its size is {segmentation['size']}")
        if isinstance(counts, bytes | str):
            return {"size": [h, w], "counts": counts}
        runs = np.asarray(counts)
        # pycocotools accepts any list, and fails later or not at all.
        if runs.dtype.kind not in "iu" or runs.ndim != 1 or (runs < 0).any() or runs.sum() != h * w:
            raise ValueError("its runs do not fill the image")
        return coco.frPyObjects({"size": [h, w], "counts": runs.tolist()}, h, w)
    if not isinstance(segmentation, list):
        raise TypeError(f"found {type(segmentation).__name__}")
    polygons = [_flat(polygon) for polygon in segmentation]
    polygons = [polygon for polygon in polygons if len(polygon) >= MIN_COORDINATES]
    return coco.merge(coco.frPyObjects(polygons, h, w)) if polygons else None


def _flat(polygon: Any) -> list[float]:
    """[x, y, x, y, ...], from a polygon in that form or as [[x, y], [x, y], ...]."""
    values = np.array(polygon, np.float64)
    if values.size % 2 or values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 2):
        raise ValueError("a polygon is not made of pairs of numbers")
    if not np.isfinite(values).all():
        raise ValueError("a polygon has a corner that is not finite")
    return values.ravel().tolist()
