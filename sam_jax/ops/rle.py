"""COCO run-length encoding, through pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> compressed COCO RLE {"size": [H, W], "counts": str}, ready for JSON."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """The inverse of `encode_mask`: (H, W) bool."""
    return np.asarray(coco.decode(rle)).astype(bool)
