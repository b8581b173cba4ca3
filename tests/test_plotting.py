"""Plots, looked at as pixels: masks are tinted where they are, prompts stand where they were given."""

import io

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from sam_jax import plotting
from sam_jax.ops.rle import encode_mask

mpl.use("Agg")
H, W = 40, 60


@pytest.fixture
def image():
    return np.full((H, W, 3), 100, np.uint8)


def rectangle(y0, x0, y1, x1):
    mask = np.zeros((H, W), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.fixture
def drawn(image):
    """drawn(*arguments) -> (H, W, 3) float: the plot, a pixel of the image a pixel."""

    def draw(*arguments, **options):
        figure = mpl.figure.Figure(figsize=(W / 10, H / 10), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        plotting.show(image, *arguments, axes=axes, **options)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pixels = np.asarray(Image.open(buffer).convert("RGB"), float)
        assert pixels.shape == (10 * H, 10 * W, 3)
        return pixels[5::10, 5::10]

    return draw


def test_a_plain_image_stays_so(drawn):
    np.testing.assert_allclose(drawn(), 100, atol=1)


def test_masks_are_tinted_where_they_are(drawn):
    large, small = rectangle(5, 5, 35, 40), rectangle(10, 10, 20, 20)
    pixels = drawn([small, large])
    inside = (np.abs(pixels - 100).max(axis=-1) > 8).reshape(H, W)
    # Outlines are a few pixels of the plot wide and lie on the border.
    assert inside[7:33, 7:38].all()
    assert not inside[:3].any()
    assert not inside[:, 43:].any()
    blue, orange = pixels[15, 15], pixels[30, 30]
    assert np.abs(blue - orange).max() > 50  # the small one lies above
    expected = 100 + (np.array(plotting.COLOURS[0]) - 100) * 0.5
    np.testing.assert_allclose(blue, expected, atol=3)


def test_records_draw_as_their_masks(drawn):
    mask = rectangle(5, 5, 35, 40)
    record = {"segmentation": encode_mask(mask), "bbox": [5, 5, 34, 29]}
    np.testing.assert_array_equal(drawn([record]), drawn([mask]))
    scored = drawn([record | {"predicted_iou": 0.93}])
    assert (np.abs(scored - drawn([mask])).max(axis=-1) > 8).sum() >= 10  # its predicted IoU is written


def test_prompts_stand_where_they_were_given(drawn):
    pixels = drawn(points=np.array([[10, 10], [50, 30]]), labels=np.array([1, 0]))
    green, red = pixels[10, 10], pixels[30, 50]
    assert green.argmax() == 1
    assert red.argmax() == 0
    boxed = drawn(boxes=np.array([5, 5, 50, 30]))
    changed = np.abs(boxed - 100).max(axis=-1) > 8
    assert changed[5, 10:45].any() or changed[4, 10:45].any()
    assert not changed[10:25, 10:45].any()


def test_a_figure_of_its_own_has_the_images_shape(image):
    figure = plotting.show(Image.fromarray(image), [rectangle(1, 1, 9, 9)], scores=[0.5])
    assert figure.get_size_inches().tolist() == pytest.approx([8, 8 * H / W])
    mpl.pyplot.close(figure)


def test_mistakes(image):
    with pytest.raises(ValueError, match=r"a mask is \(3, 3\); expected \(40, 60\)"):
        plotting.show(image, [np.zeros((3, 3), bool)])
    with pytest.raises(ValueError, match="2 scores for 1 masks"):
        plotting.show(image, [rectangle(0, 0, 3, 3)], scores=[1, 2])
    with pytest.raises(ValueError, match="3 labels for 1 points"):
        plotting.show(image, points=np.zeros((1, 2)), labels=np.ones(3))
    mpl.pyplot.close("all")
