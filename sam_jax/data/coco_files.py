"""Reads COCO instances and LVIS files (https://cocodataset.org/#format-data), for training and evaluation.

Crowds (iscrowd 1), annotations without a polygon of at least three corners, and images with no other annotation are
left out. Annotations of images that the file does not list are ignored, as in COCO's own reader. The images themselves
are not opened here; `coco_places` finds them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from etils import epath

from sam_jax.data.records import DataError
from sam_jax.data.segmentations import MIN_COORDINATES

ImageId = int | str


@dataclasses.dataclass(frozen=True)
class CocoImage:
    """One image of a file, and its masks.

    Attributes:
        image_id: an integer, or text that is not an integer; 7, 7.0 and "7" are the same id.
        file_name: with forward slashes; None if the file gives none.
        url: `coco_url`, by which LVIS names its images, or None.
        height, width: pixels, as the file states; None if it does not.
        masks: JSON text, the list of segmentations as in the file. Text takes a fraction of the memory of lists of
            Python floats, and is parsed only when used.
    """

    image_id: ImageId
    file_name: str | None
    url: str | None
    height: int | None
    width: int | None
    masks: bytes

    @property
    def name(self) -> str:
        """For messages."""
        return self.file_name or str(self.url)

    def segmentations(self) -> list[Any]:
        """The masks, as `segmentations.to_rles` takes them."""
        found: list[Any] = json.loads(self.masks)
        return found


def read_json(path: epath.Path) -> Any:
    """The content of a JSON file. Raises DataError."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); fetch the file again") from None


def read_coco(path: epath.Path) -> tuple[CocoImage, ...]:
    """The images of a file that have a usable annotation, in the file's order.

    Raises:
        DataError: the file is not in this format, an entry is incomplete, or two entries are of the same image.
    """
    document = read_json(path)
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{path}: not a COCO instances file: it has no list {key!r}")
    groups = _group_segmentations(path, document["annotations"])
    images: list[CocoImage] = []
    seen: dict[ImageId, Any] = {}
    names: dict[str, Any] = {}
    for number, entry in enumerate(document["images"]):
        image = _image(path, number, entry)
        if image.image_id in seen:
            twice = {repr(entry["id"]): None, repr(seen[image.image_id]): None}
            raise DataError(f"{path}: two images have the id {' and '.join(twice)}; give each its own")
        seen[image.image_id] = entry["id"]
        if found := groups.pop(image.image_id, None):
            if (other := names.setdefault(image.name, entry["id"])) != entry["id"]:
                raise DataError(
                    f"{path}: images {other!r} and {entry['id']!r} are both {image.name!r}; join them into one"
                )
            images.append(dataclasses.replace(image, masks=json.dumps(found).encode()))
    if not images:
        total = len(document["annotations"])
        raise DataError(f"{path}: none of its {total} annotations is a mask of a single object in one of its images")
    return tuple(images)


def _image(path: epath.Path, number: int, entry: Any) -> CocoImage:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: entry {number} of 'images' is not an object")
    image_id = as_id(entry.get("id"))
    if image_id is None:
        raise DataError(
            f"{path}: entry {number} of 'images' has the id {entry.get('id')!r}, which is neither a number nor text"
        )
    name, url = (value if isinstance(value, str) else "" for value in (entry.get("file_name"), entry.get("coco_url")))
    if not name and not url:
        raise DataError(f"{path}: image {entry['id']!r} has neither file_name nor coco_url")
    sides = {}
    for side in ("height", "width"):
        given = entry.get(side)
        pixels = sides[side] = _whole(given)
        if given is not None and (pixels is None or pixels <= 0):
            raise DataError(
                f"{path}: image {entry['id']!r} has the {side} {given!r}, which is not a pixel count; correct it, or "
                "omit it to have it read from the image"
            )
    return CocoImage(image_id, _slashes(name) or None, url or None, sides["height"], sides["width"], b"")


def _slashes(name: str) -> str:
    """Converts Windows separators to slashes and removes empty and "." parts."""
    name = name.replace("\\", "/")
    return ("/" if name.startswith("/") else "") + "/".join(part for part in name.split("/") if part not in ("", "."))


def read_categories(path: epath.Path) -> dict[ImageId, list[str]]:
    """Names of the categories of each image's annotations, in the order of the masks that `read_coco` gives.

    Raises:
        DataError: the file has no categories, or an annotation is of none of them.
    """
    document = read_json(path)
    entries = document.get("categories") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and {"id", "name"} <= e.keys() for e in entries):
        raise DataError(f"{path}: it has no list 'categories' of objects with id and name, which phrases are made of")
    names = {entry["id"]: str(entry["name"]) for entry in entries}
    found: dict[ImageId, list[str]] = {}
    for annotation in document.get("annotations", ()):
        image_id = as_id(annotation.get("image_id"))
        if image_id is None or annotation.get("iscrowd") or not is_usable(annotation.get("segmentation")):
            continue
        if annotation.get("category_id") not in names:
            raise DataError(
                f"{path}: an annotation has the category_id {annotation.get('category_id')!r}, which no category has"
            )
        found.setdefault(image_id, []).append(names[annotation["category_id"]])
    return found


def _group_segmentations(path: epath.Path, annotations: list) -> dict[ImageId, list]:
    """The usable segmentations of each image id, as in the file."""
    groups: dict[ImageId, list] = {}
    for number, annotation in enumerate(annotations):
        image_id = as_id(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if image_id is None:
            raise DataError(f"{path}: entry {number} of 'annotations' has no image_id that is a number or text")
        if not annotation.get("iscrowd") and is_usable(annotation.get("segmentation")):
            groups.setdefault(image_id, []).append(annotation["segmentation"])
    return groups


def as_id(value: Any) -> ImageId | None:
    """The same form for equal ids (7, 7.0 and "7"); None for what is not an id."""
    whole = _whole(value)
    if whole is not None:
        return whole
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    """The integer that a number or text represents, or None."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and str(int(value)) == value:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_usable(segmentation: Any) -> bool:
    """Whether it is not empty. Malformed ones pass, to be reported when the image's masks are read."""
    if isinstance(segmentation, dict):
        return bool(segmentation.get("counts", True))
    if not isinstance(segmentation, list):
        return segmentation is not None
    for polygon in segmentation:
        pairs = isinstance(polygon, list) and polygon and isinstance(polygon[0], list)
        if not isinstance(polygon, list) or len(polygon) * (2 if pairs else 1) >= MIN_COORDINATES:
            return True
    return False
