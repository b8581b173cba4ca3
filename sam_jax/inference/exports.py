"""Exports records to other formats: SA-1B's JSON, COCO results, and the arguments of `supervision.Detections`.

A record is a dictionary as returned by everything mode: `segmentation` in any `AmgConfig.output_mode` except "low_res",
`predicted_iou`, and optionally other fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import decode_mask, encode_mask

Record = dict[str, Any]


def rle_of(record: Record) -> dict[str, Any]:
    """A record's segmentation as a compressed COCO RLE, ready for JSON."""
    segmentation = record["segmentation"]
    if not isinstance(segmentation, dict):
        return encode_mask(np.asarray(segmentation, bool))
    if isinstance(segmentation["counts"], list):
        rle = coco.frPyObjects(segmentation, *segmentation["size"])
        return {"size": list(segmentation["size"]), "counts": rle["counts"].decode("ascii")}
    return segmentation


def to_coco(records: Iterable[Record], image_id: int) -> list[Record]:
    """Entries of a COCO results file, as `COCO.loadRes` reads it.

    Args:
      image_id: the id of the image in the COCO file that the results are for.

    Returns:
      One entry per record. `bbox` is [x, y, w, h] in pixels, where w and h include the last pixel, as in COCO; `score`
      is that of the record, or else its predicted IoU; `category_id` is that of the record, or else 1.
    """
    found = []
    for record in records:
        rle = rle_of(record)
        entry = {
            "image_id": image_id,
            "category_id": record.get("category_id", 1),
            "segmentation": rle,
            "bbox": coco.toBbox(rle).tolist(),
            "area": int(coco.area(rle)),
            "score": record.get("score", record["predicted_iou"]),
            "predicted_iou": record["predicted_iou"],
        }
        found.append(entry | {name: record[name] for name in ("stability_score", "text") if name in record})
    return found


def to_sa1b(records: Iterable[Record], size: tuple[int, int], file_name: str, image_id: int = 1) -> Record:
    """The content of an image's JSON file in SA-1B's format.

    Args:
      size: (H, W) of the image, pixels.
      file_name: of the image, without its directory.
    """
    image = {"image_id": image_id, "width": size[1], "height": size[0], "file_name": file_name}
    annotations = [{"id": index, **record, "segmentation": rle_of(record)} for index, record in enumerate(records)]
    return {"image": image, "annotations": annotations}


def to_detections(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """The arguments of supervision's `Detections`: `sv.Detections(**to_detections(records))`.

    Returns:
      `xyxy` (n, 4) float64, the tight boxes of the masks, last pixel included; `mask` (n, H, W) bool; `confidence` (n,)
      float64, predicted IoU. Without records, `mask` has shape (0, 0, 0): check that there are any first.
    """
    masks = [decode_mask(rle_of(record)) for record in records]
    boxes = [np.asarray(mask_to_box(mask), float) + np.array([0, 0, 1, 1]) for mask in masks]
    return {
        "xyxy": np.array(boxes, float).reshape(-1, 4),
        "mask": np.array(masks, bool).reshape(len(masks), *(masks[0].shape if masks else (0, 0))),
        "confidence": np.array([record["predicted_iou"] for record in records], float),
    }
