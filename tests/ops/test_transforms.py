"""Resizing, coordinates and normalisation, to the last rounding."""

import numpy as np
import pytest

from sam_jax.config import SamConfig
from sam_jax.ops import transforms
from tests.tiny import TINY

MEAN, STD = SamConfig().pixel_mean, SamConfig().pixel_std


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ((1200, 1800), (683, 1024)),  # 682.67
        ((1800, 1200), (1024, 683)),
        ((1, 2048), (1, 1024)),  # exactly 0.5, which rounds up
        ((5, 2048), (3, 1024)),  # exactly 2.5, which round() would take to 2
        ((9, 4096), (2, 1024)),  # 2.25
        ((1, 5000), (1, 1024)),  # 0.2 would vanish
        ((300, 200), (1024, 683)),
        ((1024, 1024), (1024, 1024)),
    ],
)
def test_sides_round_half_up_and_never_vanish(original, expected):
    assert transforms.resized_size(original, 1024) == expected


def test_coordinates_scale_by_the_rounded_sides():
    """768x1000 becomes 786x1024: x and y have ratios of their own."""
    size = transforms.resized_size((768, 1000), 1024)
    assert size == (786, 1024)
    point = transforms.to_input_frame(np.array([[250.5, 100.0]]), (768, 1000), size)
    assert point.dtype == np.float64
    np.testing.assert_allclose(point, [[250.5 * 1024 / 1000, 100 * 786 / 768]], rtol=1e-15)


def test_boxes_are_two_corners():
    boxes = np.array([[[10, 20, 30, 50]], [[0, 0, 99, 49]]])
    out = transforms.boxes_to_input_frame(boxes, (50, 100), (512, 1024))
    assert out.shape == (2, 1, 4)
    np.testing.assert_allclose(out[..., :2], transforms.to_input_frame(boxes[..., :2], (50, 100), (512, 1024)))
    np.testing.assert_allclose(out[..., 2:], transforms.to_input_frame(boxes[..., 2:], (50, 100), (512, 1024)))


def test_resize_keeps_uint8_and_a_plain_image_plain():
    image = np.full((30, 90, 3), (10, 100, 250), np.uint8)
    out = transforms.resize_longest_side(image, 64)
    assert out.shape == (21, 64, 3)
    assert out.dtype == np.uint8
    assert (out == (10, 100, 250)).all()


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = transforms.resize_longest_side(stripes, 16)[:, 2:-2].astype(int)
    assert abs(inner - 100).max() <= 15  # point samples would be 0 or 200


def test_padding_is_zero_after_normalisation():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((5, 8, 3), (8, 3, 3))]
    padded = np.stack([transforms.pad_to_square(image, 8) for image in images])
    sizes = np.array([image.shape[:2] for image in images])
    out = np.asarray(transforms.normalize_batch(padded, sizes, MEAN, STD))
    for image, (h, w), frame in zip(images, sizes, out, strict=True):
        np.testing.assert_allclose(frame[:h, :w], (image - np.array(MEAN)) / np.array(STD), atol=1e-6)
        assert (frame[h:] == 0).all()
        assert (frame[:, w:] == 0).all()
    # What the padding holds does not matter.
    padded[0, 5:] = 255
    np.testing.assert_array_equal(transforms.normalize_batch(padded, sizes, MEAN, STD), out)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(480, 640), (641, 333), (200, 301), (1100, 2048), (1, 900)])
def test_resize_equals_the_official(size):
    from tests.oracle import build_official

    build_official(TINY)  # whose imports need no torchvision
    from segment_anything.utils.transforms import ResizeLongestSide

    official = ResizeLongestSide(1024)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ours = transforms.resize_longest_side(image, 1024)
    np.testing.assert_array_equal(ours, official.apply_image(image))
    coords = np.array([[0.0, 0.0], [3.25, 7.5], [size[1], size[0]]])
    np.testing.assert_array_equal(
        transforms.to_input_frame(coords, size, ours.shape[:2]), official.apply_coords(coords, size)
    )
