"""The predictor: shapes, frames, prompts in any number, few programs, and a plain word for every wrong input."""

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sam_jax.inference.images import ImageError, read_image
from sam_jax.inference.predictor import POINT_BUCKETS, PROMPT_BUCKETS, PredictedMasks, SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.masks import postprocess_masks
from sam_jax.ops.transforms import normalize_batch, pad_to_square, resize_longest_side
from sam_jax.structs import Prompts
from tests.tiny import TINY, jitted

ROOT = Path(__file__).parents[2]
H, W = 60, 96  # wide, and larger than the frame of 80
GRID, LOW = 5, 20


def make_image(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def points(n, p, seed=0, size=(H, W)):
    """(N, P, 2) points inside an image and their labels (N, P)."""
    rng = np.random.default_rng(seed)
    return rng.random((n, p, 2)) * (size[1], size[0]), rng.integers(0, 2, (n, p))


def boxes(n, seed=0, size=(H, W)):
    corners = np.random.default_rng(seed).random((n, 2, 2)) * (size[1], size[0])
    return np.sort(corners, axis=1).reshape(n, 4)


def logits(n, seed=0):
    return np.random.default_rng(seed).normal(scale=3, size=(n, 1, LOW, LOW)).astype(np.float32)


@pytest.fixture(scope="module")
def predictor(variables):
    """With an image that no test takes away."""
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(make_image(H, W))
    return predictor


def assert_same(one, other):
    """Predictions of two programs: equal but for rounding."""
    np.testing.assert_allclose(one.low_res_masks, other.low_res_masks, rtol=0, atol=2e-4)
    np.testing.assert_allclose(one.iou_predictions, other.iou_predictions, rtol=0, atol=2e-5)
    assert one.masks.shape == other.masks.shape
    if one.masks.dtype == bool:
        assert (one.masks != other.masks).mean() < 1e-3
    else:
        np.testing.assert_allclose(one.masks, other.masks, rtol=0, atol=2e-4)


# What comes out.


@pytest.mark.parametrize(("multimask", "count"), [(True, 3), (False, 1)])
def test_shapes_and_dtypes(predictor, multimask, count):
    coords, labels = points(1, 2)
    masks, ious, low_res = predictor.predict(coords[0], labels[0], multimask_output=multimask)
    assert (masks.shape, masks.dtype) == ((count, H, W), bool)
    assert (ious.shape, ious.dtype) == ((count,), np.float32)
    assert (low_res.shape, low_res.dtype) == ((count, LOW, LOW), np.float32)
    assert 0.01 < masks.mean() < 0.99


def test_the_single_mask_is_not_one_of_the_three(predictor):
    coords, labels = points(1, 1)
    three = predictor.predict(coords[0], labels[0]).low_res_masks
    single = predictor.predict(coords[0], labels[0], multimask_output=False).low_res_masks
    assert all(abs(single[0] - mask).max() > 0.1 for mask in three)


def test_logits_are_those_of_the_masks(predictor):
    coords, labels = points(1, 2)
    masks = predictor.predict(coords[0], labels[0]).masks
    raw = predictor.predict(coords[0], labels[0], return_logits=True).masks
    assert raw.dtype == np.float32
    np.testing.assert_array_equal(raw > 0, masks)


def test_mask_threshold_is_the_configs(variables, predictor):
    strict = SamPredictor(Sam(dataclasses.replace(TINY, mask_threshold=0.7)), variables)
    strict.set_image(make_image(H, W))
    raw = predictor.predict(box=boxes(1)[0], return_logits=True).masks
    expected = raw > 0.7
    assert (expected != (raw > 0)).mean() > 0.05
    assert (strict.predict(box=boxes(1)[0]).masks != expected).mean() < 1e-3


def test_image_embedding_is_the_models_channels_first(predictor, variables):
    resized = resize_longest_side(make_image(H, W), 80)
    padded = pad_to_square(resized, 80)[None]
    images = normalize_batch(padded, np.array([resized.shape[:2]]), TINY.pixel_mean, TINY.pixel_std)
    expected = jitted(TINY, "encode_image")(variables, images)
    out = predictor.get_image_embedding()
    assert out.shape == (1, TINY.prompt_embed_dim, GRID, GRID)
    np.testing.assert_allclose(out, np.asarray(expected).transpose(0, 3, 1, 2), atol=1e-5)


def test_bgr_is_rgb_turned_round(variables, predictor):
    other = SamPredictor(Sam(TINY), variables)
    other.set_image(make_image(H, W)[..., ::-1], "BGR")
    np.testing.assert_array_equal(other.get_image_embedding(), predictor.get_image_embedding())
    other.set_image(make_image(H, W)[..., ::-1], image_format="RGB")
    assert abs(other.get_image_embedding() - predictor.get_image_embedding()).max() > 1e-3


def test_views_and_read_only_images_are_taken(variables, predictor):
    image = make_image(H, W)
    tall = np.ascontiguousarray(image.transpose(1, 0, 2))
    tall.flags.writeable = False
    other = SamPredictor(Sam(TINY), variables)
    other.set_image(tall.transpose(1, 0, 2))
    np.testing.assert_array_equal(other.get_image_embedding(), predictor.get_image_embedding())


@pytest.mark.parametrize("size", [(80, 80), (130, 60), (23, 31), (120, 1), (1, 7)])
def test_images_of_any_shape(variables, size):
    """Square, tall, smaller than the frame, and one pixel thin."""
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(make_image(*size))
    h, w = size
    masks, ious, low_res = predictor.predict(np.array([[w / 2, h / 2], [0, 0], [w, h]]), np.array([1, 0, 1]))
    assert masks.shape == (3, h, w)
    assert np.isfinite(ious).all()
    assert np.isfinite(low_res).all()


def test_coordinates_are_the_images_own(variables):
    """The same place of the same image, whatever its size: constant colours resize without a trace."""
    predictors = [SamPredictor(Sam(TINY), variables) for _ in range(2)]
    plain = np.full((40, 80, 3), (200, 90, 30), np.uint8)
    predictors[0].set_image(plain)
    predictors[1].set_image(np.tile(plain, (3, 3, 1)))
    # Corners are at 0 and pixel centres half a pixel further, so that coordinates scale without an offset.
    small = predictors[0].predict(np.array([[20.0, 30.0]]), np.array([1]), box=np.array([10, 5, 60, 35]))
    large = predictors[1].predict(np.array([[60.0, 90.0]]), np.array([1]), box=np.array([30, 15, 180, 105]))
    np.testing.assert_allclose(large.low_res_masks, small.low_res_masks, atol=1e-4)
    swapped = predictors[0].predict(np.array([[30.0, 20.0]]), np.array([1]), box=np.array([10, 5, 60, 35]))
    assert abs(swapped.low_res_masks - small.low_res_masks).max() > 1e-2


def test_reset_image(variables):
    predictor = SamPredictor(Sam(TINY), variables)
    assert not predictor.is_image_set
    predictor.set_image(make_image(H, W))
    assert predictor.is_image_set
    assert (predictor.original_size, predictor.input_size) == ((H, W), (50, 80))
    predictor.reset_image()
    assert not predictor.is_image_set
    with pytest.raises(RuntimeError, match=r"no image is set; call set_image\(image\) first"):
        predictor.predict(box=boxes(1)[0])


def test_a_second_image_takes_the_place_of_the_first(variables, predictor):
    other = SamPredictor(Sam(TINY), variables)
    other.set_image(make_image(31, 23, seed=1))
    other.predict(box=np.array([1, 1, 20, 30]))
    other.set_image(make_image(H, W))
    assert_same(other.predict(box=boxes(1)[0]), predictor.predict(box=boxes(1)[0]))


def test_a_refused_image_leaves_the_present_one(variables):
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(make_image(H, W))
    before = predictor.predict(box=boxes(1)[0])
    with pytest.raises(ValueError, match="dtype float64"):
        predictor.set_image(make_image(H, W) / 255.0)
    assert_same(predictor.predict(box=boxes(1)[0]), before)


# Prompts, alone and together.


def test_every_prompt_counts(predictor):
    coords, labels = points(1, 1)
    given = {"point_coords": coords[0], "point_labels": labels[0], "box": boxes(1)[0], "mask_input": logits(1)[0]}
    everything = predictor.predict(**given).low_res_masks
    for left_out in (("point_coords", "point_labels"), ("box",), ("mask_input",)):
        fewer = predictor.predict(**{key: value for key, value in given.items() if key not in left_out})
        assert abs(fewer.low_res_masks - everything).max() > 1e-2


def test_no_prompt_is_a_prediction_too(predictor):
    """As with the official class: the model then segments what it likes."""
    out = predictor.predict()
    assert out.masks.shape == (3, H, W)
    assert np.isfinite(out.low_res_masks).all()
    assert_same(predictor.predict(np.zeros((0, 2)), np.zeros(0, int)), out)


def test_lists_and_integers_will_do(predictor):
    expected = predictor.predict(np.array([[20.0, 30.0]]), np.array([1.0]), np.array([10.0, 5.0, 60.0, 35.0]))
    assert_same(predictor.predict([[20, 30]], [1], [10, 5, 60, 35]), expected)
    assert_same(predictor.predict([[20, 30]], [True], np.array([[10, 5, 60, 35]])), expected)


@pytest.mark.parametrize("p", [1, POINT_BUCKETS[0], POINT_BUCKETS[0] + 1, POINT_BUCKETS[1], POINT_BUCKETS[-1] + 1])
def test_spare_points_change_nothing(predictor, p):
    """At buckets' edges and beyond the largest: the same as the model on exactly these points."""
    coords, labels = points(1, p)
    out = predictor.predict(coords[0], labels[0], return_logits=True)
    assert_same(out, exact(predictor, coords, labels))


def exact(predictor, coords, labels):
    """The model itself on (1, P) points, compiled for nothing else."""
    embeddings = np.asarray(predictor.get_image_embedding()).transpose(0, 2, 3, 1)
    scale = np.array([predictor.input_size[1] / W, predictor.input_size[0] / H])
    prompts = Prompts(point_coords=(coords * scale)[None].astype(np.float32), point_labels=labels[None])
    decode = jitted(TINY, "decode_masks", multimask_output=True)
    out = jax.tree.map(lambda x: np.asarray(x)[0, 0], decode(predictor.variables, embeddings, prompts))
    masks = postprocess_masks(out.low_res_masks, predictor.input_size, (H, W), (80, 80))
    return PredictedMasks(np.asarray(masks), out.iou_predictions, out.low_res_masks)


def one_by_one(predictor, n, parts, **options):
    """`predict` for each of N prompts, stacked."""
    names = {"boxes": "box", "mask_inputs": "mask_input"}
    each = [predictor.predict(**{names.get(k, k): v[i] for k, v in parts.items()}, **options) for i in range(n)]
    return type(each[0])(*(np.stack(part) for part in zip(*each, strict=True)))


MANY = {
    "points": lambda n: dict(zip(("point_coords", "point_labels"), points(n, 3), strict=True)),
    "boxes": lambda n: {"boxes": boxes(n)},
    "masks": lambda n: {"mask_inputs": logits(n)},
    "all": lambda n: MANY["points"](n) | MANY["boxes"](n) | MANY["masks"](n),
}


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("multimask", [True, False])
def test_many_equals_one_by_one(predictor, kind, multimask):
    parts = MANY[kind](3)
    many = predictor.predict_many(**parts, multimask_output=multimask)
    assert many.masks.shape == (3, 3 if multimask else 1, H, W)
    assert_same(many, one_by_one(predictor, 3, parts, multimask_output=multimask))


@pytest.mark.parametrize("n", [1, 4, 5, PROMPT_BUCKETS[-1] + 3])
def test_any_number_of_prompts(predictor, n):
    """At buckets' edges and beyond the largest, in their order. Few are compared one by one: the first and last."""
    given = boxes(n)
    many = predictor.predict_many(boxes=given, return_logits=True)
    assert many.masks.shape == (n, 3, H, W)
    for index in {0, n // 2, n - 1}:
        one = predictor.predict(box=given[index], return_logits=True)
        assert_same(type(one)(*(part[index] for part in many)), one)


def test_ragged_points(predictor):
    coords, labels = points(3, 4)
    counts = (4, 1, 2)
    for i, count in enumerate(counts):
        labels[i, count:] = -1
        coords[i, count:] = 1e6  # absent points may be anywhere
    many = predictor.predict_many(coords, labels)
    each = [predictor.predict(coords[i, :count], labels[i, :count]) for i, count in enumerate(counts)]
    assert_same(many, type(many)(*(np.stack(part) for part in zip(*each, strict=True))))


def test_absent_points_may_be_nan(predictor):
    """What a ragged array is padded with, as often as not."""
    coords, labels = points(2, 2)
    labels[1, 1] = -1
    expected = predictor.predict_many(coords, labels)
    coords[1, 1] = np.nan
    assert_same(predictor.predict_many(coords, labels), expected)


def test_no_objects_give_no_masks(predictor):
    """What a detector that found nothing passes on."""
    out = predictor.predict_many(boxes=np.zeros((0, 4)))
    assert out.masks.shape == (0, 3, H, W)
    assert out.iou_predictions.shape == (0, 3)
    assert out.low_res_masks.shape == (0, 3, LOW, LOW)


# Programs.


@contextlib.contextmanager
def count_programs():
    """Names of everything that JAX lowers meanwhile, eager operations among them, cached on disk or not."""
    names = []

    def listen(event, duration, **details):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_count_sees_eager_operations():
    x = jnp.arange(7.0)
    with count_programs() as names:
        jnp.flip(x * 2.5)
    assert len(names) >= 2
    with count_programs() as names:
        jnp.flip(x * 2.5)
        np.asarray(x)
    assert names == []


def interactive_calls():
    """Twenty different ones: 1 to 20 points, with and without each of the other arguments."""
    for i in range(20):
        coords, labels = points(1, i + 1, seed=i)
        yield {
            "point_coords": coords[0],
            "point_labels": labels[0],
            "box": boxes(1, seed=i)[0] if i % 2 else None,
            "mask_input": logits(1, seed=i)[0] if i % 3 == 0 else None,
            "multimask_output": i % 4 < 2,
            "return_logits": i % 5 == 0,
        }


def test_twenty_interactive_calls_compile_six_programs(variables):
    jax.clear_caches()
    predictor = SamPredictor(Sam(TINY), variables)
    with count_programs() as names:
        predictor.set_image(make_image(H, W))
        for call in interactive_calls():
            predictor.predict(**call)
        predictor.predict(box=boxes(1)[0])
        predictor.predict()
    assert 3 <= len(names) <= 6, names
    with count_programs() as names:
        predictor.set_image(make_image(H, W, seed=1))
        for call in interactive_calls():
            predictor.predict(**call)
    assert names == []


def test_another_image_size_compiles_one_small_program(variables):
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(make_image(H, W))
    predictor.predict(box=boxes(1)[0])
    with count_programs() as names:
        predictor.set_image(make_image(71, 43))
        predictor.predict(box=np.array([1, 2, 30, 60]))
    assert len(names) == 1, names


# Wrong input.


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


MEMORY = """
import resource
import jax, numpy as np
import sam_jax

model = sam_jax.Sam(sam_jax.vit_b())
predictor = sam_jax.SamPredictor(model, sam_jax.init_variables(model, jax.random.key(0)))
predictor.set_image(np.random.default_rng(0).integers(0, 256, (1500, 2250, 3), np.uint8))
masks, _, _ = predictor.predict(np.array([[500, 375]]), np.array([1]))
assert masks.shape == (3, 1500, 2250)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_vit_b_on_a_large_image_stays_below_four_gigabytes():
    run = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 4e9
