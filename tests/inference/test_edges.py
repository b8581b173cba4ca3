"""Models with `SamConfig.crf`: their masks in the predictor and in everything mode, and what stays as it was."""

import dataclasses

import jax
import numpy as np
import pytest

from sam_jax.batch.prompt_files import ImageObjects, ObjectPrompt
from sam_jax.batch.segmenters import PromptedSegmenter
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.crf import crf_pixels, refine_masks
from sam_jax.ops.masks import mask_to_box, postprocess_masks
from sam_jax.ops.transforms import normalize_batch, pad_to_square, resize_longest_side
from tests.tiny import TINY

SIDE, PATCH = TINY.image_size, TINY.image_encoder.patch_size
WITH = dataclasses.replace(TINY, crf=True)
BOX = np.array([10.0, 12.0, 70.0, 44.0])


@pytest.fixture(scope="module")
def image():
    """Patches of plain colours and a little noise, wider than high."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (4, 6, 3)).repeat(15, axis=0).repeat(16, axis=1)
    return np.clip(patches + rng.integers(-9, 10, patches.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pair(variables, image):
    """The predictor of the same weights, without and with."""
    pair = [SamPredictor(Sam(config), variables) for config in (TINY, WITH)]
    for predictor in pair:
        predictor.set_image(image)
    return pair


@pytest.fixture(scope="module")
def expected_logits(image):
    """Low-resolution logits (M, l, l) and a box in the input frame -> logits of the image (M, H, W)."""
    resized = resize_longest_side(image, SIDE)
    size = np.array(resized.shape[:2])
    frame = normalize_batch(pad_to_square(resized, SIDE)[None], size[None], TINY.pixel_mean, TINY.pixel_std)
    pixels = crf_pixels(frame[0], size, PATCH)

    def refine(low_res, box=None):
        refined = refine_masks(low_res[None], pixels, None if box is None else np.float32(box)[None], PATCH)[0]
        return np.asarray(postprocess_masks(refined, resized.shape[:2], image.shape[:2], (SIDE, SIDE)))

    return refine


def assert_nearly_all(mask, expected):
    assert (mask != expected).mean() < 1e-3


def test_points_give_refined_masks_and_the_models_own_logits(pair, expected_logits):
    before, after = (p.predict(np.array([[40, 30]]), np.array([1]), return_logits=True) for p in pair)
    np.testing.assert_allclose(after.low_res_masks, before.low_res_masks, atol=1e-5)
    np.testing.assert_allclose(after.iou_predictions, before.iou_predictions, atol=1e-5)
    np.testing.assert_allclose(after.masks, expected_logits(after.low_res_masks), atol=1e-3)
    assert ((after.masks > 0) != (before.masks > 0)).mean() > 0.02


def test_boxes_hold_their_masks(pair, expected_logits):
    before, after = (p.predict(box=BOX, multimask_output=False) for p in pair)
    assert_nearly_all(after.masks, expected_logits(after.low_res_masks, BOX * SIDE / 96) > 0)
    assert before.masks[0, :, 71:].any()
    x0, y0, x1, y1 = mask_to_box(after.masks[0])
    assert (x0 >= 10, y0 >= 12, x1 < 70, y1 < 44) == (True,) * 4


def test_a_point_on_the_object_outside_its_box_lets_the_mask_reach_it(pair):
    def rightmost(label):
        found = pair[1].predict(np.array([[90, 30]]), np.array([label]), BOX, None, multimask_output=True)
        return max(mask_to_box(mask)[2] for mask in found.masks)

    assert rightmost(0) < 70
    assert 70 < rightmost(1) <= 90


def test_many_objects_are_those_of_one_by_one(pair, image):
    boxes = np.array([BOX, [0, 0, 30, 30], [40, 5, 96, 60]])
    together = pair[1].predict_many(boxes=boxes)
    for number, box in enumerate(boxes):
        assert_nearly_all(together.masks[number], pair[1].predict(box=box).masks)


def test_what_is_fed_back_is_the_models_own_mask(pair):
    first = pair[1].predict(box=BOX, multimask_output=False)
    again = [p.predict(box=BOX, mask_input=first.low_res_masks, multimask_output=False) for p in pair]
    np.testing.assert_allclose(again[0].low_res_masks, again[1].low_res_masks, atol=1e-5)


def test_prompted_segmenters_give_the_predictors_masks(pair, variables, image):
    segmenter = PromptedSegmenter(Sam(WITH), variables).on_device(jax.devices()[0])
    (found,) = segmenter.find(image, ImageObjects((ObjectPrompt(box=tuple(BOX)),)))
    mask = np.unpackbits(found.bits, axis=1, count=96).astype(bool)
    assert_nearly_all(mask, pair[1].predict(box=BOX, multimask_output=False).masks[0])


@pytest.fixture(scope="module")
def everything(variables, image):
    """Records without and with, and those with as logits."""

    def generate(config, **options):
        loose = dict(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
        return SamAutomaticMaskGenerator(Sam(config), variables, **loose, **options).generate(image)

    return generate(TINY), generate(WITH), generate(WITH, output_mode="low_res")


def test_everything_modes_masks_are_refined(everything, expected_logits):
    _, records, logits = everything
    assert len(records) == len(logits) > 2
    for record, low in zip(records, logits, strict=True):
        mask = record["segmentation"]
        assert_nearly_all(mask, expected_logits(low["segmentation"][None])[0] > 0)
        assert record["area"] == mask.sum() > 0
        x0, y0, x1, y1 = mask_to_box(mask)
        assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0]


def test_everything_mode_scores_stay_the_models_own(everything):
    plain, records, _ = everything
    by_point = {}
    for record in plain:
        by_point.setdefault(tuple(record["point_coords"][0]), []).append(record)
    for record in records:
        same = [
            other
            for other in by_point[tuple(record["point_coords"][0])]
            if other["predicted_iou"] == pytest.approx(record["predicted_iou"], abs=1e-5)
        ]
        assert len(same) == 1
        assert record["stability_score"] == pytest.approx(same[0]["stability_score"], abs=0.05)
