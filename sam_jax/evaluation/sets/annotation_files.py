"""Annotation files that hold the masks of many images: COCO, LVIS, YouTube-VIS, VIA, VISOR, WoodScape.

Each function lists images with their segmentations, which `segmentations.to_rles` turns into masks when an image is
read. Images are not opened here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from sam_jax.data.coco_files import read_coco, read_json
from sam_jax.data.coco_places import CocoPlaces
from sam_jax.data.records import DataError


@dataclass(frozen=True)
class LabelledFile:
    """An image and its labels: segmentations, or the path of a label file.

    `member` is the name of the image inside `image` if that is a zip file.
    """

    image: epath.Path
    labels: Any
    member: str | None = None

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return f"{self.image}: {self.member}" if self.member else str(self.image)

    def read(self) -> bytes:
        """The encoded image. Raises DataError."""
        try:
            if self.member is None:
                return self.image.read_bytes()
            with self.image.open("rb") as file, zipfile.ZipFile(file) as archive:
                found = [name for name in archive.namelist() if name.rpartition("/")[2] == self.member]
                return archive.read(found[0] if found else self.member)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.name} cannot be read ({error}); is it where its annotations say?") from None


def _lists(path: epath.Path, *names: str) -> list[list[dict[str, Any]]]:
    """The named lists of JSON objects in a file. Raises DataError if one is missing."""
    document = read_json(path)
    found = [document.get(name) if isinstance(document, dict) else None for name in names]
    for name, entries in zip(names, found, strict=True):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path} has no list {name!r} of objects; expected a file as published with its data set")
    return found  # type: ignore[return-value]


def coco_files(path: epath.Path, image_dirs: Sequence[epath.PathLike] = ()) -> list[LabelledFile]:
    """Images of a COCO instances or LVIS file that have an annotation, as training reads them.

    Args:
      path: the file.
      image_dirs: directories to look for images in; none means beside the file.
    """
    images = read_coco(path)
    places = CocoPlaces(path, images, image_dirs)
    return [LabelledFile(epath.Path(p), image.segmentations()) for p, image in zip(places.paths, images, strict=True)]


def youtube_vis_files(path: epath.Path, frames: epath.Path) -> list[LabelledFile]:
    """Frames of a file in YouTube-VIS format, such as OVIS: `file_names` of each video, one segmentation per frame."""
    videos, annotations = _lists(path, "videos", "annotations")
    tracks: dict[Any, list[list[Any]]] = {}
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            tracks.setdefault(annotation.get("video_id"), []).append(annotation.get("segmentations") or [])
    files = []
    for video in videos:
        for number, name in enumerate(video.get("file_names") or []):
            masks = [track[number] for track in tracks.get(video.get("id"), []) if number < len(track)]
            if masks := [mask for mask in masks if mask is not None]:
                files.append(LabelledFile(frames / name, masks))
    return files


def via_files(path: epath.Path, images: epath.Path) -> list[LabelledFile]:
    """Images of a VGG Image Annotator file: {key: {"filename", "regions": list or object of regions}}.

    Polygons, polylines and rectangles become masks; other shapes are ignored.
    """
    document = read_json(path)
    document = document.get("_via_img_metadata", document) if isinstance(document, dict) else None
    if not isinstance(document, dict) or not all(isinstance(e, dict) and "filename" in e for e in document.values()):
        raise DataError(f"{path} is not a VGG Image Annotator file; expected objects with 'filename' and 'regions'")
    files = []
    for entry in document.values():
        regions = entry.get("regions") or []
        shapes = [region["shape_attributes"] for region in (regions.values() if isinstance(regions, dict) else regions)]
        if masks := [polygon for polygon in map(_via_polygon, shapes) if polygon]:
            files.append(LabelledFile(images / entry["filename"], masks))
    return files


def _via_polygon(shape: dict[str, Any]) -> list[list[list[float]]]:
    """One object's polygons, [[[x, y], ...]]; empty for shapes without an area."""
    if shape.get("name") == "rect":
        x, y, w, h = (shape[key] for key in ("x", "y", "width", "height"))
        return [[[x, y], [x + w, y], [x + w, y + h], [x, y + h]]]
    xs, ys = shape.get("all_points_x", ()), shape.get("all_points_y", ())
    return [np.stack([xs, ys], axis=1).tolist()] if len(xs) == len(ys) > 2 else []


def visor_files(annotations: Sequence[epath.Path], frames: epath.Path) -> list[LabelledFile]:
    """Frames of EPIC-KITCHENS VISOR: `segments` of each annotation are polygons [[x, y], ...].

    Frames are in PARTICIPANT/VIDEO.zip, as released, or unpacked in PARTICIPANT/VIDEO/.
    """
    files = []
    for path in annotations:
        (entries,) = _lists(path, "video_annotations")
        folder = frames / path.stem.split("_")[0] / path.stem
        unpacked = folder.is_dir()
        for entry in entries:
            name = entry["image"]["name"]
            masks = [annotation.get("segments") for annotation in entry.get("annotations", [])]
            if masks := [mask for mask in masks if mask]:
                archive = folder.parent / f"{folder.name}.zip"
                files.append(LabelledFile(folder / name, masks) if unpacked else LabelledFile(archive, masks, name))
    return files


def woodscape_segmentations(path: epath.Path) -> list[list[Any]]:
    """Objects of one WoodScape file: {image: {"annotation": [{"tags", "segmentation": [[x, y], ...]}]}}.

    Objects without exactly one tag are left out, as in the authors' `image_annotator.parse_annotation`.
    """
    document = read_json(path)
    found = []
    for image in document.values() if isinstance(document, dict) else ():
        if not isinstance(image, dict) or not isinstance(image.get("annotation"), list):
            raise DataError(f"{path} has no list 'annotation'; expected a file of WoodScape's instance_annotations")
        found += [[item["segmentation"]] for item in image["annotation"] if len(item.get("tags", ())) == 1]
    return found
