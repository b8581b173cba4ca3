"""COCO run lengths: column by column, as every reader of SA-1B expects."""

import json

import numpy as np
import pytest

from sam_jax.ops.rle import decode_mask, encode_mask, encode_placed


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        ([[0, 1], [0, 1], [1, 1]], "24"),  # two off, four on; row by row it would be 1 1 1 3
        ([[1, 1, 0], [0, 0, 0]], "01102"),  # 0 1 1 1 3, as differences to the run before the last from the fourth on
        ([[0, 0], [0, 0]], "4"),
        ([[1, 1, 1], [1, 1, 1]], "06"),
    ],
)
def test_hand_made_runs(mask, counts):
    mask = np.array(mask, bool)
    assert encode_mask(mask) == {"size": list(mask.shape), "counts": counts}
    np.testing.assert_array_equal(decode_mask({"size": list(mask.shape), "counts": counts}), mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (37, 53)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_round_trip_through_json(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    decoded = decode_mask(json.loads(json.dumps(encode_mask(mask))))
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


def test_views_are_encoded_as_they_look():
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    for view in (mask.T, mask[::-1, ::2], np.asfortranarray(mask)):
        assert encode_mask(view) == encode_mask(np.ascontiguousarray(view))
        np.testing.assert_array_equal(decode_mask(encode_mask(view)), view)


@pytest.mark.parametrize("corner", [(0, 0), (3, 2), (1500, 0), (0, 7)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_placed_crop_is_the_crop_in_an_empty_image(corner, share):
    x0, y0 = corner
    crop = np.random.default_rng(0).random((13, 1100)) < share
    whole = np.zeros((20, 2600), bool)
    whole[y0 : y0 + 13, x0 : x0 + 1100] = crop
    assert encode_placed(crop, corner, whole.shape) == encode_mask(whole)


def test_a_placed_crop_may_be_the_image():
    for crop in (np.ones((5, 7), bool), np.zeros((5, 7), bool), np.eye(5, 7, dtype=bool)):
        assert encode_placed(crop, (0, 0), (5, 7)) == encode_mask(crop)
