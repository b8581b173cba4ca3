"""Identifies a data set, wherever it is stored, by its image ids and the content of a few of its images."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import numpy as np

from sam_jax.composites.pool_files import PoolFiles
from sam_jax.data.record_stream import image_hash
from sam_jax.data.records import DataError, RecordSource, image_key

log = logging.getLogger(__name__)

_SAMPLES = 8  # images whose content is hashed: ids alone are 1, 2, 3, ... in many data sets


def fingerprint_of_records(source: RecordSource) -> dict[str, Any]:
    """`images`, their number; `ids`, a hash of their ids; `samples`, the image keys of a few of them by image id.

    Tars, a folder and prepared shards of the same images have the same fingerprint. Unreadable images are not sampled.
    """
    ids = np.sort(source.image_ids)
    chosen = np.argsort(image_hash(source.image_ids, salt=2), kind="stable")[:_SAMPLES]
    samples = {}
    for index in chosen:
        try:
            samples[str(source.image_ids[index])] = image_key(source[int(index)].image)
        except DataError as error:
            log.warning("%s", error)
    return {"images": len(ids), "ids": _digest(ids.astype("<i8").tobytes()), "samples": samples}


def fingerprint_of_pool(root: str) -> dict[str, Any]:
    """The fingerprint of a pool of cut-outs, with its files as images and their paths in the pool as ids.

    Raises:
      FileNotFoundError: there is no pool at `root`.
    """
    pool = PoolFiles(root)
    files = sorted((entry["path"], entry["kind"], entry["split"]) for entry in pool.entries)
    chosen = sorted(files, key=lambda file: _digest(file[0].encode()))[:_SAMPLES]
    samples = {path: image_key(pool.read(path)) for path, _, _ in chosen}
    return {"images": len(files), "ids": _digest(json.dumps(files).encode()), "samples": samples}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
