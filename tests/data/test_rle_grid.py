"""Run lengths on the grid against a slow statement: pycocotools, and area averages in whole numbers."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_jax.composites.random_shapes import smooth_field
from sam_jax.data import rle_grid
from sam_jax.data.example import MASK_STRIDE, reduce_masks
from sam_jax.data.records import DataError
from sam_jax.data.rle_grid import Placement, decode_counts, decode_runs, reduce_rles


def encode(mask, as_list=False):
    """(h, w) bool -> COCO RLE, compressed or as a list of counts."""
    if as_list:
        flat = mask.ravel(order="F")
        borders = np.flatnonzero(np.diff(flat, prepend=False))
        counts = np.diff(borders, prepend=0, append=flat.size)
        return {"size": list(mask.shape), "counts": counts.tolist()}
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def overlaps(side, resized, offset, grid_size, stride):
    """(grid_size, side) int64: how much of each pixel lies in each cell, in units of 1 / side of the frame's pixels."""
    begin = np.arange(side) * resized - offset * side
    cell = np.arange(grid_size)[:, None] * stride * side
    return np.maximum(np.minimum(begin + resized, cell + stride * side) - np.maximum(begin, cell), 0)


def slow_reduce(segmentations, placement, grid_size, stride=MASK_STRIDE):
    """The statement: decode at full size, average, compare with one half; whole numbers, exact in float64."""
    axes = zip(placement.size, placement.resized, placement.offset, strict=True)
    rows, columns = (overlaps(*axis, grid_size, stride).astype(float) for axis in axes)
    cell = stride**2 * placement.size[0] * placement.size[1]
    return np.stack([2 * (rows @ coco_mask.decode(s).astype(float) @ columns.T) > cell for s in segmentations])


def masks_of(rng, h, w):
    """Blobs, noise, borders and everything: (n, h, w) bool."""
    blobs = [smooth_field(rng, h, w, cells) > level for cells in (2, 3, 6) for level in (-0.5, 0.3, 1.0)]
    frame = np.ones((h, w), bool)
    frame[h // 8 : -h // 8, w // 8 : -w // 8] = False
    first, last, half = np.zeros((3, h, w), bool)
    first[0, 0] = last[-1, -1] = half[:, : w // 2] = True
    plain = [np.zeros((h, w), bool), np.ones((h, w), bool), rng.random((h, w)) < 0.6, rng.random((h, w)) < 0.5]
    return np.stack([*blobs, frame, first, last, half, half.copy()[:, ::-1], *plain])


PLACEMENTS = [
    Placement((150, 225), (43, 64)),
    Placement((225, 150), (64, 43)),
    Placement((97, 64), (64, 42)),
    Placement((64, 64), (64, 64)),
    Placement((128, 96), (64, 48)),  # ties: cells of 8 x 8
    Placement((41, 29), (64, 45)),
    Placement((9, 14), (41, 64)),  # a pixel covers more than a cell
    Placement((150, 225), (86, 128), (20, 64)),  # cropped
    Placement((97, 64), (128, 84), (64, 11)),
    Placement((150, 225), (13, 19)),  # padded on both sides
    Placement((12, 300), (3, 64)),
]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_reduce_rles_is_the_slow_statement(placement):
    masks = masks_of(np.random.default_rng(0), *placement.size)
    segmentations = [encode(mask) for mask in masks]
    reduced = reduce_rles(segmentations, placement, 16)
    expected = slow_reduce(segmentations, placement, 16)
    assert np.array_equal(reduced, expected)
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("placement", PLACEMENTS[1::3], ids=str)
def test_finer_cells_follow_the_same_statement(placement, stride):
    segmentations = [encode(mask) for mask in masks_of(np.random.default_rng(0), *placement.size)]
    reduced = rle_grid.reduce_runs(decode_runs(segmentations, placement.size), placement, 64 // stride, stride)
    assert np.array_equal(reduced, slow_reduce(segmentations, placement, 64 // stride, stride))
    assert reduced.any()


def test_an_image_of_the_released_size():
    rng = np.random.default_rng(1)
    placement = Placement((1500, 2250), (683, 1024))
    segmentations = [encode(smooth_field(rng, 1500, 2250, cells) > 0.5) for cells in (2, 9)]
    assert np.array_equal(reduce_rles(segmentations, placement, 256), slow_reduce(segmentations, placement, 256))


def test_without_resizing_it_is_what_other_data_sets_do():
    masks = masks_of(np.random.default_rng(2), 50, 64)
    reduced = reduce_rles([encode(mask) for mask in masks], Placement((50, 64), (50, 64)), 16)
    assert np.array_equal(reduced, reduce_masks(masks, 64))


def test_lists_bytes_and_strings_are_the_same():
    masks = masks_of(np.random.default_rng(3), 30, 41)
    strings = [encode(mask) for mask in masks]
    mixed = [encode(mask, as_list=number % 2 == 0) for number, mask in enumerate(masks)]
    mixed[1] = {**mixed[1], "counts": mixed[1]["counts"].encode()}
    placement = Placement((30, 41), (47, 64))
    assert np.array_equal(reduce_rles(mixed, placement, 16), reduce_rles(strings, placement, 16))


def test_no_masks_at_all():
    assert reduce_rles([], Placement((30, 41), (47, 64)), 16).shape == (0, 16, 16)


def test_counts_are_the_lengths_that_were_written():
    rng = np.random.default_rng(4)
    for mask in masks_of(rng, 60, 35):
        listed, string = encode(mask, as_list=True)["counts"], encode(mask)["counts"]
        assert decode_counts(string).tolist() == listed == decode_counts(listed).tolist()
        assert decode_counts(string.encode()).tolist() == listed


def test_counts_of_every_magnitude_and_sign_of_difference():
    """Through pycocotools' own writer, which needs no mask for it."""
    rng = np.random.default_rng(5)
    counts = (2 ** rng.uniform(0, 24, 61)).astype(int)
    counts[7] = 0
    total = int(counts.sum())
    rle = coco_mask.frPyObjects({"size": [total, 1], "counts": counts.tolist()}, total, 1)
    assert decode_counts(rle["counts"]).tolist() == counts.tolist()


def test_runs_know_their_areas_and_can_be_selected():
    masks = masks_of(np.random.default_rng(6), 40, 30)
    runs = decode_runs([encode(mask) for mask in masks], (40, 30))
    assert runs.areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    wanted = runs.areas % 2 == 0
    some = runs.select(wanted)
    placement = Placement((40, 30), (64, 48))
    expected = slow_reduce([encode(mask) for mask in masks[wanted]], placement, 16)
    assert np.array_equal(rle_grid.reduce_runs(some, placement, 16), expected)


def test_strips_are_the_mask():
    for mask in masks_of(np.random.default_rng(7), 23, 31):
        drawn = np.zeros(mask.shape, int)
        for _, x, top, bottom in zip(*decode_runs([encode(mask)], mask.shape).strips(), strict=True):
            drawn[top:bottom, x] += 1
        assert np.array_equal(drawn, mask)


GOOD = encode(np.eye(6, 8, dtype=bool))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": [8, 6], "counts": GOOD["counts"]}, r"mask 1 has size \[8, 6\], but the image is \[6, 8\]"),
        ({"size": [6, 8], "counts": GOOD["counts"][:-1]}, "mask 1 has runs of .* 6 x 8 = 48"),
        ({"size": [6, 8], "counts": GOOD["counts"] + "1"}, "mask 1 has runs of .* 6 x 8 = 48"),
        ({"size": [6, 8], "counts": [20, 27]}, "mask 1 has runs of 47 pixels"),
        ({"size": [6, 8], "counts": [50, -2]}, "mask 1 has a run of negative length"),
        ({"size": [6, 8], "counts": "0a1I"}, "mask 1 has a run of negative length"),
        ({"size": [6, 8], "counts": "P"}, "cut short"),
        ({"size": [6, 8], "counts": "oooooooooo0"}, "cut short"),
        ({"size": [6, 8], "counts": "é"}, "characters"),
        ({"size": [6, 8], "counts": "~"}, "characters"),
        ({"size": [6, 8], "counts": ""}, "empty"),
        ({"size": [6, 8], "counts": []}, "list of whole numbers"),
        ({"size": [6, 8], "counts": [1.5, 46.5]}, "list of whole numbers"),
        ({"size": [6, 8], "counts": [[1], [2, 45]]}, "list of whole numbers"),
        ({"size": [6, 8], "counts": [2**70]}, "list of whole numbers"),
        ({"size": [6, [8]], "counts": GOOD["counts"]}, "mask 1 has size"),
        ({"size": [6, 8], "counts": None}, "list of whole numbers"),
        ({"size": [6, 8]}, "mask 1 is not an RLE"),
        ([[1, 2, 3, 4]], "mask 1 is not an RLE"),
    ],
)
def test_bad_rles_are_named(bad, message):
    with pytest.raises(DataError, match=message):
        decode_runs([GOOD, bad, GOOD], (6, 8))
