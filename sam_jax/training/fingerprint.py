"""What tells one data set from another, wherever it lies: its image ids, and the content of a few of its images."""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
from typing import Any

import numpy as np

from sam_jax.composites.pool import read_listing
from sam_jax.data.record_stream import image_hash
from sam_jax.data.records import DataError, RecordSource, image_key

log = logging.getLogger(__name__)

_SAMPLES = 8  # images whose content is looked at: ids alone are 1, 2, 3, ... in more than one data set


def fingerprint_of_records(source: RecordSource) -> dict[str, Any]:
    """`images`, their number; `ids`, a hash of their ids; `samples`, image key by image id of a few of them.

    The same for tars, a folder and prepared shards of the same images. An image that cannot be read is no sample.
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
    """The same of a pool of cut-outs, whose files stand for images and their paths in the pool for ids.

    Raises:
      FileNotFoundError: there is no pool at `root`.
    """
    files = sorted((entry["path"], entry["kind"], entry["split"]) for entry in read_listing(pathlib.Path(root)))
    chosen = sorted(files, key=lambda file: _digest(file[0].encode()))[:_SAMPLES]
    samples = {path: image_key((pathlib.Path(root) / path).read_bytes()) for path, _, _ in chosen}
    return {"images": len(files), "ids": _digest(json.dumps(files).encode()), "samples": samples}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
