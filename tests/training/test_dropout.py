"""The decoder's dropout: where the paper has it, drawn anew at each interaction and step, and nowhere else."""

import dataclasses
import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.config import InteractionConfig, TrainConfig
from sam_jax.models.sam import Sam
from sam_jax.models.two_way_transformer import TwoWayAttentionBlock
from sam_jax.ops.planes import split_subpixels
from sam_jax.ops.random_bits import Dropping
from sam_jax.structs import Prompts
from sam_jax.training.step import forward_with_loss, interact
from tests.tiny import SMALLEST, TINY, random_embeddings, random_variables

KEY = jax.random.key(0)
INTERACTION = InteractionConfig(num_points=0, num_mask_only_steps=2)


def with_rate(config, rate, **changes):
    decoder = dataclasses.replace(config.mask_decoder, dropout_rate=rate, **changes)
    return dataclasses.replace(config, mask_decoder=decoder)


def program(config, deterministic):
    """The decoder's program for two prompts of one point."""
    prompts = Prompts(jnp.zeros((1, 2, 1, 2)), jnp.ones((1, 2, 1), jnp.int32))

    def run(variables, embeddings, key):
        options = {"method": "predict_planes", "rngs": {"dropout": key}, "deterministic": deterministic}
        return Sam(config).apply(variables, embeddings, prompts, **options)

    return jax.make_jaxpr(run)(random_variables(TINY), random_embeddings(0), KEY)


def test_without_a_rate_or_at_evaluation_the_program_is_the_same():
    plain = str(program(TINY, True))
    assert str(program(TINY, False)) == str(program(with_rate(TINY, 0.5), True)) == plain
    assert str(program(with_rate(TINY, 0.5), False)) != plain


@pytest.mark.parametrize("depth", [1, 2])
def test_each_attention_and_mlp_has_one(depth, monkeypatch):
    """Self-attention, tokens to image, MLP and image to tokens of each layer, then the last attention to the image."""
    config = with_rate(TINY, 0.1)
    config = dataclasses.replace(config, mask_decoder=dataclasses.replace(config.mask_decoder, depth=depth))
    prompts = Prompts(jnp.zeros((1, 2, 1, 2)), jnp.ones((1, 2, 1), jnp.int32))
    variables, drawn = random_variables(config), []

    def watch(dropping, x):
        drawn.append(x.shape)
        return drop(dropping, x)

    drop = Dropping.__call__
    monkeypatch.setattr(Dropping, "__call__", watch)
    options = {"method": "predict_planes", "rngs": {"dropout": KEY}, "deterministic": False}
    jax.eval_shape(lambda: Sam(config).apply(variables, random_embeddings(0), prompts, **options))
    tokens, pixels = (1, 2, 7, 32), (1, 2, 32, 25)
    assert drawn == depth * [tokens, tokens, tokens, pixels] + [tokens]


@pytest.mark.slow
@pytest.mark.parametrize("points", [1, 12])
def test_what_is_dropped_is_added_to_the_residual_and_normalised(points):
    """With everything dropped, only the norms of what came in are left: of few tokens and of many."""
    config, dim = dataclasses.replace(TINY.mask_decoder, dropout_rate=1 - 1e-7), TINY.prompt_embed_dim
    rng = np.random.default_rng(0)
    tokens, pe = rng.standard_normal((2, 1, 2, points, dim)).astype(np.float32)
    pixels = rng.standard_normal((1, 2, dim, 25)).astype(np.float32)
    inputs = tokens, pixels, pe, rng.standard_normal((1, 1, dim, 25)).astype(np.float32), np.ones((1, 2, points), bool)
    block = TwoWayAttentionBlock(config, dim, False, jnp.float32, deterministic=False)
    variables = block.init({"params": KEY, "dropout": KEY}, *inputs)
    found_tokens, found_pixels = block.apply(variables, *inputs, rngs={"dropout": KEY})

    def normalised(x, axis):
        return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)

    expected = normalised(normalised(normalised(tokens, -1), -1), -1)
    np.testing.assert_allclose(found_tokens, expected, atol=1e-4)
    np.testing.assert_allclose(found_pixels, normalised(pixels, -2), atol=1e-4)


@pytest.mark.slow
def test_each_interaction_and_each_key_draws_anew():
    """The decoder here predicts an IoU that is its first random number."""
    config, shape = TrainConfig(sam=SMALLEST, interaction=INTERACTION), (1, 2, 8, 8)
    targets = jnp.asarray(np.random.default_rng(0).random(shape) < 0.5)

    def decode(learned, prompts, fed, num_masks, dropout):
        masks = num_masks or 4
        ious = jnp.broadcast_to(learned * jax.random.uniform(dropout), (1, 2, masks))
        return split_subpixels(jnp.ones((1, 2, masks, 8, 8))), ious

    def errors(dropout):
        def loss(learned):
            total, scores = interact(config, decode, learned, targets, jnp.ones((1, 2)), KEY, dropout=dropout)
            return total, scores.iou_error[:, 0, 0]

        return jax.value_and_grad(loss, has_aux=True)(1.0)

    (_, one), slope = errors(jax.random.key(1))
    (_, other), _ = errors(jax.random.key(2))
    assert len(set(np.asarray(jnp.concatenate([one, other])).tolist())) == 2 * INTERACTION.num_steps
    np.testing.assert_array_equal(errors(jax.random.key(1))[0][1], one)
    assert np.isfinite(slope)


@pytest.mark.long
def test_training_drops_and_evaluation_does_not():
    variables, plain = random_variables(SMALLEST), TrainConfig(sam=SMALLEST, interaction=INTERACTION)
    dropping = dataclasses.replace(plain, sam=with_rate(SMALLEST, 0.3))
    side = SMALLEST.image_encoder.grid_size
    masks = np.random.default_rng(0).random((1, 2, 4 * side, 4 * side)) < 0.5
    batch = {"image_embeddings": random_embeddings(0), "masks": masks, "mask_valid": np.ones((1, 2), bool)}

    def losses(config, deterministic):
        step = functools.partial(forward_with_loss, Sam(config.sam), config, deterministic=deterministic)
        return float(jax.jit(step)(variables["params"], variables["constants"], batch, KEY)[0])

    without = losses(plain, False)
    assert losses(dropping, True) == without
    assert losses(dropping, False) != without


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_the_published_recipes_train_with_it(size):
    recipe = runpy.run_path(str(Path(__file__).parents[2] / f"configs/sa1b_vit_{size}.py"))["get_config"]()
    assert recipe.sam.mask_decoder.dropout_rate == 0.1


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ValueError, match=f"dropout_rate must be a share from 0 to below 1, not {rate}"):
        with_rate(TINY, rate)
