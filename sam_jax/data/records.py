"""Labelled photographs as they lie on disk, and how one becomes a training example.

Every data set is a `RecordSource`: random access to `Record`s, which hold encoded images and RLE masks. What a record
becomes, at which size and with which of its masks, is decided here alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Protocol

import numpy as np


class DataError(ValueError):
    """A data set, or one record of it, that cannot be read; the message names the file and what to do."""


class NoMaskError(DataError):
    """A record without a mask that can be trained on: nothing is wrong with it, it is just of no use."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One photograph with its masks, nothing decoded yet.

    Attributes:
        name: where it came from, for messages: "sa_000000.tar: sa_1.jpg".
        image_id: unique in its data set.
        image: the encoded image (JPEG, PNG, ...).
        segmentations: one COCO RLE per mask, {"size": [h, w], "counts": str, bytes or list of int}, in pixels of the
            image as stored.
    """

    name: str
    image_id: int
    image: bytes
    segmentations: tuple[dict[str, Any], ...]


def image_key(image: bytes) -> str:
    """32 hexadecimal digits that stand for an encoded image: equal for equal bytes, and for no others."""
    return hashlib.sha256(image).hexdigest()[:32]


class RecordSource(Protocol):
    """Random access to the records of a data set. Pickles (file handles are opened again where it lands)."""

    @property
    def image_ids(self) -> np.ndarray:
        """(n,) int64, in the order of the indices; known without reading any record."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises DataError that names the file where the record cannot be read."""
        ...
