"""Which parameters learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sam_jax.config import FinetuneConfig, InteractionConfig, OptimConfig, TrainConfig
from sam_jax.models.sam import Sam
from sam_jax.training.finetune import assemble, encoder_is_frozen, split_params
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import create_state, model_variables, train_step
from tests.tiny import SMALLEST, random_variables

KEY = jax.random.key(0)
QKV = "image_encoder/blocks_0/attn/qkv/kernel"


@pytest.fixture(scope="module")
def params():
    return random_variables(SMALLEST)["params"]


@pytest.mark.parametrize(
    "config",
    [FinetuneConfig(), FinetuneConfig(frozen=("image_encoder/.*",)), FinetuneConfig(lora_rank=3)],
    ids=["everything", "frozen", "lora"],
)
def test_splitting_and_assembling_gives_the_same_model(params, config):
    learning, frozen = split_params(config, params, KEY)
    whole = flatten_dict(assemble(config, learning, frozen), sep="/")
    expected = flatten_dict(params, sep="/")
    assert whole.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(whole[path], value)


def test_low_rank_factors_change_qkv_alone(params):
    config = FinetuneConfig(lora_rank=3, lora_alpha=6.0)
    learning, frozen = split_params(config, params, KEY)
    flat = flatten_dict(learning, sep="/")
    assert {path for path in flat if "image_encoder" in path} == {f"lora/{QKV}/down", f"lora/{QKV}/up"}
    learning["lora"]["image_encoder"]["blocks_0"]["attn"]["qkv"]["kernel"]["up"] += 1.0
    whole = flatten_dict(assemble(config, learning, frozen), sep="/")
    expected = params["image_encoder"]["blocks_0"]["attn"]["qkv"]["kernel"] + 2.0 * flat[f"lora/{QKV}/down"] @ np.ones(
        (3, 96), np.float32
    )
    np.testing.assert_allclose(whole[QKV], expected, rtol=1e-5, atol=1e-6)


def test_patterns_that_match_nothing_or_everything_are_errors(params):
    with pytest.raises(ValueError, match="'encoder' matches no parameter"):
        split_params(FinetuneConfig(frozen=("encoder",)), params, KEY)
    with pytest.raises(ValueError, match="leaves no parameter"):
        split_params(FinetuneConfig(frozen=(".*",)), params, KEY)


def test_what_is_frozen_stays_frozen_beside_low_rank_factors(params):
    learning, frozen = split_params(FinetuneConfig(lora_rank=3, frozen=("mask_decoder/.*",)), params, KEY)
    assert {path.split("/")[0] for path in flatten_dict(learning, sep="/")} == {"lora", "prompt_encoder"}
    assert "mask_decoder" in frozen
    with pytest.raises(ValueError, match=r"lora_rank has no kernel to change: .* set lora_rank 0"):
        split_params(FinetuneConfig(lora_rank=3, frozen=("image_encoder/.*",)), params, KEY)


def test_encoder_is_frozen():
    assert encoder_is_frozen(FinetuneConfig(frozen=("image_encoder/.*", "prompt_encoder/.*")))
    assert not encoder_is_frozen(FinetuneConfig(frozen=("prompt_encoder/.*",)))
    assert not encoder_is_frozen(FinetuneConfig(frozen=("image_encoder/.*",), lora_rank=2))


def finetuning(finetune, num_points):
    return TrainConfig(
        sam=SMALLEST,
        interaction=InteractionConfig(num_points=num_points, num_mask_only_steps=0),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=1, milestones=()),
        finetune=finetune,
    )


@pytest.fixture
def batch():
    """One image of noise with two masks of noise."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 255, (1, 80, 80, 3), np.uint8),
        "input_size": np.full((1, 2), 80, np.int32),
        "masks": rng.random((1, 2, 20, 20)) < 0.5,
        "mask_valid": np.ones((1, 2), bool),
    }


@pytest.mark.long
def test_only_what_may_learn_changes(batch):
    finetune = FinetuneConfig(frozen=("prompt_encoder/.*",), lora_rank=2)
    config = finetuning(finetune, num_points=0)
    variables = jax.tree.map(jnp.asarray, random_variables(SMALLEST))
    optimizer = make_optimizer(config.optim, SMALLEST, 10)
    state = create_state(variables, optimizer, finetune, KEY)
    step = jax.jit(functools.partial(train_step, Sam(SMALLEST), config, optimizer))
    for _ in range(3):
        state, _ = step(state, batch, KEY)
    before = flatten_dict(variables["params"], sep="/")
    after = flatten_dict(model_variables(config, state)["params"], sep="/")
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert QKV in changed
    assert {path.split("/")[0] for path in changed - {QKV}} == {"mask_decoder"}


@pytest.mark.slow
def test_training_on_kept_embeddings_equals_training_on_images(batch):
    from sam_jax.ops.transforms import normalize_batch

    finetune = FinetuneConfig(frozen=("image_encoder/.*",))
    config = finetuning(finetune, num_points=1)
    variables = jax.tree.map(jnp.asarray, random_variables(SMALLEST))
    model, optimizer = Sam(SMALLEST), make_optimizer(config.optim, SMALLEST, 10)
    images = normalize_batch(batch["image"], batch["input_size"], SMALLEST.pixel_mean, SMALLEST.pixel_std)
    embeddings = model.apply(variables, images, method="encode_image")
    kept = {name: x for name, x in batch.items() if name != "image"} | {"image_embeddings": embeddings}
    step = jax.jit(functools.partial(train_step, model, dataclasses.replace(config), optimizer))
    losses = []
    for which in (batch, kept):
        state = create_state(variables, optimizer, finetune, KEY)
        for _ in range(2):
            state, metrics = step(state, which, KEY)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(*losses, rtol=1e-5)
