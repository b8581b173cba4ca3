"""Masks at the image's size, against SAM's two resizes written out; and boxes around masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.ops.masks import axis_matrix, bands, bilinear_matrix, mask_to_box, postprocess_masks


def bilinear(image, size):
    """What torch's interpolate does with align_corners False, pixel by pixel in float64."""
    (h, w), out = image.shape, np.empty(size)
    for y, x in np.ndindex(size):
        v = max((y + 0.5) * h / size[0] - 0.5, 0)
        u = max((x + 0.5) * w / size[1] - 0.5, 0)
        top, left = int(v), int(u)
        bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
        upper = image[top, left] * (1 - u + left) + image[top, right] * (u - left)
        lower = image[bottom, left] * (1 - u + left) + image[bottom, right] * (u - left)
        out[y, x] = upper * (1 - v + top) + lower * (v - top)
    return out


def two_resizes(low_res, input_size, original_size, image_size):
    frame = bilinear(np.asarray(low_res, np.float64), image_size)
    return bilinear(frame[: input_size[0], : input_size[1]], original_size)


@pytest.mark.parametrize(
    ("low_res", "image_size", "input_size", "original_size"),
    [
        ((12, 12), (48, 48), (31, 48), (13, 20)),  # a wide image, smaller than the frame
        ((12, 12), (48, 48), (31, 48), (71, 110)),  # larger
        ((12, 12), (48, 48), (48, 22), (97, 45)),  # tall
        ((8, 14), (32, 56), (32, 41), (60, 77)),  # a frame that is not square
        ((8, 14), (32, 56), (20, 56), (9, 25)),
        ((12, 12), (48, 48), (48, 1), (90, 1)),  # one pixel wide
        ((12, 12), (48, 48), (48, 48), (48, 48)),
    ],
)
def test_postprocess_is_two_bilinear_resizes(low_res, image_size, input_size, original_size):
    logits = np.random.default_rng(0).normal(scale=5, size=low_res).astype(np.float32)
    out = postprocess_masks(jnp.asarray(logits), input_size, original_size, image_size)
    assert out.shape == original_size
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, two_resizes(logits, input_size, original_size, image_size), atol=2e-5)


def test_postprocess_keeps_leading_axes_apart():
    logits = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    sizes = ((32, 20), (45, 28), (32, 32))
    out = postprocess_masks(jnp.asarray(logits), *sizes)
    assert out.shape == (2, 3, 45, 28)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(out[index], postprocess_masks(jnp.asarray(logits[index]), *sizes), atol=1e-6)


@pytest.mark.parametrize(("original", "rows"), [(90, 128), (64, 64), (20, 64), (150, 192), (70, 256)])
def test_bands_hold_all_of_a_resizing_matrix(original, rows):
    matrix = np.pad(axis_matrix(48, 192, 150, original), ((0, rows - original), (0, 0)))
    starts, parts = bands(matrix, 64)
    assert parts.shape[:2] == (rows // 64, 64)
    again = np.zeros_like(matrix)
    for i, (start, part) in enumerate(zip(starts, parts, strict=True)):
        again[64 * i : 64 * (i + 1), start : start + part.shape[1]] = part
    np.testing.assert_array_equal(again, matrix)


def test_bands_of_a_large_image_are_narrow():
    assert bands(np.pad(axis_matrix(256, 1024, 683, 1500), ((0, 36), (0, 0))), 64)[1].shape == (24, 64, 16)


@pytest.mark.parametrize(("target", "source"), [(7, 3), (3, 7), (5, 5), (4, 1), (1, 6)])
def test_bilinear_matrix_of_one_axis(target, source):
    matrix = bilinear_matrix(target, source)
    assert matrix.shape == (target, source)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)  # a constant stays one
    assert ((matrix > 0).sum(axis=1) <= 2).all()  # two taps even when shrinking: not antialiased
    signal = np.arange(source) ** 2.0
    np.testing.assert_allclose(matrix @ signal, bilinear(signal[:, None], (target, 1))[:, 0], rtol=1e-12)


@pytest.mark.parametrize(
    ("pixels", "box"),
    [
        ([], [0, 0, 0, 0]),
        ([(0, 0)], [0, 0, 0, 0]),
        ([(4, 6)], [6, 4, 6, 4]),  # the last row and column
        ([(1, 5), (3, 2)], [2, 1, 5, 3]),  # x first, both ends inclusive
        ([(0, 3), (4, 3)], [3, 0, 3, 4]),
    ],
)
def test_mask_to_box(pixels, box):
    mask = np.zeros((5, 7), bool)
    for y, x in pixels:
        mask[y, x] = True
    assert mask_to_box(mask).tolist() == box


def test_the_box_of_a_full_mask():
    assert mask_to_box(np.ones((5, 7), bool)).tolist() == [0, 0, 6, 4]
