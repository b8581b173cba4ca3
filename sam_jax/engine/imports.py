"""Takes masks into a store that were made elsewhere: SA-1B's JSON files, COCO instances, Label Studio's JSON.

Images have to be in the store already; they are found by their file names. Masks become accepted ones. Importing the
same once more adds nothing. What cannot be taken is left out, and said.
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from tqdm import tqdm

from sam_jax.data.coco_files import as_id, read_json
from sam_jax.data.records import DataError
from sam_jax.data.sa1b.pairs import parse_annotations
from sam_jax.data.segmentations import to_rles
from sam_jax.engine.brush import decode_brush
from sam_jax.engine.exports import FORMATS, OBJECT
from sam_jax.engine.polygons import fill_polygon, rectangle_corners
from sam_jax.engine.rows import ASSISTED, STAGES, ImageRow, MaskDraft
from sam_jax.engine.store import Store
from sam_jax.ops.rle import encode_mask

AUTHOR = "import"
_KEYS = uuid.UUID("a0c8b5de-5f0e-4c58-9a0b-6c4f6a1e7d55")  # names keys of masks that come without one


@dataclasses.dataclass
class Imported:
    """What became of an import.

    Attributes:
      images: in which masks were found. masks: that are new. problems: one line for each thing that was left out.
    """

    images: int = 0
    masks: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A mask in a file: `segmentation` in any form of COCO's, and what else is known."""

    segmentation: Any
    key: Any = None
    stage: Any = None
    author: Any = None
    name: Any = None
    predicted_iou: Any = None
    stability_score: Any = None


def import_masks(store: Store, source: str | Path, form: str) -> Imported:
    """Reads a file, or for "sa1b" also a directory of files, into a store; all masks of an image or none.

    Args:
      form: one of `exports.FORMATS`.

    Raises:
      DataError: the file cannot be read at all.
      ValueError: `form` is none of FORMATS.
    """
    if form not in FORMATS:
        raise ValueError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
    path, done = Path(source), Imported()
    read = {"sa1b": _read_sa1b, "coco": _read_coco, "label-studio": _read_label_studio}[form]
    for file_name, size, found in tqdm(read(store, path, done.problems), unit="image", desc="import", disable=None):
        image = store.find_image(PurePosixPath(file_name).name)
        if image is None:
            done.problems.append(f"{file_name}: the store has no image of this name; add it first")
        elif size is not None and size != image.size:
            done.problems.append(f"{file_name}: is {size[0]} x {size[1]} there, and {image.size} in the store")
        else:
            try:
                done.masks += _save(store, image, found)
                done.images += 1
            except ValueError as error:
                done.problems.append(f"{file_name}: {error}")
    return done


def _save(store: Store, image: ImageRow, found: list[_Found]) -> int:
    groups: dict[tuple[str, str], list[MaskDraft]] = {}
    equal: Counter[str] = Counter()
    for rank, one in enumerate(found):
        for rle in to_rles([one.segmentation], image.size):
            counts = rle["counts"]
            text = counts.decode("ascii") if isinstance(counts, bytes) else counts
            stage = one.stage if one.stage in STAGES else ASSISTED
            author = one.author if isinstance(one.author, str) and one.author else AUTHOR
            name = one.name if isinstance(one.name, str) and one.name not in ("", OBJECT) else None
            draft = MaskDraft(
                key=_key(one.key, f"{image.sha256} {text} {equal[text]}"),
                segmentation={"size": list(image.size), "counts": text},
                name=name,
                predicted_iou=_number(one.predicted_iou),
                stability_score=_number(one.stability_score),
                prominence=rank,
            )
            groups.setdefault((stage, author), []).append(draft)
            equal[text] += 1
    return store.add_masks(image.id, groups)


def _key(given: Any, content: str) -> str:
    try:
        return str(uuid.UUID(given))
    except (ValueError, TypeError, AttributeError):
        return str(uuid.uuid5(_KEYS, content))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


_Entries = Iterator[tuple[str, tuple[int, int] | None, list[_Found]]]


def _read_sa1b(_: Store, path: Path, problems: list[str]) -> _Entries:
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} has no .json file; expected a directory of SA-1B's files, or one of them")
    for file in files:
        try:
            text = file.read_bytes()
            found = [_from_annotation(one) for one in parse_annotations(text, str(file))]
            image = json.loads(text).get("image") or {}
            size = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
            yield str(image["file_name"]), size, found
        except (OSError, DataError, AttributeError, KeyError, TypeError) as error:
            problems.append(f"{file}: {error if isinstance(error, DataError | OSError) else 'names no image'}")


def _from_annotation(given: dict[str, Any]) -> _Found:
    names = [field.name for field in dataclasses.fields(_Found)]
    return _Found(**{name: given.get(name) for name in names})


def _read_coco(_: Store, path: Path, problems: list[str]) -> _Entries:
    document = read_json(path)
    if not isinstance(document, dict) or not all(isinstance(document.get(k), list) for k in ("images", "annotations")):
        raise DataError(f"{path}: not a COCO instances file: it has no lists 'images' and 'annotations'")
    names = {one.get("id"): one.get("name") for one in document.get("categories", ()) if isinstance(one, dict)}
    groups: dict[Any, list[_Found]] = {}
    for number, one in enumerate(document["annotations"]):
        image_id = as_id(one.get("image_id")) if isinstance(one, dict) else None
        if image_id is None or one.get("segmentation") is None:
            problems.append(f"{path}: entry {number} of 'annotations' has no image_id or no segmentation")
        elif one.get("iscrowd"):
            problems.append(f"{path}: entry {number} of 'annotations' is a crowd, no single object")
        else:
            found = dataclasses.replace(
                _from_annotation(one), name=one.get("name") or names.get(one.get("category_id"))
            )
            groups.setdefault(image_id, []).append(found)
    for image in document["images"]:
        found_here = groups.pop(as_id(image.get("id")), None)
        if found_here:
            sides = image.get("height"), image.get("width")
            yield str(image.get("file_name")), sides if None not in sides else None, found_here
    problems += [f"{path}: 'images' has none with id {image_id!r}" for image_id in groups]


def _read_label_studio(store: Store, path: Path, problems: list[str]) -> _Entries:
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(f"{path}: not Label Studio's JSON: expected a list of tasks; export as JSON, not JSON-MIN")
    for number, task in enumerate(tasks):
        data = task.get("data")
        image = data.get(_image_field(data)) if isinstance(data, dict) and data else None
        if not isinstance(image, str):
            problems.append(f"{path}: task {number} names no image")
            continue
        name = _file_name(store, image)
        finished = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
        if len(finished) > 1:
            problems.append(f"{name}: has {len(finished)} annotations; the first one was taken")
        regions = finished[0].get("result", ()) if finished else ()
        found = [one for region in regions if (one := _from_region(region, name, problems)) is not None]
        if found:
            yield name, None, found


def _file_name(store: Store, location: str) -> str:
    """The file name at the end of an address, without the letters that Label Studio puts before those of uploads."""
    name = re.split(r"[/\\=]", unquote(location))[-1]
    uploaded = re.fullmatch(r"[0-9a-f]{8}-(.+)", name)
    return uploaded[1] if uploaded and store.find_image(name) is None else name


def _image_field(data: dict[str, Any]) -> str:
    return "image" if "image" in data else next(iter(data))


def _from_region(region: Any, name: str, problems: list[str]) -> _Found | None:
    """The mask of a region of Label Studio; None, and a problem, for what is none."""
    try:
        kind, value = region["type"], region["value"]
        size = int(region["original_height"]), int(region["original_width"])
        if region.get("image_rotation"):
            raise ValueError(f"its image is turned by {region['image_rotation']} degrees")
        labels = value.get(kind) or value.get("labels") or [None]
        mask = _region_mask(kind, value, size)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        problems.append(f"{name}: a region is left out: {reason}")
        return None
    if mask is None:
        problems.append(f"{name}: a region of type {kind!r} is left out: it is no brush, polygon or rectangle")
        return None
    meta = region.get("meta") or {}
    return _Found(encode_mask(mask), region.get("id"), meta.get("stage"), meta.get("author"), labels[0])


def _region_mask(kind: str, value: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
    percent = np.array([size[1], size[0]]) / 100
    if kind in ("brushlabels", "brush"):
        if value.get("format") != "rle":
            raise ValueError(f"its brush has the format {value.get('format')!r}; expected 'rle'")
        return decode_brush(value["rle"], size)
    if kind in ("polygonlabels", "polygon"):
        return fill_polygon(np.array(value["points"], float).reshape(-1, 2) * percent, size)
    if kind in ("rectanglelabels", "rectangle"):
        x, y = np.array([value["x"], value["y"]]) * percent
        width, height = np.array([value["width"], value["height"]]) * percent
        return fill_polygon(rectangle_corners(x, y, width, height, value.get("rotation") or 0.0), size)
    return None
