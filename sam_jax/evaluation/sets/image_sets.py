"""Sets of labelled images: their common interface, and opening one from a path of any known kind."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

from sam_jax.data.open_records import open_records
from sam_jax.data.records import DataError, RecordSource
from sam_jax.data.rle_grid import decode_runs
from sam_jax.data.segmentations import Rle, Size, to_rles
from sam_jax.evaluation.sets.annotation_files import LabelledFile, coco_files
from sam_jax.evaluation.sets.label_maps import paired_files, read_label_map, split_label_map
from sam_jax.rgb import to_rgb

ACCEPTED = (
    "SA-1B tars, a glob of them, a directory of .jpg + .json pairs, a directory that tensorflow-datasets prepared, "
    "a COCO or LVIS .json, or a directory with images/ and labels/ (an image of object numbers per image)"
)


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with the masks of its objects.

    Attributes:
      name: where it came from, for messages.
      image: (H, W, 3) uint8 RGB, as stored: EXIF rotation is ignored, because labels refer to stored pixels.
      segmentations: one compressed COCO RLE of size [H, W] per object; none is empty.
    """

    name: str
    image: np.ndarray
    segmentations: tuple[Rle, ...]


class ImageSet(Protocol):
    """Random access to labelled images; several threads read at once."""

    @property
    def name(self) -> str:
        """The name of the set in reports."""
        ...

    def __len__(self) -> int: ...

    @property
    def image_ids(self) -> list[str]:
        """A name of each image, in order, by which tables of attributes know it; available without reading any."""
        ...

    def __getitem__(self, index: int) -> LabelledImage:
        """Raises DataError that names the file if the image or its labels cannot be read."""
        ...


class RecordImages:
    """A `data.RecordSource` (SA-1B, or data in its layout) as an image set."""

    def __init__(self, name: str, source: RecordSource) -> None:
        self.name, self._source = name, source

    def __len__(self) -> int:
        return len(self._source)

    @property
    def image_ids(self) -> list[str]:
        """The numbers of the images, as text."""
        return [str(number) for number in self._source.image_ids.tolist()]

    def __getitem__(self, index: int) -> LabelledImage:
        record = self._source[index]
        image = decode_image(record.image, record.name)
        return _labelled(record.name, image, to_rles(record.segmentations, image.shape[:2], record.name))


class FileImages:
    """Images in files, with a function that reads their labels.

    Args:
      name: of the set.
      files: images, each with labels of any type.
      read_masks: (labels, (H, W) of the image) -> RLEs; raises DataError.
    """

    def __init__(self, name: str, files: Sequence[LabelledFile], read_masks: Callable[[Any, Size], list[Rle]]) -> None:
        self.name, self._files, self._read_masks = name, files, read_masks

    def __len__(self) -> int:
        return len(self._files)

    @property
    def image_ids(self) -> list[str]:
        """File names without directory and suffix."""
        return [epath.Path(file.member or file.image).stem for file in self._files]

    def __getitem__(self, index: int) -> LabelledImage:
        file = self._files[index]
        image = decode_image(file.read(), file.name)
        try:
            return _labelled(file.name, image, self._read_masks(file.labels, image.shape[:2]))
        except DataError as error:
            raise DataError(f"{file.name}: {error}") from None


def _labelled(name: str, image: np.ndarray, rles: Sequence[Rle]) -> LabelledImage:
    """Checks the masks, which pycocotools does not do, and drops empty ones."""
    try:
        areas = decode_runs(rles, image.shape[:2]).areas
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    return LabelledImage(name, image, tuple(rle for rle, area in zip(rles, areas, strict=True) if area))


def decode_image(content: bytes, name: str) -> np.ndarray:
    """An encoded image -> (H, W, 3) uint8 RGB. Raises DataError."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(to_rgb(image))
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image that PIL can read; fetch the file again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be decoded ({error}); fetch the file again") from error


def open_image_set(
    path: epath.PathLike, name: str | None = None, image_dir: epath.PathLike | None = None
) -> RecordImages | FileImages:
    """Opens the image set at a path.

    Args:
      path: local or gs://; see `ACCEPTED`.
      name: None means the last part of the path.
      image_dir: the directory of the images of a COCO or LVIS file; None means beside the file.

    Raises:
      DataError: the path is not an image set.
    """
    text = os.fspath(path).rstrip("/")
    place = epath.Path(text)
    name = name or place.name
    if text.endswith(".json"):
        folders = () if image_dir is None else (image_dir,)
        return FileImages(name, coco_files(place, folders), to_rles)
    if image_dir is not None:
        raise DataError(f"{path}: an image directory only goes with a COCO or LVIS .json file")
    if (place / "images").is_dir() and (place / "labels").is_dir():
        return FileImages(name, paired_files(place), read_objects)
    try:
        return RecordImages(name, open_records(text))
    except DataError as error:
        if place.exists():
            raise
        raise DataError(f"{path} does not exist; expected {ACCEPTED}") from error


def read_objects(path: epath.Path, size: Size) -> list[Rle]:
    """A label image of object numbers -> one RLE per number except 0."""
    return split_label_map(read_label_map(path, size))
