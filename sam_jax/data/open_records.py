"""Opens a data set of labelled photographs in any supported format."""

from __future__ import annotations

import os

from etils import epath

from sam_jax.data.records import DataError, RecordSource

ACCEPTED = (
    "a .tar of SA-1B, a directory or glob of them, a directory of .jpg and .json pairs, "
    "a directory that tensorflow-datasets prepared, or a COCO instances .json"
)


def open_records(path: epath.PathLike, image_dir: epath.PathLike | None = None) -> RecordSource:
    """The record source of a path, by its detected format.

    Args:
        path: local or gs://; see `ACCEPTED`.
        image_dir: directory of a COCO file's images; None looks for them beside the file.

    Raises:
        DataError: the path holds no such data set.
    """
    name = os.fspath(path).rstrip("/")
    if name.endswith(".json"):
        from sam_jax.data.coco import CocoInstances

        return CocoInstances(name, image_dir)
    if image_dir is not None:
        raise DataError(f"{path}: image_dir goes with a COCO .json file, which this is not")
    # Imported only when needed: no data set requires the packages of the others.
    kind = _kind_of(name)
    if kind == "tars":
        from sam_jax.data.sa1b import Sa1bTars

        return Sa1bTars(name)
    if kind == "folder":
        from sam_jax.data.sa1b import Sa1bFolder

        return Sa1bFolder(name)
    from sam_jax.data.tfds import TfdsSa1b

    return TfdsSa1b(name)


def _kind_of(name: str) -> str:
    """ "tars", "prepared" or "folder"."""
    from sam_jax.data.sa1b.pairs import IMAGE_SUFFIXES
    from sam_jax.data.tfds import prepared_directory

    if name.endswith(".tar") or any(char in name.rpartition("/")[2] for char in "*?["):
        return "tars"
    path = epath.Path(name)
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}; accepted: {ACCEPTED}")
    if prepared_directory(path):
        return "prepared"
    # One listing for both formats: on gs://, listing a large directory takes minutes.
    suffixes = set()
    for entry in path.iterdir():
        suffixes.add(entry.suffix)
        if ".tar" in suffixes:
            return "tars"
    if ".json" in suffixes and suffixes.intersection(IMAGE_SUFFIXES):
        return "folder"
    raise DataError(f"{path} holds no data set; accepted: {ACCEPTED}")
