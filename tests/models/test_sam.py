"""The whole model: prompts do not disturb each other, padding is exact, branches agree, programs are compiled once."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models import two_way_transformer
from sam_jax.models.sam import Sam, init_variables
from sam_jax.ops.planes import join_subpixels, split_subpixels
from sam_jax.structs import Prompts
from tests.tiny import TINY, as_hq, jitted, random_embeddings, random_images, random_variables

WITH_DETAILS = dataclasses.replace(TINY, details=8)
EXACT = 2e-6  # a few units in the last place of logits of order ten


@pytest.fixture(scope="module")
def predict(variables):
    return lambda embeddings, prompts: jitted(TINY, "predict_masks")(variables, embeddings, prompts)


def assert_same(one, other, atol=EXACT):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=atol)


def mixed_prompts(batch=2, count=3, grid=(5, 5)):
    """Points, boxes and masks, some of each present: (B, N, ...)."""
    rng, h, w = np.random.default_rng(0), *grid
    lead = (batch, count)
    labels = rng.integers(-1, 2, (*lead, 2)).astype(np.int32)
    labels[..., 0] = 1
    return Prompts(
        point_coords=rng.uniform(0, 16 * min(grid), (*lead, 2, 2)).astype(np.float32),
        point_labels=labels,
        boxes=np.sort(rng.uniform(0, 16 * min(grid), (*lead, 2, 2)), axis=-2).reshape(*lead, 4).astype(np.float32),
        box_valid=rng.random(lead) < 0.5,
        mask_inputs=3 * rng.standard_normal((*lead, 4 * h, 4 * w)).astype(np.float32),
        mask_valid=rng.random(lead) < 0.5,
    )


def only_points(prompts):
    return Prompts(point_coords=prompts.point_coords, point_labels=prompts.point_labels)


@pytest.mark.parametrize("extra", [1, 9])
def test_absent_points_change_nothing(predict, extra):
    """Nine more tokens also push the decoder's attention from its folded to its unfolded branch."""
    embeddings, prompts = random_embeddings(0), only_points(mixed_prompts(1, 2))
    lead = (1, 2, extra)
    padded = Prompts(
        point_coords=np.concatenate([prompts.point_coords, np.full((*lead, 2), 1e4, np.float32)], axis=2),
        point_labels=np.concatenate([prompts.point_labels, np.full(lead, -1, np.int32)], axis=2),
    )
    assert_same(predict(embeddings, padded), predict(embeddings, prompts))


def test_absent_boxes_and_masks_change_nothing(predict):
    embeddings, prompts = random_embeddings(0), mixed_prompts(1, 2)
    none = np.zeros((1, 2), bool)
    absent = prompts.replace(box_valid=none, mask_valid=none)
    assert_same(predict(embeddings, absent), predict(embeddings, only_points(prompts)))


@pytest.mark.parametrize(
    "config",
    [pytest.param(TINY, marks=pytest.mark.slow), WITH_DETAILS, pytest.param(as_hq(TINY), marks=pytest.mark.slow)],
    ids=["plain", "details", "hq"],
)
def test_prepared_embeddings_give_the_same_masks(config):
    variables, prompts = random_variables(config), mixed_prompts()
    shape = (2, 5, 5, config.embedding_channels)
    embeddings = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    prepared = jitted(config, "prepare_embeddings")(variables, embeddings)
    found, expected = (jitted(config, "predict_masks")(variables, x, prompts) for x in (prepared, embeddings))
    assert np.abs(expected.low_res_masks[0] - expected.low_res_masks[1]).max() > 0.1
    assert_same(found, expected)


def test_present_ones_do_change_something(predict):
    embeddings, prompts = random_embeddings(0), mixed_prompts(1, 2)
    base = predict(embeddings, only_points(prompts)).low_res_masks
    for name in ("box_valid", "mask_valid"):
        flags = {"box_valid": np.zeros((1, 2), bool), "mask_valid": np.zeros((1, 2), bool), name: np.ones((1, 2), bool)}
        assert np.abs(predict(embeddings, prompts.replace(**flags)).low_res_masks - base).max() > 0.01


@pytest.mark.parametrize("mixed", [True, False])
def test_prompts_and_images_do_not_disturb_each_other(predict, mixed):
    """Points alone take the branches for pixels that all prompts share, mixed prompts those for pixels of their own."""
    embeddings, prompts = random_embeddings(0, batch=2), mixed_prompts(2, 3)
    prompts = prompts if mixed else only_points(prompts)
    together = predict(embeddings, prompts)
    for b, n in np.ndindex(2, 3):
        here = np.s_[b : b + 1, n : n + 1]
        alone = predict(embeddings[b : b + 1], jax.tree.map(lambda x, here=here: x[here], prompts))
        # Products of pixels of their own add up in another order where there are fewer: one processor shows 1.2e-5.
        assert_same(alone, jax.tree.map(lambda x, here=here: x[here], together), atol=2e-5 if mixed else EXACT)


def test_order_of_prompts_does_not_matter(predict):
    embeddings, prompts = random_embeddings(0), mixed_prompts(1, 3)
    back = predict(embeddings, jax.tree.map(lambda x: x[:, ::-1], prompts))
    assert_same(jax.tree.map(lambda x: x[:, ::-1], back), predict(embeddings, prompts))


@pytest.mark.parametrize("grid", [pytest.param((5, 5), marks=pytest.mark.slow), (3, 6)])
def test_folded_and_unfolded_attention_agree(variables, monkeypatch, grid):
    embeddings, prompts = random_embeddings(0, 2, grid), mixed_prompts(2, 3, grid)
    outputs = []
    for folds in (True, False):
        monkeypatch.setattr(two_way_transformer.Attention, "_folds", lambda *_, folds=folds: folds)
        apply = jax.jit(lambda *args: Sam(TINY).apply(*args, method="predict_masks"))
        outputs.append(apply(variables, embeddings, prompts))
    assert outputs[0].low_res_masks.shape == (2, 3, 4, 4 * grid[0], 4 * grid[1])
    assert_same(*outputs, atol=1e-5)


def test_folding_is_chosen_where_it_is_cheaper():
    """Multiplications per pixel: two heads of every token against whole pixels, or a projection and then the heads."""
    attention = two_way_transformer.Attention(32, 2, 2)
    folded, projected = (np.array([cost(t) for t in range(1, 30)]) for cost in (lambda t: 2 * t * 32, _projected))
    np.testing.assert_array_equal([attention._folds(t) for t in range(1, 30)], folded < projected)
    # Training's 17 tokens still fold at SAM's own width.
    assert two_way_transformer.Attention(256, 8, 2)._folds(17)
    assert not two_way_transformer.Attention(256, 8, 2)._folds(18)


def _projected(tokens):
    return 32 * 16 + tokens * 16


@pytest.mark.slow
def test_planes_are_the_masks(variables):
    """Fed with planes, and asked for some masks alone: the same masks, split."""
    embeddings, prompts = random_embeddings(0, 2, (3, 6)), mixed_prompts(2, 3, (3, 6))
    whole = jitted(TINY, "predict_masks")(variables, embeddings, prompts)
    fed, prompts = split_subpixels(prompts.mask_inputs), prompts.replace(mask_inputs=None)
    for masks in (slice(None), slice(1), slice(1, None)):
        run = jax.jit(partial(Sam(TINY).apply, masks=masks, method="predict_planes"))
        planes, ious = run(variables, embeddings, prompts, fed)
        assert_same(join_subpixels(planes, (3, 6)), whole.low_res_masks[:, :, masks], atol=1e-5)
        assert_same(ious, whole.iou_predictions[..., masks])


def test_a_whole_call_is_encode_then_decode(variables):
    images, prompts = random_images(0, 2, 80, 80), mixed_prompts()
    embeddings = jitted(TINY, "encode_image")(variables, images)
    whole = jitted(TINY, "__call__")(variables, images, prompts)
    parts = jitted(TINY, "predict_masks")(variables, embeddings, prompts)
    assert_same(whole, jax.tree.map(lambda x: x[:, :, 1:], parts), atol=1e-4)


def test_outputs_are_float32_whatever_the_compute_dtype(variables):
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(TINY, dtype=dtype)
        masks = jitted(config, "predict_masks")(variables, random_embeddings(0, 2), mixed_prompts())
        assert {leaf.dtype for leaf in jax.tree.leaves(masks)} == {jnp.dtype("float32")}
        assert {leaf.dtype for leaf in jax.tree.leaves(init_shapes(config))} == {jnp.dtype("float32")}


def init_shapes(config):
    return jax.eval_shape(lambda: init_variables(Sam(config), jax.random.key(0)))


def test_bfloat16_masks_are_those_of_float32(variables):
    """Masks of random weights are noise, with every other cell at an edge: about 1 % of cells lie within rounding."""
    images, prompts = random_images(0, 2, 80, 80), mixed_prompts()
    exact, rounded = (
        np.asarray(jitted(dataclasses.replace(TINY, dtype=dtype), "__call__")(variables, images, prompts).low_res_masks)
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rounded).mean() < 0.03 * exact.std()
    overlap, union = (f(exact > 0, rounded > 0).sum(axis=(-2, -1)) for f in (np.logical_and, np.logical_or))
    assert (overlap / union).mean() >= 0.985


@pytest.mark.long
def test_init_makes_every_leaf_and_only_those(variables):
    made = jax.jit(lambda key: init_variables(Sam(TINY), key))(jax.random.key(0))
    assert jax.tree.structure(made) == jax.tree.structure(variables)
    assert made.keys() == {"params", "constants"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made))


def test_equal_configs_and_shapes_share_one_program(variables):
    @jax.jit
    def decode(variables, embeddings, prompts):
        return Sam(TINY).apply(variables, embeddings, prompts, method="predict_masks")

    static = jax.jit(lambda model, v, e, p: model.apply(v, e, p, method="predict_masks"), static_argnums=0)
    for seed in range(2):
        embeddings, prompts = random_embeddings(seed), only_points(mixed_prompts(1, 1))
        decode(variables, embeddings, prompts)
        static(Sam(dataclasses.replace(TINY)), variables, embeddings, prompts)
    assert decode._cache_size() == 1
    assert static._cache_size() == 1


@pytest.mark.long
def test_gradients_are_finite_even_for_empty_prompts():
    variables, embeddings = random_variables(TINY), random_embeddings(0)
    prompts = mixed_prompts(1, 3)
    none = np.zeros((1, 3), bool)
    labels = prompts.point_labels.copy()
    labels[:, 0] = -1  # nothing at all is said about the first object
    prompts = prompts.replace(point_labels=labels, box_valid=none, mask_valid=none)

    @jax.jit
    @jax.grad
    def gradient(params):
        masks = Sam(TINY).apply(
            {"params": params, "constants": variables["constants"]}, embeddings, prompts, method="predict_masks"
        )
        return masks.low_res_masks.std() + masks.iou_predictions.sum()

    leaves = jax.tree.leaves(gradient(variables["params"])["mask_decoder"])
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert sum(np.abs(leaf).max() > 0 for leaf in leaves) > 0.9 * len(leaves)
