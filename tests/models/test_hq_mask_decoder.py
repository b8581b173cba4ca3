"""HQ-SAM's mask decoder: which masks it gives, and what they are made of. Parity with its code is in test_oracle.py."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from sam_jax.models.hq_mask_decoder import _single_and_best
from sam_jax.models.image_encoder import HqImageEncoder, ImageEncoder
from sam_jax.models.sam import Sam
from sam_jax.structs import Prompts
from tests.tiny import TINY, as_hq, jitted, random_images, random_variables

HQ = as_hq(TINY)


@pytest.fixture(scope="module")
def variables():
    return random_variables(HQ)


@pytest.fixture(scope="module")
def embeddings(variables):
    return jitted(HQ, "encode_image")(variables, random_images(0, 2, 80, 80))


def points(count, batch=2):
    rng = np.random.default_rng(count)
    coords = rng.uniform(0, 80, (batch, count, 2, 2)).astype(np.float32)
    return Prompts(point_coords=coords, point_labels=rng.integers(0, 2, (batch, count, 2)))


def test_the_best_by_predicted_iou_is_chosen():
    rows = np.arange(2 * 4 * 3, dtype=np.float32).reshape(1, 2, 4, 3)
    iou = np.array([[[0.9, 0.1, 0.5, 0.2], [0.1, 0.3, 0.3, 0.2]]], np.float32)
    found, ious = _single_and_best(rows, iou)
    np.testing.assert_array_equal(found, rows[0, [[0, 0], [1, 1]], [[0, 2], [0, 1]]][None])
    np.testing.assert_array_equal(ious, np.float32([[[0.9, 0.5], [0.1, 0.3]]]))


def test_embeddings_carry_fine_features_made_of_early_ones(variables, embeddings):
    dim, width = HQ.prompt_embed_dim, HQ.vit.embed_dim
    assert embeddings.shape == (2, 5, 5, HQ.embedding_channels)
    encoder = {"params": variables["params"]["image_encoder"]}
    plain = ImageEncoder(TINY.vit, dim).apply(encoder, random_images(0, 2, 80, 80))
    both = HqImageEncoder(TINY.vit, dim).apply(encoder, random_images(0, 2, 80, 80))
    assert both.shape == (2, 5, 5, dim + width)
    np.testing.assert_allclose(both[..., :dim], plain, atol=1e-5)
    np.testing.assert_allclose(embeddings[..., :dim], plain, atol=1e-5)


@pytest.mark.long
def test_two_masks_and_the_parts_of_their_sum(variables, embeddings):
    prompts = points(3)
    both = jitted(HQ, "predict_masks")(variables, embeddings, prompts)
    only = jitted(as_hq(TINY, hq_token_only=True), "predict_masks")(variables, embeddings, prompts)
    assert both.low_res_masks.shape == (2, 3, 2, 20, 20)
    assert both.iou_predictions.shape == (2, 3, 2)
    np.testing.assert_array_equal(only.iou_predictions, both.iou_predictions)
    np.testing.assert_array_equal(only.low_res_masks[:, :, 0], only.low_res_masks[:, :, 1])
    assert np.abs(both.low_res_masks - only.low_res_masks).max() > 0.1
    for multimask, index in ((False, 0), (True, 1)):
        one = jitted(HQ, "decode_masks", multimask_output=multimask)(variables, embeddings, prompts)
        np.testing.assert_allclose(one.low_res_masks[:, :, 0], both.low_res_masks[:, :, index], atol=1e-5)


@pytest.mark.long
def test_prompts_without_a_good_mask_are_spared(variables, embeddings):
    prompts, embeddings = points(4, batch=1), embeddings[:1]
    wanted = jax.jit(partial(Sam(HQ).apply, masks=slice(1, None), method="predict_planes"))
    planes, iou = wanted(variables, embeddings, prompts)
    least = np.float32(np.median(iou))
    spared, same = wanted(variables, embeddings, prompts, least_iou=least)
    np.testing.assert_allclose(same, iou, atol=1e-5)
    good = np.asarray(iou)[..., 0] > least
    assert good.sum() == good.size // 2
    np.testing.assert_allclose(np.asarray(spared)[good], np.asarray(planes)[good], atol=1e-5)
    assert not np.asarray(spared)[~good].any()


def test_images_and_prompts_are_apart(variables, embeddings):
    prompts = points(3)
    run = jitted(HQ, "predict_masks")
    every = run(variables, embeddings, prompts)
    one = run(variables, embeddings[1:], jax.tree.map(lambda x: x[1:, 1:2], prompts))
    np.testing.assert_allclose(one.low_res_masks[0, 0], every.low_res_masks[1, 1], atol=1e-5)


@pytest.mark.slow
def test_frames_that_are_not_square_and_bfloat16(variables):
    images, prompts = random_images(1, 1, 48, 80), points(2, batch=1)
    exact = jitted(HQ, "__call__")(variables, images, prompts)
    assert exact.low_res_masks.shape == (1, 2, 1, 12, 20)
    fast = dataclasses.replace(HQ, dtype="bfloat16")  # of masks that are as good as another it may take another
    one, near = (jitted(c, "__call__", multimask_output=False)(variables, images, prompts) for c in (HQ, fast))
    assert near.low_res_masks.dtype == np.float32
    assert np.abs(near.low_res_masks - one.low_res_masks).mean() < 0.05 * np.abs(one.low_res_masks).mean()
