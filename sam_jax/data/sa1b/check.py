"""Verifies records: images decode, JSONs parse, run lengths fill the image, areas and boxes match the masks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from sam_jax.data.records import DataError
from sam_jax.data.rle_grid import Runs, decode_runs
from sam_jax.data.sa1b.pairs import Sa1bPairs, parse_annotations

_BLOCK = 64  # records in flight per thread, so that 11 million do not queue up at once
_BOX_TOLERANCE = 1.0  # pixels: SA-1B's box width is x_max - x_min, COCO's one more


def check_records(source: Sa1bPairs, threads: int) -> Iterator[str | None]:
    """For each record in order: None, or one line that says what is wrong with it."""
    block = _BLOCK * threads
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(source), block):
            yield from pool.map(lambda i: check_record(source, i), range(begin, min(begin + block, len(source))))


def check_record(source: Sa1bPairs, index: int) -> str | None:
    """The first fault of a record, or None."""
    try:
        image, text = source.read(index)
        size = _decoded_size(image, source.name(index, ".jpg"))
    except DataError as error:
        return str(error)
    name = source.name(index, ".json")
    try:
        annotations = parse_annotations(text, name)
    except DataError as error:
        return str(error)
    try:
        _check_masks(decode_runs([a["segmentation"] for a in annotations], size), annotations)
    except DataError as error:
        return f"{name}: {error}"
    return None


def _decoded_size(image: bytes, name: str) -> tuple[int, int]:
    """(h, w) of the fully decoded image."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be decoded ({error})") from error


def boxes_of(runs: Runs) -> np.ndarray:
    """(n, 4) int64 boxes as in SA-1B: x_min, y_min, x_max - x_min, y_max - y_min; zeros for an empty mask."""
    boxes = np.zeros((len(runs.areas), 4), np.int64)
    owner, column, top, bottom = runs.strips()
    if len(owner):
        begins = np.flatnonzero(np.diff(owner, prepend=-1))
        x0, y0 = np.minimum.reduceat(column, begins), np.minimum.reduceat(top, begins)
        x1, y1 = np.maximum.reduceat(column, begins), np.maximum.reduceat(bottom, begins) - 1
        boxes[owner[begins]] = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    return boxes


def _check_masks(runs: Runs, annotations: list[dict]) -> None:
    """Compares an annotation's `area` and `bbox`, if given, with its mask."""
    for number, (annotation, area, box) in enumerate(zip(annotations, runs.areas, boxes_of(runs), strict=True)):
        if annotation.get("area", area) != area:
            raise DataError(f"mask {number} has area {annotation['area']}, but its RLE covers {area} pixels")
        try:
            stated = np.asarray(annotation.get("bbox", box), float)
        except (TypeError, ValueError):
            stated = np.zeros(0)
        if stated.shape != (4,) or not (np.abs(stated - box) <= _BOX_TOLERANCE).all():
            raise DataError(f"mask {number} has bbox {annotation['bbox']}, but that of its RLE is {box.tolist()}")
