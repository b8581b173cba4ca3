"""Prompts of many images in one JSON file: in our own simple format, or in COCO's, such as boxes from a detector.

Our format has one entry per image, a list with one entry per object:

    {
      "dog.jpg": [{"points": [[275, 149]]}, {"points": [[275, 149], [60, 40]], "labels": [1, 0]}],
      "sub/cat.jpg": [{"box": [10, 20, 200, 180], "category_id": 17, "score": 0.9}],
      "park.jpg": [{"text": "a dog"}, {"text": "the ball", "box": [10, 20, 60, 70]}]
    }

Images are named by their path as given, by their path below the common directory of all images, or by their file name
if only one image in the file has it. Points are [x, y] and boxes [x0, y0, x1, y1] in pixels of the image; labels are 1
on the object and 0 off it, by default 1. A text is a phrase and needs a text model (docs/text.md). `category_id` and
`score` are copied to the results.

COCO's formats are an instances file ({"images": ..., "annotations": ...}) and a results file ([{"image_id": ...}]); the
`bbox` [x, y, w, h] of each annotation is the prompt. A results file has only image numbers: they are matched with the
number at the end of each image's name, unless an instances file gives the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from sam_jax.batch.image_list import ImageFile

Point = tuple[float, float]
Box = tuple[float, float, float, float]
KEPT = ("category_id", "score")


class PromptFileError(ValueError):
    """A prompt file that cannot be used; the message names the file, the position and what was expected."""


@dataclass(frozen=True)
class ObjectPrompt:
    """The prompt for one object, in pixels of the image.

    Attributes:
      points: (x, y) each.
      labels: one per point, 1 on the object, 0 off it.
      box: x0, y0, x1, y1.
      text: a phrase that names the object; alone, it may name several objects or none.
      extra: fields that are copied to the results: `category_id`, `score`.
    """

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    text: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.points and self.box is None and self.text is None:
            raise ValueError('has neither "points" nor "box" nor "text"')
        if self.text is not None and not (isinstance(self.text, str) and self.text.strip()):
            raise ValueError(f"has the text {self.text!r}; expected a phrase such as 'a dog'")
        if len(self.points) != len(self.labels):
            raise ValueError(f"has {len(self.points)} points and {len(self.labels)} labels; give one label per point")
        if wrong := set(self.labels) - {0, 1}:
            raise ValueError(f"has the label {wrong.pop()}; expected 1 (on the object) or 0 (off it)")


@dataclass(frozen=True)
class ImageObjects:
    """The objects of an image, and the image's id in the COCO file, if that has one."""

    objects: tuple[ObjectPrompt, ...] = ()
    image_id: int | None = None


class PromptTable:
    """The prompts of many images.

    Attributes:
      source: the file's name, for messages.
      left_out: number of boxes of a COCO file that were left out because they are empty or crowds.
    """

    def __init__(
        self, by_name: dict[str, ImageObjects], by_id: dict[Any, ImageObjects], source: str, left_out: int = 0
    ) -> None:
        self._by_name, self._by_id = by_name, by_id
        self.source, self.left_out = source, left_out
        bare: dict[str, list[str]] = {}
        for name in by_name:
            bare.setdefault(PurePosixPath(name).name, []).append(name)
        self._bare = {name: full[0] for name, full in bare.items() if len(full) == 1}

    @property
    def has_texts(self) -> bool:
        """Whether an object of any image has a text."""
        tables = (*self._by_name.values(), *self._by_id.values())
        return any(one.text is not None for table in tables for one in table.objects)

    def __len__(self) -> int:
        return len(self._by_name) + len(self._by_id)

    def of(self, image_file: ImageFile) -> ImageObjects:
        """The objects of an image; none if the file does not name it."""
        return self._find(image_file) or ImageObjects()

    def check(self, images: Iterable[ImageFile]) -> None:
        """Raises PromptFileError if no image has prompts (names differ, then). Stops at the first image that has."""
        example = ""
        for image_file in images:
            if self._find(image_file) is not None:
                return
            example = example or image_file.file_name
        named = next(iter([*self._by_name, *self._by_id]), None)
        what = "it is empty" if named is None else f"it names {named!r}, and there is {example!r}"
        raise PromptFileError(f"{self.source} has prompts for none of the images: {what}")

    def _find(self, image_file: ImageFile) -> ImageObjects | None:
        for name in (image_file.path, image_file.file_name):
            if name in self._by_name:
                return self._by_name[name]
        bare = PurePosixPath(image_file.file_name).name
        named = self._by_name.get(self._bare.get(bare, ""))
        if named is not None or not self._by_id:
            return named
        stem = PurePosixPath(bare).stem
        digits = re.search(r"\d+$", stem)
        return self._by_id.get(stem) or (self._by_id.get(int(digits[0])) if digits else None)


class SamePrompts(PromptTable):
    """The same objects in each of many images, such as phrases of the command line."""

    def __init__(self, objects: Iterable[ObjectPrompt]) -> None:
        super().__init__({}, {}, "the command line")
        self._all = ImageObjects(tuple(objects))

    @property
    def has_texts(self) -> bool:
        """Whether an object has a text."""
        return any(one.text is not None for one in self._all.objects)

    def of(self, image_file: ImageFile) -> ImageObjects:
        """The objects, whatever the image."""
        return self._all

    def check(self, images: Iterable[ImageFile]) -> None:
        """Nothing: every image has prompts."""


def read_prompts(path: epath.PathLike, images: epath.PathLike | None = None) -> PromptTable:
    """Reads a prompt file; its format is recognised by its content.

    Args:
      path: local or gs://.
      images: for a COCO results file: an instances file whose `images` give the file name of each image_id.

    Raises:
      PromptFileError: missing, not JSON, or not in one of the formats above.
    """
    content = _read_json(path)
    names = None if images is None else _image_names(images, _read_json(images))
    if isinstance(content, list):
        return _from_coco(path, content, names)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list) and "images" in content:
        return _from_coco(path, content["annotations"], names or _image_names(path, content))
    if isinstance(content, dict):
        by_name = {name: _own_objects(f"{path}: {name}", entries) for name, entries in content.items()}
        return PromptTable(by_name, {}, str(path))
    raise PromptFileError(f"{path} holds a {type(content).__name__}; expected {{image: [objects]}} or a COCO file")


def _read_json(path: epath.PathLike) -> Any:
    file = epath.Path(path)
    if not file.exists() or file.is_dir():
        raise PromptFileError(f"{path} is not a file; expected a JSON file of prompts")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise PromptFileError(f"{path} is not JSON ({error})") from error


def _own_objects(place: str, entries: Any) -> ImageObjects:
    if not isinstance(entries, list):
        raise PromptFileError(f"{place}: expected a list of objects, not {json.dumps(entries)[:80]}")
    return ImageObjects(tuple(_own_object(f"{place}: object {i}", entry) for i, entry in enumerate(entries)))


def _own_object(place: str, entry: Any) -> ObjectPrompt:
    known = ("points", "labels", "box", "text", *KEPT)
    if not isinstance(entry, dict):
        raise PromptFileError(f'{place}: expected {{"points": ..., "box": ...}}, not {json.dumps(entry)[:80]}')
    if unknown := sorted(entry.keys() - set(known)):
        raise PromptFileError(f"{place}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    points = tuple(_numbers(f"{place}: point", point, 2) for point in entry.get("points", ()))
    labels = tuple(entry.get("labels", [1] * len(points)))
    box = _numbers(f"{place}: box", entry["box"], 4) if "box" in entry else None
    try:
        extra = {key: entry[key] for key in KEPT if key in entry}
        return ObjectPrompt(points, labels, box, entry.get("text"), extra)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise PromptFileError(f"{place} {error}") from error


def _numbers(place: str, values: Any, count: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != count or not all(type(v) in (int, float) for v in values):
        raise PromptFileError(f"{place} is {json.dumps(values)[:80]}; expected {count} numbers")
    return tuple(map(float, values))


def _image_names(path: epath.PathLike, content: Any) -> dict[Any, str]:
    try:
        return {image["id"]: image["file_name"] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise PromptFileError(f"{path}: expected COCO images with id and file_name ({error!r})") from error


def _from_coco(path: epath.PathLike, annotations: list[Any], names: dict[Any, str] | None) -> PromptTable:
    objects: dict[Any, list[ObjectPrompt]] = {image_id: [] for image_id in names or ()}
    left_out = 0
    for number, annotation in enumerate(annotations):
        place = f"{path}: annotation {number}"
        if not isinstance(annotation, dict) or not {"image_id", "bbox"} <= annotation.keys():
            raise PromptFileError(f"{place}: expected image_id and bbox, as in COCO instances or results")
        x, y, w, h = _numbers(f"{place}: bbox", annotation["bbox"], 4)
        if w <= 0 or h <= 0 or annotation.get("iscrowd"):
            left_out += 1
            continue
        image_id = annotation["image_id"]
        if names is not None and image_id not in names:
            raise PromptFileError(f"{place}: no image has the id {image_id!r}")
        extra = {key: annotation[key] for key in KEPT if key in annotation}
        objects.setdefault(image_id, []).append(ObjectPrompt(box=(x, y, x + w, y + h), extra=extra))
    tables = {
        image_id: ImageObjects(tuple(found), image_id if isinstance(image_id, int) else None)
        for image_id, found in objects.items()
    }
    if names is None:
        return PromptTable({}, tables, str(path), left_out)
    return PromptTable({names[image_id]: table for image_id, table in tables.items()}, {}, str(path), left_out)
