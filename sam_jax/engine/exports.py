"""Writes the accepted masks of a store: as SA-1B's JSON files, as COCO instances, or for Label Studio.

Everything is streamed, one image's masks in memory at a time, from one moment of the store; files appear when complete.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pycocotools import mask as coco
from tqdm import tqdm

from sam_jax.engine.brush import encode_brush
from sam_jax.engine.rows import ImageRow, MaskRow
from sam_jax.engine.store import Store
from sam_jax.files import write_atomically
from sam_jax.inference.exports import to_sa1b
from sam_jax.ops.rle import decode_mask

FORMATS = ("sa1b", "coco", "label-studio")
OBJECT = "object"  # what masks without a name are called, where there has to be one
FROM_NAME, TO_NAME = "tag", "image"  # of Label Studio's labelling set-up


def export_store(
    store: Store,
    out: str | Path,
    form: str,
    *,
    stage: str | None = None,
    held_out: bool | None = None,
    image_prefix: str = "",
) -> tuple[int, int]:
    """Writes accepted masks; how many images and masks.

    Args:
      out: a directory for "sa1b", else a file.
      form: one of FORMATS.
      stage: masks of this stage; None is all but those that only check others.
      held_out: images that are held out, or that are not; None is all.
      image_prefix: of Label Studio's tasks, before the file name: where it finds the images.

    Raises:
      ValueError: `form` is none of FORMATS.
    """
    if form not in FORMATS:
        raise ValueError(f"format is {form!r}; expected one of {', '.join(FORMATS)}")
    target, counts = Path(out), _Counts()
    with store.snapshot():

        def labelled() -> Iterator[tuple[ImageRow, list[MaskRow]]]:
            with tqdm(total=store.count_images(held_out), unit="image", desc=form, disable=None) as bar:
                for image, masks in store.labelled_images(stage=stage, held_out=held_out):
                    counts.add(len(masks))
                    bar.update()
                    yield image, masks

        if form == "sa1b":
            _write_sa1b(store, target, labelled())
        elif form == "coco":
            images = (image for image, _ in store.labelled_images(stage=stage, held_out=held_out))
            with _unfinished(target) as file:
                _write_coco(file, images, labelled())
        else:
            with _unfinished(target) as file:
                _write_label_studio(file, labelled(), image_prefix)
    return counts.images, counts.masks


class _Counts:
    def __init__(self) -> None:
        self.images = self.masks = 0

    def add(self, masks: int) -> None:
        self.images += 1
        self.masks += masks


def _write_sa1b(store: Store, out: Path, labelled: Iterable[tuple[ImageRow, list[MaskRow]]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for image, masks in labelled:
        content = to_sa1b(map(sa1b_record, masks), image.size, image.file_name, image.id)
        write_atomically(out / f"{store.result_name(image)}.json", json.dumps(content).encode())


def sa1b_record(mask: MaskRow) -> dict[str, Any]:
    """A mask as an annotation of SA-1B, with the fields of the store that it has no place for."""
    points = (mask.prompts or {}).get("point_coords")
    optional = {
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "point_coords": points or None,
        "name": mask.name,
    }
    record = {"segmentation": mask.segmentation, "area": mask.area, "bbox": mask.bbox}
    record |= {name: value for name, value in optional.items() if value is not None}
    return record | {"key": mask.key, "stage": mask.stage, "author": mask.author}


def _write_coco(file: IO[str], images: Iterable[ImageRow], labelled: Iterable[tuple[ImageRow, list[MaskRow]]]) -> None:
    categories: dict[str, int] = {}

    def image_entries() -> Iterator[dict[str, Any]]:
        for image in images:
            yield {"id": image.id, "file_name": image.file_name, "height": image.height, "width": image.width}

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image, masks in labelled:
            for mask in masks:
                number += 1
                category = categories.setdefault(mask.name or OBJECT, len(categories) + 1)
                place = {"id": number, "image_id": image.id, "category_id": category, "iscrowd": 0}
                yield place | sa1b_record(mask) | {"bbox": coco.toBbox(mask.segmentation).tolist()}

    file.write("{")
    _write_list(file, "images", image_entries())
    file.write(",\n")
    _write_list(file, "annotations", annotations())
    file.write(",\n")
    _write_list(file, "categories", ({"id": number, "name": name} for name, number in categories.items()))
    file.write("}\n")


def _write_label_studio(file: IO[str], labelled: Iterable[tuple[ImageRow, list[MaskRow]]], prefix: str) -> None:
    def tasks() -> Iterator[dict[str, Any]]:
        for image, masks in labelled:
            regions = [_brush_region(image, mask) for mask in masks]
            yield {
                "id": image.id,
                "data": {"image": prefix + image.file_name},
                "annotations": [{"id": image.id, "was_cancelled": False, "result": regions}],
            }

    _write_list(file, None, tasks())
    file.write("\n")


def _brush_region(image: ImageRow, mask: MaskRow) -> dict[str, Any]:
    return {
        "id": mask.key,
        "type": "brushlabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {
            "format": "rle",
            "rle": encode_brush(decode_mask(mask.segmentation)),
            "brushlabels": [mask.name or OBJECT],
        },
        "meta": {"stage": mask.stage, "author": mask.author},
    }


def _write_list(file: IO[str], name: str | None, entries: Iterable[dict[str, Any]]) -> None:
    file.write("[" if name is None else f"{json.dumps(name)}: [")
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry))
    file.write("\n]")


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[IO[str]]:
    """A file that appears under its name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.unfinished"
    try:
        with part.open("w") as file:
            yield file
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
