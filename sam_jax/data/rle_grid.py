"""Reduces COCO run lengths to the training grid without decoding a full-size mask.

The area of a cell that a mask covers follows from the ends of the mask's runs: each run, cut where image columns end,
adds a strip of one pixel's width to the cells below its top end and subtracts it below its bottom end. All masks of an
image are processed at once, in integers: the result is exact, ties included.

Source of the string format: pycocotools `maskApi.c` (rleToString, rleFrString).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam_jax.data.example import MASK_STRIDE
from sam_jax.data.records import DataError

Size = tuple[int, int]  # h, w
Counts = str | bytes | Sequence[int]

_MAX_CHARS = 7  # per count: 7 * 5 bits hold every count that pycocotools can write
_HINT = "expected COCO RLE, {'size': [h, w], 'counts': ...}"


@dataclasses.dataclass(frozen=True)
class Placement:
    """The position of a stored image in the square frame: resized, then cropped or padded right and bottom.

    Attributes:
        size: (h, w) of the image as stored, pixels.
        resized: (h, w) after resizing, pixels of the frame; each axis has its own ratio because sides are rounded.
        offset: (top, left) of the frame in the resized image, pixels, 0 or more.
    """

    size: Size
    resized: Size
    offset: Size = (0, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """The r non-empty runs of n masks of one image, concatenated.

    Attributes:
        size: (h, w) of the image, pixels.
        areas: (n,) int64, pixels.
        owner: (r,) int64, index of the mask of a run, ascending.
        starts: (r,) int64, first pixel of a run, in column-major order: x * h + y.
        ends: (r,) int64, one past the last pixel.
    """

    size: Size
    areas: np.ndarray
    owner: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def select(self, wanted: np.ndarray) -> Runs:
        """The masks where `wanted` (n,) bool is True, renumbered."""
        kept = wanted[self.owner]
        number = np.cumsum(wanted) - 1
        return Runs(self.size, self.areas[wanted], number[self.owner[kept]], self.starts[kept], self.ends[kept])

    def strips(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The runs cut where columns end: owner, column, first row, one past the last row; (s,) int64 each."""
        h = self.size[0]
        first, last = self.starts // h, (self.ends - 1) // h
        top, bottom = self.starts - first * h, self.ends - last * h
        if (first == last).all():
            return self.owner, first, top, bottom
        columns = last - first + 1
        run = np.repeat(np.arange(len(first)), columns)
        column = first[run] + np.arange(len(run)) - (np.cumsum(columns) - columns)[run]
        top = np.where(column == first[run], top[run], 0)
        bottom = np.where(column == last[run], bottom[run], h)
        return self.owner[run], column, top, bottom


def decode_counts(counts: Counts) -> np.ndarray:
    """(k,) int64: the lengths of alternating runs of zeros and ones, zeros first, not checked against an image size.

    Raises:
      DataError: `counts` is not an RLE.
    """
    pairs, number = _decode_all([counts])
    return pairs.ravel()[: number[0]]


def decode_runs(segmentations: Sequence[dict[str, Any]], size: Size) -> Runs:
    """The runs of all masks of an image of `size` (h, w).

    Raises:
      DataError: a mask of another size, or whose runs do not fill the image exactly.
    """
    h, w = size
    for mask, segmentation in enumerate(segmentations):
        if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
            raise DataError(f"mask {mask} is not an RLE; {_HINT}")
        if not np.array_equal(segmentation["size"], size):
            raise DataError(f"mask {mask} has size {segmentation['size']}, but the image is [{h}, {w}] (h, w)")
    if not segmentations:
        nothing = np.zeros(0, np.int64)
        return Runs(size, nothing, nothing, nothing, nothing)
    pairs, number = _decode_all([segmentation["counts"] for segmentation in segmentations])
    rows = (number + 1) // 2
    owner, first = np.repeat(np.arange(len(rows)), rows), np.cumsum(rows) - rows
    ends = np.cumsum(pairs.ravel()).reshape(-1, 2)
    before = ends[first, 0] - pairs[first, 0]
    ends -= before[owner, None]
    negative = pairs.min(axis=1) < 0
    if negative.any():
        raise DataError(f"mask {owner[negative.argmax()]} has a run of negative length; {_HINT}")
    total = ends[first + rows - 1, 1]
    if (total != h * w).any():
        mask = int((total != h * w).argmax())
        raise DataError(f"mask {mask} has runs of {total[mask]} pixels in all, but {h} x {w} = {h * w} are expected")
    kept = pairs[:, 1] > 0
    areas = np.add.reduceat(pairs[:, 1], first)
    return Runs(size, areas, owner[kept], ends[kept, 0], ends[kept, 1])


def _decode_all(counts: Sequence[Counts]) -> tuple[np.ndarray, np.ndarray]:
    """Counts of all masks as (zeros, ones) pairs, (r, 2) int64, and the number of counts of each mask, (n,) int64.

    An odd number of counts is padded with a 0.
    """
    texts = [item.encode() if isinstance(item, str) else item for item in counts]
    strings = [text for text in texts if isinstance(text, bytes)]
    if len(strings) == len(texts):
        return _decode_strings(strings)
    pieces = [_decode_strings([text]) if isinstance(text, bytes) else _pair_list(text) for text in texts]
    return np.concatenate([pairs for pairs, _ in pieces]), np.concatenate([number for _, number in pieces])


def _pair_list(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        values = np.asarray(counts)
    except ValueError:  # nested lists of different lengths
        values = np.zeros(0)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
        raise DataError(f"counts must be a string or a list of whole numbers, not {str(counts)[:40]!r}; {_HINT}")
    padded = np.zeros((len(values) + 1) // 2 * 2, np.int64)
    padded[: len(values)] = values
    return padded.reshape(-1, 2), np.array([len(values)])


def _decode_strings(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """As `_decode_all`, for compressed strings.

    Five bits per character, least significant first; 0x20 means that more follow, 0x10 of the last is the sign. From
    the fourth on, a count is stored as its difference from the count two before.
    """
    stops = np.cumsum([len(text) for text in texts])
    bits = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)
    last = np.flatnonzero(bits < 32)  # last character of each count
    chars = np.diff(last, prepend=-1)
    empty = not all(texts)
    if empty or bits.max() > 63 or (bits[stops - 1] >= 32).any() or chars.max() > _MAX_CHARS:
        raise DataError(f"counts are empty, cut short or hold characters that no RLE has; {_HINT}")
    values = (bits[last].astype(np.int64) ^ 16) - 16  # sign extension of the top five bits
    longer, back = np.flatnonzero(chars > 1), 1
    while len(longer):
        values[longer] = (values[longer] << 5) | (bits[last[longer] - back] & 31)
        back += 1
        longer = longer[chars[longer] > back]
    number = np.diff(np.searchsorted(last, stops), prepend=0)
    return _undo_differences(values, number), number


def _undo_differences(values: np.ndarray, number: np.ndarray) -> np.ndarray:
    """(zeros, ones) pairs, (r, 2) int64, of stored counts (c,), of which `number` (n,) belong to each mask.

    In pairs, the count two before is in the row above, so both columns are cumulative sums. The first count of zeros
    is not part of them.
    """
    rows = (number + 1) // 2
    first = np.cumsum(rows) - rows
    pairs = np.zeros((rows.sum(), 2), np.int64)
    gap = 2 * first - (np.cumsum(number) - number)  # counts move back by the padding of earlier masks
    pairs.reshape(-1)[np.arange(len(values)) + np.repeat(gap, number)] = values
    zeros = pairs[first, 0]
    pairs[first, 0] = 0
    sums = np.cumsum(pairs, axis=0)
    before = sums[first] - pairs[first]
    sums -= np.repeat(before, rows, axis=0)
    sums[first, 0] = zeros
    odd = number % 2 == 1
    sums[(first + rows - 1)[odd], 1] = 0
    return sums


def reduce_rles(segmentations: Sequence[dict[str, Any]], placement: Placement, grid_size: int) -> np.ndarray:
    """RLE masks -> (n, grid_size, grid_size) bool: `decode_runs`, then `reduce_runs`."""
    return reduce_runs(decode_runs(segmentations, placement.size), placement, grid_size)


def reduce_runs(runs: Runs, placement: Placement, grid_size: int, stride: int = MASK_STRIDE) -> np.ndarray:
    """True in the cells of the frame's grid of which a mask covers more than half.

    A cell is `stride` x `stride` pixels of the frame; source pixels count by the area that they share with it. Pixels
    outside the image are not in any mask.

    Returns:
      (n, grid_size, grid_size) bool.
    """
    (h, w), cell_area = placement.size, stride**2 * placement.size[0] * placement.size[1]
    grids = np.zeros((len(runs.areas), grid_size, grid_size), bool)
    edges = _edges(h, placement.resized[0], placement.offset[0], grid_size * stride)
    left, widths = _column_cells(w, placement.resized[1], placement.offset[1], grid_size * stride, stride)
    owner, column, top, bottom = runs.strips()
    seen = (edges[top] < edges[bottom]) & (widths.max(axis=0)[column] > 0)
    if not seen.any():
        return grids
    owner, column, top, bottom = owner[seen], column[seen], edges[top[seen]], edges[bottom[seen]]
    (first_row, upper), (last_row, lower) = (np.divmod(edge, stride * h) for edge in (top, bottom))
    # Each mask gets its own window, column by column, with a last row of zeros.
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    row = np.minimum.reduceat(first_row, begins)
    rows = np.maximum.reduceat(last_row, begins) + 2 - row
    col = np.minimum.reduceat(left[column], begins)
    cols = np.maximum.reduceat(left[column], begins) + len(widths) - col
    stop = np.cumsum(rows * cols)
    window = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(owner)))
    corner = (stop - rows * cols)[window] + (left[column] - col[window]) * rows[window] - row[window]
    keys, weights = [], []
    for tap, width in enumerate(widths[:, column]):
        start, end = (corner + tap * rows[window] + edge_row for edge_row in (first_row, last_row))
        keys += [start, start + 1, end, end + 1]
        weights += [width * (stride * h - upper), width * upper, width * (lower - stride * h), -width * lower]
    # Integers far below 2**53, which float64 adds without rounding; no window leaks into the next.
    area = np.cumsum(np.bincount(np.concatenate(keys), np.concatenate(weights), stop[-1]))
    for number, mask in enumerate(owner[begins]):
        block = area[stop[number] - rows[number] * cols[number] : stop[number]].reshape(cols[number], rows[number]).T
        target = grids[mask, row[number] : row[number] + rows[number], col[number] : col[number] + cols[number]]
        target[:] = 2 * block[: target.shape[0], : target.shape[1]] > cell_area
    return grids


def _edges(side: int, resized: int, offset: int, frame: int) -> np.ndarray:
    """(side + 1,) int64: positions of pixel edges in the frame, in 1 / side of its pixels, clipped to it."""
    return np.clip(np.arange(side + 1) * resized - offset * side, 0, frame * side)


def _column_cells(side: int, resized: int, offset: int, frame: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells that each pixel touches along an axis: the first (side,), and the overlap with it and the next ones
    (t, side). int64, overlaps in the units of `_edges`; t is the largest number of cells of a pixel."""
    edges, cell = _edges(side, resized, offset, frame), stride * side
    begin, end = edges[:-1], edges[1:]
    first = begin // cell
    taps = int(np.maximum((end - 1) // cell - first, 0).max()) + 1
    borders = (first + np.arange(taps + 1)[:, None]) * cell
    return first, np.maximum(np.minimum(end, borders[1:]) - np.maximum(begin, borders[:-1]), 0)
