"""What tars and folders have in common: an image and a JSON with the same stem make a record.

Layout (SA-1B README): sa_<id>.jpg and sa_<id>.json, {"image": {"image_id", "width", "height", "file_name"},
"annotations": [{"id", "segmentation": {"size": [h, w], "counts"}, "area", "bbox": [x, y, w, h], ...}]}.
"""

from __future__ import annotations

import abc
import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sam_jax.data.records import DataError, Record

IMAGE_SUFFIXES = (".jpg", ".jpeg")
EXPECTED = "a directory or glob of SA-1B tars (sa_000000.tar, ...), one such tar, or a directory of .jpg + .json pairs"

_log = logging.getLogger(__name__)


class Sa1bPairs(abc.ABC):
    """A `RecordSource` of pairs. Holds no open file, so it can be pickled and shared by threads.

    Attributes:
        path: as given.
        unpaired: number of images without a JSON and JSONs without an image, which are left out.
        duplicates: number of pairs with the image id of an earlier pair, which are left out.
    """

    def __init__(self, path: str, image_ids: np.ndarray, unpaired: int, duplicates: int):
        self.path, self.unpaired, self.duplicates = path, unpaired, duplicates
        self._image_ids = image_ids
        if unpaired:
            _log.warning("%s: %d files lack their .jpg or .json partner and are left out", path, unpaired)
        if duplicates:
            _log.warning("%s: %d pairs have the image id of an earlier one and are left out", path, duplicates)

    @property
    def image_ids(self) -> np.ndarray:
        """(n,) int64: the number in "sa_<number>", or a hash of any other stem."""
        return self._image_ids

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> Record:
        """Raises DataError that names the file if the record cannot be read."""
        index = self._checked(index)
        image, text = self.read(index)
        annotations = parse_annotations(text, self.name(index, ".json"))
        masks = tuple(annotation["segmentation"] for annotation in annotations)
        return Record(self.name(index, ".jpg"), int(self._image_ids[index]), image, masks)

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """The annotations of the JSON, without reading the image."""
        index = self._checked(index)
        return parse_annotations(self.read_json(index), self.name(index, ".json"))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} records")
        return int(index)

    @abc.abstractmethod
    def name(self, index: int, suffix: str) -> str:
        """The location of a file, for messages."""

    @abc.abstractmethod
    def read(self, index: int) -> tuple[bytes, bytes]:
        """The encoded image and the JSON text."""

    @abc.abstractmethod
    def read_json(self, index: int) -> bytes:
        """The JSON text only."""


def parse_annotations(text: bytes, name: str) -> list[dict[str, Any]]:
    """The annotations of one JSON file, each with a `segmentation`. Raises DataError."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not JSON ({error}); fetch the file again") from None
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(a, dict) and "segmentation" in a for a in annotations):
        raise DataError(f'{name}: expected {{"annotations": [{{"segmentation": RLE, ...}}, ...]}} as SA-1B has it')
    return annotations


def image_id_of(stem: str) -> int:
    """The number of "sa_<number>"; a hash of any other stem, so that an id does not depend on other files."""
    if re.fullmatch(r"sa_\d{1,18}", stem, re.ASCII):
        return int(stem[3:])
    return int.from_bytes(hashlib.sha256(stem.encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


def pair_up(names: Iterable[str]) -> tuple[list[tuple[str, str]], int]:
    """Pairs of (image, JSON) among file names, sorted by stem, and how many files have no partner.

    Hidden files and files of other types are ignored. Of several images of one stem, the last is used.
    """
    images, texts = dict[str, str](), dict[str, str]()
    for name in names:
        file = pathlib.PurePosixPath(name)
        if file.name.startswith("."):
            continue
        if file.suffix.lower() in IMAGE_SUFFIXES:
            images[file.stem] = name
        elif file.suffix.lower() == ".json":
            texts[file.stem] = name
    paired = sorted(images.keys() & texts.keys())
    return [(images[stem], texts[stem]) for stem in paired], len(images.keys() ^ texts.keys())


def first_of_each(image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """(m,) int64, ascending: the index at which each id first occurs."""
    return np.sort(np.unique(np.asarray(image_ids, np.int64), return_index=True)[1])
