"""Files on disk appear whole or not at all; images show what the masks say."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.inference import overlays
from sam_jax.inference.overlays import (
    caption,
    draw_prompts,
    mask_record,
    overlay_masks,
    side_by_side,
    write_image,
    write_records,
)
from sam_jax.ops.rle import decode_mask


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def rectangle(y0, x0, y1, x1, shape=(40, 60)):
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_mask_record():
    mask = rectangle(3, 10, 8, 25)
    record = mask_record(2, mask, np.float32(0.5), {"box": [9.0, 2.0, 26.0, 9.0]})
    decoded = decode_mask(record.pop("segmentation"))
    np.testing.assert_array_equal(decoded, mask)
    # As in SA-1B, width and height are differences of pixel indices.
    expected = {"id": 2, "bbox": [10, 3, 14, 4], "area": 75, "predicted_iou": 0.5, "box": [9.0, 2.0, 26.0, 9.0]}
    assert record == expected
    assert json.loads(json.dumps(record)) == expected


def test_the_record_of_an_empty_mask():
    record = mask_record(0, np.zeros((40, 60), bool), 0.1, {})
    assert (record["bbox"], record["area"]) == ([0, 0, 0, 0], 0)
    assert not decode_mask(record["segmentation"]).any()


def test_write_records(tmp_path):
    records = [mask_record(0, rectangle(0, 0, 2, 2), 0.9, {"point_coords": [[1.0, 1.0]]})]
    write_records(tmp_path / "a.json", {"file_name": "a.jpg", "width": 60, "height": 40}, records)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content == {"image": {"file_name": "a.jpg", "width": 60, "height": 40}, "annotations": records}


def test_write_image(tmp_path, pixels):
    write_image(tmp_path / "a.png", pixels)
    write_image(tmp_path / "mask.png", pixels[..., 0])
    write_image(tmp_path / "a.JPG", pixels)
    for name, expected in (("a.png", pixels), ("mask.png", pixels[..., 0])):
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(image, expected)
    with Image.open(tmp_path / "a.JPG") as image:
        assert image.format == "JPEG"
    assert len(list(tmp_path.iterdir())) == 3


def test_overlay_leaves_everything_else_alone(pixels):
    masks, before = [rectangle(5, 10, 20, 30), rectangle(15, 25, 35, 50)], pixels.copy()
    out = overlay_masks(pixels, masks)
    assert out.dtype == np.uint8
    assert out.shape == pixels.shape
    np.testing.assert_array_equal(pixels, before)  # the caller's own
    covered = masks[0] | masks[1]
    np.testing.assert_array_equal(out[~covered], pixels[~covered])
    assert (out[covered] != pixels[covered]).any(axis=-1).mean() > 0.98


def test_overlay_tints_and_outlines():
    grey, mask = np.full((40, 60, 3), 100, np.uint8), rectangle(5, 10, 20, 30)
    out = overlay_masks(grey, [mask]).astype(int)
    colour = np.array(overlays.COLOURS[0])
    assert abs(out[12, 20] - (100 + colour) / 2).max() <= 1
    inner = rectangle(6, 11, 19, 29)
    assert (out[inner] == out[12, 20]).all()
    rim = out[mask & ~inner]  # one pixel wide, and all of one colour
    assert (rim == rim[0]).all()
    assert abs(rim[0] - (0.4 * colour + 0.6 * 255)).max() <= 1


def test_a_mask_that_is_cut_by_the_image_has_no_outline_there():
    out = overlay_masks(np.zeros((40, 60, 3), np.uint8), [np.ones((40, 60), bool)])
    assert (out == out[20, 30]).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_small_masks_lie_above_large_ones(order):
    """Whatever the order in which they are given; the colour tells which is which."""
    large, small = rectangle(0, 0, 40, 60), rectangle(10, 10, 20, 20)
    masks = [(large, small)[i] for i in order]
    out = overlay_masks(np.zeros((40, 60, 3), np.uint8), masks).astype(float)
    colours = np.array(overlays.COLOURS, float)
    of_large, of_small = colours[order.index(0)], colours[order.index(1)]
    assert abs(out[30, 50] - of_large / 2).max() <= 1
    assert abs(out[15, 15] - (of_large / 4 + of_small / 2)).max() <= 1
    assert abs(out[10, 15] - (of_small * 0.4 + 153)).max() <= 1  # its outline is whole


def test_overlay_of_no_mask_and_of_an_empty_one(pixels):
    np.testing.assert_array_equal(overlay_masks(pixels, []), pixels)
    np.testing.assert_array_equal(overlay_masks(pixels, [np.zeros((40, 60), bool)]), pixels)


def test_more_masks_than_colours(pixels):
    count = len(overlays.COLOURS) + 2
    masks = [rectangle(4 * i, 0, 4 * i + 3, 60) for i in range(count)]
    assert (overlay_masks(pixels, masks)[~np.any(masks, axis=0)] == pixels[~np.any(masks, axis=0)]).all()


def test_draw_prompts():
    black = np.zeros((40, 60, 3), np.uint8)
    out = draw_prompts(black, np.array([[10.0, 8.0], [45.0, 30.0]]), np.array([1, 0]), np.array([[20, 5, 50, 25.0]]))
    assert tuple(out[8, 10]) == overlays.FOREGROUND  # x is the column
    assert tuple(out[30, 45]) == overlays.BACKGROUND
    assert tuple(out[15, 20]) == tuple(out[5, 35]) == tuple(out[25, 35]) == overlays.COLOURS[0]
    assert (out[15, 35] == 0).all()
    assert (black == 0).all()
    np.testing.assert_array_equal(draw_prompts(black, None, None, None), black)


@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (90, 1), (1, 90)])
def test_caption_keeps_the_size(shape):
    grey = np.full((*shape, 3), 128, np.uint8)
    out = caption(grey, "mask 0: predicted IoU 0.93")
    assert out.shape == grey.shape
    assert out.dtype == np.uint8
    assert (out[0, 0] == 20).all()
    if shape == (300, 200):
        assert (out[100:] == 128).all()
        assert (out[:30] > 200).any()  # the letters


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        ((40, 60), 3, (40, 180)),  # in a row, and small ones are not enlarged
        ((20, 60), 3, (60, 60)),  # more than twice as wide as tall: in a column
        ((30, 60), 2, (30, 120)),  # exactly twice
        ((200, 100), 2, (100, 100)),
        ((300, 1), 2, (100, 2)),
    ],
)
def test_side_by_side(size, count, expected):
    images = [np.full((*size, 3), 50 * i, np.uint8) for i in range(count)]
    out = side_by_side(images, longest_side=100)
    assert out.shape == (*expected, 3)
    assert (out[0, 0] == 0).all()
    assert (out[-1, -1] == 50 * (count - 1)).all()
