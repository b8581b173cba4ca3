"""The layout of a prepared `segment_anything` on disk, and what reading and preparing it share."""

from __future__ import annotations

import re
import uuid
from typing import Any

import numpy as np
from etils import epath

from sam_jax.data.records import DataError

NAME = "segment_anything"
VERSION = "1.0.0"
IDS_FILE = "image_ids.npy"


def import_tfds() -> Any:
    """The module tensorflow_datasets, imported only here, since most users do not need it. Raises DataError."""
    try:
        import array_record.python.array_record_module  # noqa: F401 (tfds would miss it only at the first record)
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(f'{error}: tensorflow-datasets needs the extra: pip install "sam_jax[tfds]"') from None
    return tfds


def prepared_directory(path: epath.PathLike) -> epath.Path | None:
    """The directory of dataset_info.json: `path`, else its newest VERSION/ or segment_anything/VERSION/, or None."""
    path = epath.Path(path)
    if (path / "dataset_info.json").exists():
        return path
    for parent in (path, path / NAME):
        versions = [
            (tuple(map(int, info.parent.name.split("."))), info.parent)
            for info in parent.glob("*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
        ]
        if versions:
            return max(versions)[1]
    return None


def one_line(error: Exception) -> str:
    """An error's message on one line; those of tensorflow-datasets have many."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def save_ids(path: epath.Path, ids: np.ndarray) -> None:
    """Writes (n,) int64 as .npy, atomically."""
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    with partial.open("wb") as file:
        np.save(file, ids)
    partial.replace(path)


def check_unique(directory: epath.Path, ids: np.ndarray) -> None:
    """Raises DataError if an image id occurs twice in `ids` (n,)."""
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{directory}: {(counts > 1).sum()} image ids are not unique, {values[counts > 1][0]} for one")
