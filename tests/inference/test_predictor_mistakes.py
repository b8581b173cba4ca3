"""What `SamPredictor` refuses, and how it says so."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.inference.images import ImageError, read_image
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from tests.predicting import MANY, H, W, boxes, logits, make_image, points
from tests.tiny import TINY


def assert_plain(failure, *words):
    text = str(failure.value)
    assert "\n" not in text
    assert len(text) < 300
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (make_image(9, 9) / 255, {}, ["float64", "(9, 9, 3)", "expected (H, W, 3) uint8 in 0..255"]),
        (make_image(9, 9).astype(np.int32), {}, ["int32", "uint8"]),
        (make_image(9, 9) > 9, {}, ["bool", "uint8"]),
        (make_image(9, 9)[..., 0], {}, ["(9, 9)", "sam_jax.read_image reads grey, RGBA"]),
        (make_image(9, 9)[..., :1], {}, ["(9, 9, 1)", "sam_jax.read_image"]),
        (np.zeros((9, 9, 4), np.uint8), {}, ["(9, 9, 4)", "sam_jax.read_image"]),
        (make_image(9, 9).transpose(2, 0, 1), {}, ["(3, 9, 9)", "(H, W, 3)"]),
        (make_image(9, 9)[None], {}, ["(1, 9, 9, 3)"]),
        (np.zeros((0, 9, 3), np.uint8), {}, ["(0, 9, 3)"]),
        ([[[1, 2, 3]]], {}, ["list", "numpy array"]),
        ("image.jpg", {}, ["str", "numpy array"]),
        (None, {}, ["NoneType", "numpy array"]),
        (make_image(9, 9), {"image_format": "HSV"}, ["'HSV'", "'RGB' or 'BGR'"]),
        (make_image(9, 9), {"image_format": "bgr"}, ["'bgr'", "'RGB' or 'BGR'"]),
    ],
)
def test_wrong_images(variables, image, options, words):
    predictor = SamPredictor(Sam(TINY), variables)
    with pytest.raises(ValueError, match="expected") as failure:
        predictor.set_image(image, **options)
    assert_plain(failure, *words)
    assert not predictor.is_image_set


def test_an_image_of_pillow_is_treated_as_its_file(variables, tmp_path):
    """Turned upright by its EXIF, and RGB."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(40, 60)).convert("RGBA").save(tmp_path / "turned.png", exif=exif)
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(read_image(tmp_path / "turned.png"))
    expected = predictor.get_image_embedding()
    with Image.open(tmp_path / "turned.png") as image:
        predictor.set_image(image)
        assert predictor.original_size == (60, 40)
        np.testing.assert_array_equal(predictor.get_image_embedding(), expected)
        with pytest.raises(
            ValueError, match="image_format is 'BGR'; expected 'RGB', as a PIL image knows its channels"
        ):
            predictor.set_image(image, "BGR")
    (tmp_path / "short.png").write_bytes((tmp_path / "turned.png").read_bytes()[:-300])
    with (
        Image.open(tmp_path / "short.png") as image,
        pytest.raises(ImageError, match="the PIL image cannot be decoded"),
    ):
        predictor.set_image(image)


def test_predict_before_set_image(variables):
    predictor = SamPredictor(Sam(TINY), variables)
    for call in (predictor.get_image_embedding, predictor.predict, predictor.predict_many):
        with pytest.raises(RuntimeError, match=r"no image is set; call set_image\(image\) first"):
            call()


P, L = "point_coords", "point_labels"
NAN = np.nan
INSIDE = "which is 96x60 pixels"
WRONG = {
    "right of the image": ({P: [[96.5, 3]], L: [1]}, ["point 96.5,3 lies outside the image", INSIDE]),
    "below": ({P: [[5, 3], [50, 61]], L: [1, 1]}, ["point 50,61 lies outside", INSIDE]),
    "left": ({P: [[-1, 3]], L: [0]}, ["point -1,3 lies outside", INSIDE]),
    "swapped": ({P: [[10, 90]], L: [1]}, ["point 10,90 lies outside", INSIDE]),
    "NaN point": ({P: [[NAN, 3]], L: [1]}, ["point nan,3"]),
    "infinite point": ({P: [[5, np.inf]], L: [1]}, ["point 5,inf"]),
    "label 2": ({P: [[5, 3]], L: [2]}, ["point label 2 is neither 1 (on the object) nor 0 (off it)"]),
    "label 0.5": ({P: [[5, 3]], L: [0.5]}, ["point label 0.5"]),
    "label NaN": ({P: [[5, 3]], L: [NAN]}, ["point label nan"]),
    "label -2": ({P: [[5, 3]], L: [-2]}, ["point label -2"]),
    "label -1": ({P: [[5, 3]], L: [-1]}, ["point label -1"]),
    "no labels": ({P: [[5, 3]]}, ["point_labels is missing", "together"]),
    "no coords": ({L: [1]}, ["point_coords is missing", "together"]),
    "flat coords": ({P: [5, 3], L: [1]}, ["(2,)", "(P, 2)"]),
    "three coordinates": ({P: [[5, 3, 1]], L: [1]}, ["(1, 3)", "(P, 2)"]),
    "too few labels": ({P: [[5, 3], [6, 4]], L: [1]}, ["(2, 2)", "(1,)", "(P, 2) and (P,)"]),
    "labels in rows": ({P: [[5, 3]], L: [[1]]}, ["(1, 2)", "(1, 1)", "(P,)"]),
    "scalar label": ({P: [[5, 3]], L: 1}, ["(P,)"]),
    "ragged coords": ({P: [[5, 3], [6]], L: [1, 1]}, ["point_coords"]),
    "words": ({P: [["a", "b"]], L: [1]}, ["point_coords"]),
    "box x": ({"box": [50, 5, 50, 9]}, ["box 50,5,50,9 is empty", "x0 < x1 and y0 < y1", "corners"]),
    "box y": ({"box": [10, 9, 50, 5]}, ["box 10,9,50,5 is empty", "x0 < x1 and y0 < y1"]),
    "box right": ({"box": [96, 5, 120, 9]}, ["box 96,5,120,9 lies outside the image", INSIDE]),
    "box above": ({"box": [5, -9, 50, 0]}, ["box 5,-9,50,0 lies outside", INSIDE]),
    "box below": ({"box": [5, 60, 50, 70]}, ["box 5,60,50,70 lies outside", INSIDE]),
    "box NaN": ({"box": [5, NAN, 50, 9]}, ["box 5,nan,50,9"]),
    "box infinite": ({"box": [5, 1, np.inf, 9]}, ["box 5,1,inf,9"]),
    "box of three": ({"box": [5, 1, 9]}, ["numbers x0, y0, x1, y1"]),
    "two boxes": ({"box": boxes(2)}, ["box has shape (2, 4)", "numbers x0, y0, x1, y1", "predict_many"]),
    "no box": ({"box": np.zeros((0, 4))}, ["box has shape (0, 4)", "predict_many"]),
    "stacked box": ({"box": boxes(1)[None]}, ["box has shape (1, 1, 4)"]),
    "square box": ({"box": [[5, 1], [9, 8]]}, ["box has shape (2, 2)"]),
    "points of two": ({P: points(2, 3)[0], L: points(2, 3)[1]}, ["(2, 3, 2)", "(2, 3)", "predict_many"]),
    "masks of two": ({"mask_input": logits(2)}, ["mask_input has shape (2, 1, 20, 20)", "predict_many"]),
    "ragged mask": ({"mask_input": [[[0.0], [0.0, 1.0]]]}, ["mask_input is not an array of numbers"]),
    "box words": ({"box": list("abcd")}, ["box"]),
    "mask size": ({"mask_input": np.zeros((1, 21, 20), np.float32)}, ["(1, 21, 20)", "(1, 20, 20) logits", "low_res"]),
    "mask of three": ({"mask_input": np.zeros((3, 20, 20), np.float32)}, ["(3, 20, 20)", "(1, 20, 20)"]),
    "flat mask": ({"mask_input": np.zeros((20, 20), np.float32)}, ["(20, 20)", "(1, 20, 20)"]),
    "binary mask": ({"mask_input": np.ones((1, 20, 20), bool)}, ["bool", "float logits"]),
    "integer mask": ({"mask_input": np.ones((1, 20, 20), int)}, ["int64", "float logits"]),
    "mask NaN": ({"mask_input": np.full((1, 20, 20), NAN)}, ["not finite"]),
    "mask infinite": ({"mask_input": np.full((1, 20, 20), -np.inf, np.float32)}, ["not finite"]),
    "mask beyond float32": ({"mask_input": np.full((1, 20, 20), 1e300)}, ["not finite"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_prompts(predictor, name):
    given, words = WRONG[name]
    with pytest.raises(ValueError) as failure:  # noqa: PT011
        predictor.predict(**given)
    assert_plain(failure, *words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"boxes": boxes(2), "mask_inputs": logits(3)}, ["[2, 3]", "give each kind for all"]),
        (MANY["points"](4) | {"boxes": boxes(2)}, ["[2, 4]"]),
        (MANY["points"](1) | {"mask_inputs": logits(2)}, ["[1, 2]"]),
        ({P: points(2, 3)[0], L: points(3, 3)[1]}, ["point_coords", "point_labels", "(2, 3, 2)", "(3, 3)"]),
        ({P: points(1, 2)[0][0], L: [1, 1]}, ["point_coords has shape (2, 2)", "point_labels (2,)", "(N, P, 2)"]),
        ({P: points(2, 2)[0], L: points(2, 3)[1]}, ["(2, 2, 2)", "(2, 3)", "expected (N, P, 2) and (N, P)"]),
        ({"boxes": boxes(1)[0]}, ["boxes has shape (4,)", "expected (N, 4) numbers"]),
        ({"boxes": boxes(2)[None]}, ["boxes has shape (1, 2, 4)"]),
        ({"mask_inputs": logits(1)[0]}, ["mask_inputs has shape (1, 20, 20)", "expected (N, 1, 20, 20)"]),
        ({"mask_inputs": logits(2)[:, :, :9]}, ["mask_inputs has shape (2, 1, 9, 20)"]),
        ({"boxes": np.array([[1, 1, 5, 5], [5, 5, 1, 1]])}, ["box 5,5,1,1 is empty"]),
        ({P: [[[1, 1], [500, 1]]], L: [[1, 1]]}, ["point 500,1 lies outside"]),
    ],
)
def test_wrong_prompts_of_many(predictor, given, words):
    with pytest.raises(ValueError) as failure:  # noqa: PT011
        predictor.predict_many(**given)
    assert_plain(failure, *words)


def test_points_and_boxes_at_the_rim_are_inside(predictor):
    assert predictor.predict([[0, 0], [W, H]], [1, 0]).masks.shape == (3, H, W)
    assert predictor.predict(box=[0, 0, W, H]).masks.shape == (3, H, W)
    assert predictor.predict(box=[-4.5, -3, W + 7, H + 2]).masks.shape == (3, H, W)  # drawn by a shaky hand
