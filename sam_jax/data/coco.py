"""Any data set in COCO's instances format: one JSON file, and the pictures in a directory."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath
from pycocotools import mask as coco_mask

from sam_jax.data.records import DataError, Record

MIN_COORDINATES = 6  # of a polygon: three corners


@dataclasses.dataclass(frozen=True)
class _Picture:
    """Attributes as in the file, but `segmentations`: JSON, a list. As text they take a fraction of the memory that
    lists of Python floats take, and no time to convert before they are asked for."""

    image_id: int
    file_name: str
    height: int
    width: int
    segmentations: bytes


class CocoInstances:
    """A `RecordSource` over a COCO instances file (https://cocodataset.org/#format-data).

    Segmentations may be polygons, uncompressed and compressed RLE. Left out are: crowds (iscrowd 1), annotations
    without a polygon of three corners, and pictures that have no other annotation. Annotations of pictures that the
    file does not list are ignored, as COCO's own reader does.

    Attributes:
        image_ids: (n,) int64, in the order of the file.
    """

    def __init__(self, json_path: epath.PathLike, image_dir: epath.PathLike | None = None):
        """Reads the file; pictures and polygons wait until they are asked for.

        Args:
            json_path: local or gs://.
            image_dir: where `file_name` starts from; None means `images` beside the file.
        """
        self._path = epath.Path(json_path)
        self._image_dir = self._path.parent / "images" if image_dir is None else epath.Path(image_dir)
        self._pictures = _read_pictures(self._path)
        self.image_ids = np.array([picture.image_id for picture in self._pictures], np.int64)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pictures")
        picture = self._pictures[index]
        name = f"{self._path}: {picture.file_name}"
        try:
            segmentations = tuple(
                _to_rle(segmentation, picture.height, picture.width)
                for segmentation in json.loads(picture.segmentations)
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{name}: a segmentation cannot be read: {error}") from None
        path = self._image_dir / picture.file_name
        try:
            image = path.read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{path}: cannot be read: {reason}; is image_dir the directory of the pictures?") from None
        return Record(name, picture.image_id, image, segmentations)


def _read_pictures(path: epath.Path) -> tuple[_Picture, ...]:
    """The pictures of a file that have a usable annotation, in its order."""
    document = _read_json(path)
    segmentations = _group_segmentations(path, document["annotations"])
    pictures, seen = [], set()
    for number, image in enumerate(document["images"]):
        image_id, file_name, height, width = _image_fields(path, number, image)
        if image_id in seen:
            raise DataError(f"{path}: two images have the id {image_id}")
        seen.add(image_id)
        if found := segmentations.pop(image_id, None):
            pictures.append(_Picture(image_id, file_name, height, width, json.dumps(found).encode()))
    if not pictures:
        total = len(document["annotations"])
        raise DataError(f"{path}: none of its {total} annotations is a mask of a single object in one of its images")
    return tuple(pictures)


def _read_json(path: epath.Path) -> dict[str, list]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{path}: not a COCO instances file: it has no list {key!r}")
    return document


def _image_fields(path: epath.Path, number: int, image: Any) -> tuple[int, str, int, int]:
    """(id, file_name, height, width) of one entry of `images`."""
    if not isinstance(image, dict):
        raise DataError(f"{path}: entry {number} of 'images' is no object")
    if not _is_int(image.get("id")) or not -(2**63) <= image["id"] < 2**63:
        raise DataError(f"{path}: entry {number} of 'images' has the id {image.get('id')!r}, which is no integer")
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        raise DataError(f"{path}: image {image['id']} has no file_name")
    for side in ("height", "width"):
        if not _is_int(image.get(side)) or image[side] <= 0:
            raise DataError(f"{path}: image {image['id']} has the {side} {image.get(side)!r}, which is no pixel count")
    return image["id"], image["file_name"], image["height"], image["width"]


def _group_segmentations(path: epath.Path, annotations: list) -> dict[int, list]:
    """The usable segmentations of each image id, as they stand in the file."""
    groups: dict[int, list] = {}
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or not _is_int(annotation.get("image_id")):
            raise DataError(f"{path}: entry {number} of 'annotations' has no integer image_id")
        if not annotation.get("iscrowd") and _is_usable(annotation.get("segmentation")):
            groups.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
    return groups


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_usable(segmentation: Any) -> bool:
    """Whether there is something in it; what is malformed passes, to be reported when its record is read."""
    if isinstance(segmentation, dict):
        return bool(segmentation.get("counts"))
    if isinstance(segmentation, list):
        return any(not isinstance(polygon, list) or len(polygon) >= MIN_COORDINATES for polygon in segmentation)
    return segmentation is not None


def _to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A compressed RLE of size (height, width); raises TypeError or ValueError that says what is wrong."""
    if isinstance(segmentation, list):
        polygons = [_polygon(polygon) for polygon in segmentation]
        return coco_mask.merge(coco_mask.frPyObjects([p for p in polygons if p], height, width))
    if not isinstance(segmentation, dict):
        raise TypeError(f"{_short(segmentation)} is neither polygons nor an RLE")
    size, counts = segmentation.get("size"), segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"an RLE of size {size} in a picture of height {height} and width {width}")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    # Checked here, since pycocotools takes any list and fails only when the mask is decoded, if at all.
    if not isinstance(counts, list) or not all(_is_int(run) and run >= 0 for run in counts):
        raise ValueError("an RLE whose counts are neither a string nor a list of run lengths")
    if sum(counts) != height * width:
        raise ValueError(f"an RLE of {sum(counts)} pixels in a picture of {height * width}")
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _polygon(polygon: Any) -> list[float]:
    """x, y, x, y, ... in pixels; empty for what has fewer than three corners, which pycocotools takes for a box."""
    if not isinstance(polygon, list):
        raise TypeError(f"a polygon is a list of coordinates, not {_short(polygon)}")
    coordinates = np.array(polygon, np.float64)
    if coordinates.ndim != 1 or len(coordinates) % 2 or not np.isfinite(coordinates).all():
        raise ValueError(f"a polygon is a list of pairs of numbers, not {_short(polygon)}")
    return coordinates.tolist() if len(coordinates) >= MIN_COORDINATES else []
