"""Records with what stands for a text that names each of their masks, read from a directory of embeddings."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
from etils import epath

from sam_jax.data.records import DataError, Record, RecordSource


def objects_key(record: Record) -> str:
    """32 hexadecimal digits that stand for an image and its masks, nothing decoded: equal for equal content."""
    digest = hashlib.sha256(record.image)
    for rle in record.segmentations:
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        digest.update(json.dumps([[int(n) for n in rle["size"]], text]).encode())
    return digest.hexdigest()[:32]


class TextRecords:
    """A `RecordSource` whose records carry text embeddings. Masks without one are left out. Pickles.

    Args:
      directory: `<objects_key>.npy` of each record, (masks, looks, E) float16, NaN for masks that have none.
    """

    def __init__(self, source: RecordSource, directory: epath.PathLike) -> None:
        self._source, self._directory = source, epath.Path(directory)

    @property
    def image_ids(self) -> np.ndarray:
        """(n,) int64, those of the source."""
        return self._source.image_ids

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        file = self._directory / f"{objects_key(record)}.npy"
        if not file.exists():
            raise DataError(f"{record.name} has no text embeddings {file}; run the same training again to compute them")
        with file.open("rb") as stream:
            embeddings = np.load(stream)
        has_one = np.flatnonzero(np.isfinite(embeddings).all(axis=(1, 2)))
        return dataclasses.replace(
            record,
            segmentations=tuple(record.segmentations[number] for number in has_one),
            text_embeddings=embeddings[has_one].astype(np.float32),
        )
