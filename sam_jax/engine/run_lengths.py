"""Checks and measures masks as run lengths, without decoding them to pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sam_jax.data.rle_grid import Runs, decode_runs
from sam_jax.data.sa1b.check import boxes_of

Rle = dict[str, Any]
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class MeasuredMask:
    """A mask that has been checked.

    Attributes:
      counts: COCO's compressed run lengths in their shortest form: equal masks have equal text.
      area: pixels. bbox: [x, y, w, h] as in SA-1B, w and h from the first to the last pixel.
    """

    counts: str
    area: int
    bbox: list[int]


def measure_mask(segmentation: Any, size: Size) -> MeasuredMask:
    """Checks and measures a compressed COCO RLE of an image of `size` (H, W).

    Raises:
      ValueError: it is no such RLE, has another size, does not fill the image exactly, or is empty.
    """
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str):
        raise ValueError('a mask must be {"size": [H, W], "counts": text}, COCO\'s compressed run lengths')
    runs = decode_runs([segmentation], size)
    if not len(runs.starts):
        raise ValueError("the mask has no pixel; delete it instead")
    return MeasuredMask(_shortest(runs), int(runs.areas[0]), boxes_of(runs)[0].tolist())


def _shortest(runs: Runs) -> str:
    """Compressed counts, runs that touch joined."""
    (height, width), joined = runs.size, runs.starts[1:] == runs.ends[:-1]
    starts, ends = runs.starts[np.append(True, ~joined)], runs.ends[np.append(~joined, True)]
    places = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(np.concatenate([[0], places, [height * width]]))
    counts = counts[:-1] if counts[-1] == 0 else counts
    rle = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    text: str = rle["counts"].decode("ascii")
    return text


def iou_of(one: Rle, other: Rle) -> float:
    """IoU of two checked masks of one size, at least one of them not empty."""
    return float(coco.iou([one], [other], [0])[0, 0])
