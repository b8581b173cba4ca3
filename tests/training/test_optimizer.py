"""AdamW's parts and Muon's: what decays, how fast each layer learns, and the schedule."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from sam_jax.config import OptimConfig, vit_tiny
from sam_jax.models.sam import Sam, init_variables
from sam_jax.training.optimizer import (
    _directions,
    decay_mask,
    layer_scales,
    learning_rate_schedule,
    make_optimizer,
    muon_matrices,
)
from tests.tiny import TINY

CONSTANT = OptimConfig(learning_rate=1.0, warmup_steps=0, milestones=(), weight_decay=0.0, layer_decay=1.0)


def test_matrices_decay_and_nothing_else(variables):
    flat = flatten_dict(decay_mask(variables["params"]), sep="/")
    decayed = {path for path, value in flat.items() if value}
    assert decayed == {path for path in flat if path.endswith("/kernel")}
    assert {
        "image_encoder/patch_embed/proj/kernel",
        "image_encoder/blocks_0/attn/qkv/kernel",
        "mask_decoder/output_upscaling_0/kernel",
    } <= decayed
    for path in ("pos_embed", "blocks_0/attn/rel_pos_h", "blocks_0/norm1/scale", "blocks_0/attn/qkv/bias"):
        assert flat[f"image_encoder/{path}"] is False
    assert flat["mask_decoder/mask_tokens"] is False


def test_layers_learn_the_slower_the_deeper_they_lie(variables):
    scales = flatten_dict(layer_scales(OptimConfig(layer_decay=0.5), TINY, variables["params"]), sep="/")
    expected = {"pos_embed": 1 / 16, "patch_embed": 1 / 16, "blocks_0": 1 / 8, "blocks_1": 1 / 4, "blocks_2": 1 / 2}
    for path, scale in scales.items():
        parts = path.split("/")
        assert scale == (expected.get(parts[1], 1.0) if parts[0] == "image_encoder" else 1.0), path


def test_the_papers_schedule():
    rate = learning_rate_schedule(OptimConfig(), 90_000)
    points = {0: 0, 125: 4e-4, 250: 8e-4, 59_999: 8e-4, 60_000: 8e-5, 86_665: 8e-5, 86_667: 8e-6, 90_000: 8e-6}
    for step, expected in points.items():
        np.testing.assert_allclose(rate(step), expected, rtol=1e-4, atol=1e-12, err_msg=str(step))


def test_cosine_ends_at_zero():
    rate = learning_rate_schedule(OptimConfig(cosine=True, learning_rate=1.0, warmup_steps=10), 110)
    np.testing.assert_allclose([rate(step) for step in (0, 5, 10, 60, 110)], [0, 0.5, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("cosine", [False, True])
def test_short_runs_warm_up_for_at_most_half(cosine):
    rate = learning_rate_schedule(OptimConfig(cosine=cosine, learning_rate=1.0, milestones=()), 4)
    np.testing.assert_allclose([rate(step) for step in range(3)], [0, 0.5, 1], atol=1e-6)
    assert np.isfinite(learning_rate_schedule(OptimConfig(cosine=cosine), 1)(0))


def _updates(config, params, grads, steps=1):
    optimizer = make_optimizer(config, TINY, 10)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
    return flatten_dict(updates, sep="/")


@pytest.fixture(scope="module")
def params():
    leaf = np.full((2, 2), 2.0, np.float32)
    return {
        "image_encoder": {"pos_embed": leaf, "blocks_2": {"lin": {"kernel": leaf, "bias": leaf}}},
        "mask_decoder": {"lin": {"kernel": leaf, "bias": leaf}},
    }


def test_an_update_is_adam_times_layer_scale_plus_decay(params):
    """After one step Adam's direction is the sign of the gradient."""
    config = dataclasses.replace(CONSTANT, learning_rate=0.1, layer_decay=0.5, weight_decay=0.25)
    updates = _updates(config, params, jax.tree.map(lambda x: 0 * x + 3, params), steps=2)  # step 0 warms up at 0
    expected = {
        "image_encoder/pos_embed": -0.1 / 16,
        "image_encoder/blocks_2/lin/bias": -0.1 / 2,
        "image_encoder/blocks_2/lin/kernel": -0.1 / 2 * (1 + 0.25 * 2),
        "mask_decoder/lin/bias": -0.1,
        "mask_decoder/lin/kernel": -0.1 * (1 + 0.25 * 2),
    }
    for path, value in expected.items():
        np.testing.assert_allclose(updates[path], value, rtol=1e-4, err_msg=path)


def test_clipping_is_by_the_global_norm(params):
    grads = jax.tree.map(lambda x: 0 * x + 30.0, params)
    clipped = make_optimizer(dataclasses.replace(CONSTANT, clip_norm=1.0), TINY, 10)
    _, state = clipped.update(grads, clipped.init(params), params)
    moments = next(
        part.mu for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moments)))
    np.testing.assert_allclose(norm, 0.1, rtol=1e-4)  # (1 - b1) times a norm of 1


def test_muon_takes_the_kernels_that_are_one_matrix():
    shapes = jax.eval_shape(partial(init_variables, Sam(vit_tiny())), jax.random.key(0))["params"]
    flat = {path for path, muons in flatten_dict(muon_matrices(shapes), sep="/").items() if muons}
    encoder, decoder = "image_encoder/blocks_0/", "mask_decoder/transformer/"
    assert {"image_encoder/patch_embed/proj/kernel", "image_encoder/neck_2/kernel"} <= flat
    assert {f"{encoder}attn/qkv/kernel", f"{encoder}mlp/lin2/kernel", f"{decoder}layers_0/mlp/lin1/kernel"} <= flat
    left = "bias|norm|scale|rel_pos|iou_token|mask_tokens|upscaling|downscaling_0|embeddings|no_mask|head/layers_2"
    assert not [path for path in flat for word in left.split("|") if word in path]


@pytest.mark.long
def test_muon_is_optaxs_whatever_goes_through_newton_schulz_together():
    rng = np.random.default_rng(0)
    shapes = {"a": (48, 32), "b": (48, 32), "c": (3, 3, 8, 64), "d": (72, 64), "e": (32, 48)}
    params = {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params) for _ in range(3)]
    axes = jax.tree.map(lambda x: MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1), params)
    ours, theirs = _directions(OptimConfig(optimizer="muon")), scale_by_muon(weight_dimension_numbers=axes)
    our_state, their_state = ours.init(params), theirs.init(params)
    for step in grads:
        updates, our_state = ours.update(step, our_state, params)
        directions, their_state = theirs.update(step, their_state, params)
        for name, shape in shapes.items():
            length = 0.2 * max(np.prod(shape[:-1]), shape[-1]) ** 0.5
            expected = length * directions[name]["kernel"]
            np.testing.assert_allclose(updates[name]["kernel"], expected, atol=2e-6)


def test_muons_updates_are_orthogonal_and_as_long_as_adams():
    rng = np.random.default_rng(0)
    params = {"mask_decoder": {"lin": {"kernel": rng.normal(size=(96, 48)), "bias": rng.normal(size=48)}}}
    params = jax.tree.map(np.float32, params)
    grads = {"mask_decoder": {"lin": {"kernel": rng.normal(size=(96, 48)) ** 3, "bias": np.full(48, 5.0)}}}
    config = dataclasses.replace(CONSTANT, learning_rate=0.1, optimizer="muon")
    updates = _updates(config, params, jax.tree.map(np.float32, grads), steps=2)
    kernel = np.asarray(updates["mask_decoder/lin/kernel"])
    lengths = np.linalg.svd(kernel, compute_uv=False) / (0.1 * 0.2 * np.sqrt(96))
    assert 0.6 < lengths.min() <= lengths.max() < 1.3  # five Newton-Schulz iterations come that close to 1
    assert np.sqrt((kernel**2).mean()) == pytest.approx(0.1 * 0.2, rel=0.2)
    assert (kernel * grads["mask_decoder"]["lin"]["kernel"]).sum() < 0
    np.testing.assert_allclose(updates["mask_decoder/lin/bias"], -0.1, rtol=1e-4)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer 'sgd' is not one of adamw, muon"):
        OptimConfig(optimizer="sgd")
