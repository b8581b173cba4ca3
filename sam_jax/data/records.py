"""Labelled photographs as stored on disk.

Every data set is a `RecordSource`: random access to `Record`s, which hold encoded images and RLE masks.
`record_examples` turns a record into a training example.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Protocol

import numpy as np


class DataError(ValueError):
    """A data set or record cannot be read; the message names the file and what to do."""


class NoMaskError(DataError):
    """A valid record has no mask that can be trained on."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One photograph with its masks, all still encoded.

    Attributes:
        name: its origin, for messages: "sa_000000.tar: sa_1.jpg".
        image_id: unique in its data set.
        image: the encoded image (JPEG, PNG, ...).
        segmentations: one COCO RLE per mask, {"size": [h, w], "counts": str, bytes or list of int}, in pixels of the
            image as stored.
        text_embeddings: (n, looks, E) float32 of the n masks, what stands for a text that names each; or None.
    """

    name: str
    image_id: int
    image: bytes
    segmentations: tuple[dict[str, Any], ...]
    text_embeddings: np.ndarray | None = None


def image_key(image: bytes) -> str:
    """A hash of an encoded image's bytes (SHA-256): 32 hexadecimal digits."""
    return hashlib.sha256(image).hexdigest()[:32]


class RecordSource(Protocol):
    """Random access to the records of a data set. Can be pickled; files are reopened after unpickling."""

    @property
    def image_ids(self) -> np.ndarray:
        """(n,) int64, in the order of the indices; available without reading any record."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises DataError that names the file if the record cannot be read."""
        ...
