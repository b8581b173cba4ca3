"""The compiled part against SamPredictor, and how objects are portioned out."""

import numpy as np
import pytest

from sam_jax.evaluation.objects import Engine, ObjectGroup, Target, split_into_rows
from sam_jax.evaluation.programs import enlarging_matrices, slots_per_row
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import encode_mask
from tests.tiny import TINY

SIZES = ((60, 96), (150, 70), (33, 33))


@pytest.fixture(scope="module")
def scene(variables):
    """A group of five objects in three images of several sizes, and the images."""
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    targets = []
    for image in (0, 0, 0, 1, 2):
        h, w = SIZES[image]
        mask = np.zeros((h, w), bool)
        y, x = rng.integers(0, h // 2), rng.integers(0, w // 2)
        mask[y : y + h // 3, x : x + w // 3] = True
        targets.append(Target(image, encode_mask(mask)))
    with ThreadPoolExecutor(2) as pool:
        engine = Engine(Sam(TINY), variables, pool)
        yield ObjectGroup(engine, engine.encode(images, batch=4), targets, (5, 2)), images


def check(scene, variables, predictions, low_res, **prompts):
    """Holds masks of a group to those of SamPredictor, but for pixels whose logit is zero but for rounding."""
    group, images = scene
    masks, estimates = group.in_image(low_res), group.gather(predictions.iou_predictions)
    for number, target in enumerate(group.targets):
        predictor = SamPredictor(Sam(TINY), variables)
        predictor.set_image(images[target.image])
        mine = {name: value[number] for name, value in prompts.items()}
        three = predictor.predict(**mine, multimask_output=True, return_logits=True)
        one = predictor.predict(**mine, multimask_output=False, return_logits=True)
        assert estimates[number] == pytest.approx(np.concatenate([one[1], three[1]]), abs=1e-4)
        for mask, logits in zip(masks[number], np.concatenate([one[0], three[0]]), strict=True):
            sure = np.abs(logits) > 1e-4
            assert np.array_equal(mask[sure], (logits > 0)[sure])
            assert sure.mean() > 0.99


@pytest.mark.long
def test_clicks_boxes_and_masks_agree_with_the_predictor(scene, variables):
    group, _ = scene
    coords = np.array([[[5.0, 7.0], [20.0, 30.0], [0.0, 0.0]]] * 5)
    labels = np.array([[1, 0, -1]] * 5)
    predictions = group.predict(coords, labels)
    seen = {"point_coords": coords[:, :2], "point_labels": labels[:, :2]}
    check(scene, variables, predictions, predictions.low_res_masks, **seen)
    logits, _ = group.choose(predictions, np.array([0, 1, 2, 3, 0]))
    again = group.predict(coords, labels, mask_inputs=logits)
    fed_back = {"mask_input": group.gather(logits)}
    check(scene, variables, again, again.low_res_masks, **seen, **fed_back)
    boxed = group.predict(boxes=group.boxes(), mask_inputs=logits)
    check(scene, variables, boxed, boxed.low_res_masks, box=group.boxes(), **fed_back)
    alone = group.predict(boxes=group.boxes())
    check(scene, variables, alone, alone.low_res_masks, box=group.boxes())


def test_choose_takes_the_right_mask(scene):
    group, _ = scene
    predictions = group.predict(boxes=group.boxes())
    index = np.array([3, 0, 1, 2, 1])
    logits, estimates = group.choose(predictions, index)
    every, all_estimates = group.gather(predictions.low_res_masks), group.gather(predictions.iou_predictions)
    assert np.array_equal(group.gather(logits)[:, 0], every[np.arange(5), index])
    assert np.array_equal(estimates, all_estimates[np.arange(5), index])


def test_matrices_are_padded_with_nothing():
    rows, cols = enlarging_matrices(20, 80, [(50, 80), (80, 37)], [(60, 96), (150, 70)])
    assert rows.shape == (2, 192, 20)  # sides up to 512 go to multiples of 64
    assert cols.shape == (2, 128, 20)
    assert not rows[0, 60:].any()
    assert not cols[1, 70:].any()
    assert rows[0, :60].sum(axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    assert enlarging_matrices(20, 80, [(80, 80)], [(1500, 2250)])[0].shape == (1, 1536, 20)
    assert enlarging_matrices(20, 80, [(80, 80)], [(1500, 2250)])[1].shape == (1, 2560, 20)


def test_rows_hold_objects_of_one_image():
    assert split_into_rows([0, 0, 0, 1, 2], (4, 2)) == [slice(0, 5)]
    assert split_into_rows([0, 0, 0, 1, 2], (2, 2)) == [slice(0, 3), slice(3, 5)]
    assert split_into_rows([0, 1, 2], (1, 4)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert split_into_rows([5], (3, 2)) == [slice(0, 1)]


def test_slots_fit_what_images_usually_have():
    assert slots_per_row([1, 1, 1, 40], 32) == 1
    assert slots_per_row([3, 4, 5], 32) == 4
    assert slots_per_row([100, 120], 32) == 16
    assert slots_per_row([100, 120], 64) == 64
    assert slots_per_row([100], 1) == 1
