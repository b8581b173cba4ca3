"""COCO run-length encoding, through pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

_COLUMNS = 1024  # of a crop, processed at once


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> compressed COCO RLE {"size": [H, W], "counts": str}, ready for JSON."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """The inverse of `encode_mask`: (H, W) bool."""
    return np.asarray(coco.decode(rle)).astype(bool)


def run_lengths(mask: np.ndarray) -> list[int]:
    """(H, W) bool -> lengths of the runs of 0, 1, 0, ... down the columns; the first is 0 if the mask starts with 1.

    This is the `counts` of an uncompressed COCO RLE.
    """
    flat = np.asarray(mask).ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    return [0] * int(flat.size > 0 and flat[0]) + np.diff(starts).tolist()


def encode_placed(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The compressed COCO RLE of a mask that is empty outside a crop, without building the full mask.

    Args:
      mask: (h, w) bool, the crop.
      corner: (x0, y0) of the crop, pixels of the image.
      size: (H, W) of the image.
    """
    height, width = size
    x0, y0 = corner
    ends = [np.zeros(0, np.int64)]
    for start in range(0, mask.shape[1], _COLUMNS):
        part = np.pad(mask[:, start : start + _COLUMNS], ((1, 1), (0, 0)))
        columns, rows = np.nonzero((part[1:] != part[:-1]).T)
        ends.append((columns + x0 + start) * height + rows + y0)
    places = np.concatenate(ends)  # starts of the runs of 1 and of 0, alternating, counted down the columns
    joined = places[1:] == places[:-1]  # a run that reaches the bottom continues at the top of the next column
    places = places[~(np.append(joined, False) | np.append(False, joined))] if len(places) else places
    counts = np.diff(np.concatenate([[0], places, [height * width]]))
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    rle = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
