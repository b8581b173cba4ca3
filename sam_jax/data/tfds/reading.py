"""Reads SA-1B in tensorflow-datasets' format by index, as written by `preparing` or by their own builder."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from sam_jax.data.records import DataError, Record
from sam_jax.data.tfds.layout import IDS_FILE, NAME, check_unique, import_tfds, one_line, prepared_directory, save_ids

_IDS_BATCH = 64  # records read together when collecting image ids: about as many megabytes
_log = logging.getLogger(__name__)


class TfdsSa1b:
    """A `RecordSource` over a prepared `segment_anything` directory in the array_record format, local or gs://.

    The format has no index of image ids, and the official builder shuffles. So the ids are read once from all records
    (10 TB for all of SA-1B, nothing decoded) and kept in image_ids.npy beside the data. `preparing` writes that file;
    only data of the official builder needs the pass. Run `sam-jax data tfds-index DATA` before training on many hosts,
    or each of them reads all the data first.
    If the directory is not writable, the ids are kept in memory and pickled with the source.

    Attributes:
        image_ids: (n,) int64, in the order of the shards.
    """

    def __init__(self, path: epath.PathLike):
        """Opens the directory with dataset_info.json at `path` or up to two levels below. Raises DataError."""
        directory = prepared_directory(path)
        if directory is None:
            raise DataError(f"{path}: no data set prepared by tensorflow-datasets (no dataset_info.json)")
        self._directory = directory
        self._open()
        self.image_ids = _load_ids(directory, self._records)

    def _open(self) -> None:
        tfds = import_tfds()
        features = tfds.features
        try:
            builder = tfds.builder_from_directory(os.fspath(self._directory))
            format_name = builder.info.file_format.value if builder.info.file_format else "unknown"
            splits = sorted(builder.info.splits)
        except Exception as error:  # tfds and protobuf raise all kinds
            raise DataError(f"{self._directory}: cannot be read by tensorflow-datasets: {one_line(error)}") from error
        if builder.info.name != NAME or "train" not in splits:
            raise DataError(f"{self._directory}: holds {builder.info.name} with the splits {splits}, not {NAME}")
        if format_name != "array_record":
            raise DataError(
                f"{self._directory}: prepared as {format_name}, which has no random access; "
                "prepare it with file_format='array_record' or run `tfds convert_format`"
            )
        self._records = builder.as_data_source("train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        # A subset of the official features, so that nothing else is converted.
        self._features = features.FeaturesDict(
            {
                "image": {"content": features.Image(), "file_name": np.str_, "image_id": np.uint64},
                "annotations": features.Sequence(
                    {"segmentation": {"counts": np.str_, "size": features.Tensor(shape=(2,), dtype=np.uint64)}}
                ),
            }
        )
        self._decoders = {"image": {"content": tfds.decode.SkipDecoding()}}

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self._directory, "image_ids": self.image_ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._directory, self.image_ids = state["directory"], state["image_ids"]
        self._open()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        try:
            fields = self._features.deserialize_example_np(self._records[index], decoders=self._decoders)
            image, codes = fields["image"], fields["annotations"]["segmentation"]
            segmentations = tuple(
                {"size": [int(side) for side in size], "counts": counts}
                for size, counts in zip(codes["size"], codes["counts"], strict=True)
            )
            name = f"{self._directory}: {image['file_name'].decode()}"
            return Record(name, int(image["image_id"]), image["content"], segmentations)
        except Exception as error:  # array_record and protobuf raise all kinds
            raise DataError(f"{self._directory}: record {index} cannot be read: {one_line(error)}") from error


def _load_ids(directory: epath.Path, records: Any) -> np.ndarray:
    """(n,) int64 from image_ids.npy if that fits the records, else collected and stored there if possible."""
    path = directory / IDS_FILE
    try:
        with path.open("rb") as file:
            ids = np.load(file)
    except (OSError, ValueError, EOFError):
        ids = None  # missing, or not a .npy file
    if ids is not None:
        if ids.shape == (len(records),) and _fits(ids, directory, records):
            return ids.astype(np.int64)
        _log.warning("%s is of other data: rebuilding it", path)
    ids = _gather_ids(directory, records)
    try:
        save_ids(path, ids)
    except Exception as error:  # each file system has its own errors
        _log.warning("%s cannot be written (%s): every start reads all records", path, one_line(error))
    return ids


def _fits(ids: np.ndarray, directory: epath.Path, records: Any) -> bool:
    """Whether the first, middle and last record have these ids. Unreadable ones are logged and accepted."""
    for index in sorted({0, len(records) // 2, len(records) - 1}):
        try:
            if _read_ids(directory, records, [index]) != [ids[index]]:
                return False
        except DataError as error:
            _log.warning("%s", error)
    return True


def _gather_ids(directory: epath.Path, records: Any) -> np.ndarray:
    """(n,) int64 from all records. Each batch is spread over all shards, which are then read in parallel."""
    ids = np.zeros(len(records), np.int64)
    batches = -(-len(records) // _IDS_BATCH)
    for first in tqdm(range(batches), desc="image ids"):
        chosen = list(range(first, len(records), batches))
        ids[chosen] = _read_ids(directory, records, chosen)
    check_unique(directory, ids)
    return ids


def _read_ids(directory: epath.Path, records: Any, chosen: list[int]) -> list[int]:
    features = import_tfds().features.FeaturesDict({"image": {"image_id": np.uint64}})
    try:
        return [int(features.deserialize_example_np(raw)["image"]["image_id"]) for raw in records.__getitems__(chosen)]
    except Exception as error:  # array_record and protobuf raise all kinds
        if len(chosen) > 1:  # one by one, to find the broken one
            return [_read_ids(directory, records, [index])[0] for index in chosen]
        raise DataError(f"{directory}: record {chosen[0]} cannot be read: {one_line(error)}") from error
