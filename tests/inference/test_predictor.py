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

from sam_jax.inference.predictor import POINT_BUCKETS, PROMPT_BUCKETS, PredictedMasks, SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.masks import postprocess_masks
from sam_jax.ops.transforms import normalize_batch, pad_to_square, resize_longest_side
from sam_jax.structs import Prompts
from tests.predicting import GRID, LOW, MANY, H, W, boxes, logits, make_image, points
from tests.tiny import TINY, jitted

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    "p",
    [
        1,
        POINT_BUCKETS[0],
        POINT_BUCKETS[0] + 1,
        POINT_BUCKETS[1],
        pytest.param(POINT_BUCKETS[-1] + 1, marks=pytest.mark.slow),
    ],
)
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
