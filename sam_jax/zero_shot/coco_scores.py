"""Masks against a COCO or LVIS file: average precision, boundary AP, and recall of proposals; by faster-coco-eval.

Masks are measured by their own area, as detectron2 does, not by that of the boxes that came with them. Of an LVIS file,
which is one whose categories have a `frequency`, AP counts an image's detections of a category only where the file says
whether that category is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from sam_jax.data.coco_files import read_json
from sam_jax.data.records import DataError

FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}
SIZES = ("small", "medium", "large")
LVIS_DETECTIONS = 300
MOST_PROPOSALS = 1000
_FIELDS = ("image_id", "category_id", "segmentation", "score")


class Annotations:
    """A COCO instances or LVIS file.

    Attributes:
      document: its content.
      is_lvis: whether categories have a frequency.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Reads the file. Raises DataError."""
        self.path, self.document = str(path), read_json(epath.Path(path))
        for key in ("images", "annotations", "categories"):
            if not isinstance(self.document, dict) or not isinstance(self.document.get(key), list):
                raise DataError(f"{path}: not a COCO instances or LVIS file: it has no list {key!r}")
        self.is_lvis = any("frequency" in category for category in self.document["categories"])

    @property
    def names_files(self) -> bool:
        """Whether every image has a `file_name`; LVIS has `coco_url` in its place."""
        return all("file_name" in image for image in self.document["images"])

    @property
    def image_ids(self) -> set[Any]:
        """Ids of all images."""
        return {image["id"] for image in self.document["images"]}

    def names(self) -> dict[str, Any]:
        """The id of each image by its bare file name."""
        named = ((i.get("file_name") or i.get("coco_url") or "", i["id"]) for i in self.document["images"])
        return {name.rpartition("/")[2]: image_id for name, image_id in named}

    def of_frequency(self, frequency: str) -> dict[str, Any]:
        """The document with the annotations of frequent, common or rare categories alone: "f", "c" or "r"."""
        chosen = {c["id"] for c in self.document["categories"] if c.get("frequency") == frequency}
        kept = [one for one in self.document["annotations"] if one["category_id"] in chosen]
        return self.document | {"annotations": kept}


def check_evaluator() -> None:
    """Raises ValueError where faster-coco-eval is not installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise ValueError("scoring needs faster-coco-eval: pip install 'sam_jax[zero-shot]'")


def check_results(results: Sequence[dict[str, Any]], annotations: Annotations, name: str) -> None:
    """Raises DataError where results are of images that the annotations do not have."""
    known = annotations.image_ids
    other = next((entry.get("image_id") for entry in results if entry.get("image_id") not in known), None)
    if other is not None:
        raise DataError(f"{name} has the image {other!r}, which {annotations.path} has not; are both of the same set?")


def mask_precision(results: Sequence[dict[str, Any]], annotations: Annotations) -> dict[str, float]:
    """AP, AP50, AP75, AP by size, and by frequency for LVIS; boundary AP: of detections with masks.

    Args:
      results: entries of a COCO results file.

    Raises:
      DataError: results of other images.
    """
    check_results(results, annotations, "the results")
    found = _precision(results, annotations, "segm")
    return found | {"boundary AP": _precision(results, annotations, "boundary")["AP"]}


def _precision(results: Sequence[dict[str, Any]], annotations: Annotations, kind: str) -> dict[str, float]:
    evaluation = _evaluation(annotations.document, results, kind, annotations.is_lvis)
    if annotations.is_lvis:
        evaluation.params.maxDets = [LVIS_DETECTIONS]
    _run(evaluation)
    stats = list(evaluation.stats)
    names = ["AP", "AP50", "AP75", *(f"AP {size}" for size in SIZES)]
    scores = dict(zip(names, map(float, stats), strict=False))
    if annotations.is_lvis:
        last = list(evaluation.all_stats)[-3:] if len(stats) < 15 else stats[-3:]
        scores |= dict(zip(("AP rare", "AP common", "AP frequent"), map(float, last), strict=True))
    return scores


def proposal_recall(
    results: Sequence[dict[str, Any]], annotations: Annotations, most: int = MOST_PROPOSALS
) -> dict[str, float]:
    """Mask AR@`most`, over IoUs of .5 to .95, whatever the category; by size, and by frequency for LVIS. -1: no object.

    Raises:
      DataError: results of other images.
    """
    check_results(results, annotations, "the results")
    recalls = _recalls(annotations.document, results, most)
    scores = dict(zip((f"AR@{most}", *(f"AR {size}" for size in SIZES)), recalls, strict=True))
    if annotations.is_lvis:
        for letter, name in FREQUENCIES.items():
            scores[f"AR {name}"] = _recalls(annotations.of_frequency(letter), results, most)[0]
    return scores


def _recalls(document: dict[str, Any], results: Sequence[dict[str, Any]], most: int) -> list[float]:
    """Of all objects, small, medium and large ones."""
    evaluation = _evaluation(document, results, "segm", False)
    evaluation.params.useCats = 0
    evaluation.params.maxDets = [most]
    _run(evaluation)
    recall = np.asarray(evaluation.eval["recall"])  # IoUs, categories, areas, limits
    by_area = [recall[:, :, area, -1] for area in range(recall.shape[2])]
    return [float(part[part > -1].mean()) if (part > -1).any() else -1.0 for part in by_area]


def _evaluation(document: dict[str, Any], results: Sequence[dict[str, Any]], kind: str, lvis: bool) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(document, use_deepcopy=True)
    found = truth.loadRes([{key: entry[key] for key in _FIELDS} for entry in results])
    return COCOeval_faster(truth, found, kind, lvis_style=lvis, print_function=lambda *_: None)


def _run(evaluation: Any) -> None:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
