"""Configs: sizes, what they refuse, and their way through JSON."""

import dataclasses
import json
import math

import jax
import pytest

from sam_jax import config as configs
from sam_jax.config import (
    ImageEncoderConfig,
    InteractionConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SamConfig,
    StageConfig,
    TrainConfig,
    sam_config_from_dict,
    to_dict,
)
from sam_jax.models.sam import Sam, init_variables
from tests.tiny import TINY, as_hq

SIZES = {"vit_tiny": None, "vit_b": 93.7, "vit_l": 312.3, "vit_h": 641.1}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    config = getattr(configs, name)()
    shapes = jax.eval_shape(lambda: init_variables(Sam(config), jax.random.key(0)))
    millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    if SIZES[name]:
        assert round(millions, 1) == SIZES[name]
    else:
        assert round(millions, 1) == 6.6  # as its docstring and its card say


def test_published_shapes():
    heads = {name: getattr(configs, name)().image_encoder for name in ("vit_b", "vit_l", "vit_h")}
    assert [c.embed_dim // c.num_heads for c in heads.values()] == [64, 64, 80]
    assert [c.global_attn_indexes for c in heads.values()] == [(2, 5, 8, 11), (5, 11, 17, 23), (7, 15, 23, 31)]
    assert {(c.image_size, c.patch_size, c.window_size, c.grid_size) for c in heads.values()} == {(1024, 16, 14, 64)}


@pytest.mark.parametrize(
    "config",
    [
        SamConfig(),
        configs.vit_h(),
        configs.mobile_sam(),
        as_hq(TINY),
        TINY,
        dataclasses.replace(TINY, dtype="bfloat16"),
    ],
)
def test_a_config_survives_json(config):
    assert sam_config_from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_absent_keys_have_their_defaults():
    assert sam_config_from_dict({"image_encoder": {"depth": 24}}).image_encoder == ImageEncoderConfig(depth=24)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_encoder": {"embed_dims": 3}}, r"image_encoder\.embed_dims; did you mean image_encoder\.embed_dim\?"),
        ({"mask_threshhold": 0}, r"mask_threshhold; did you mean mask_threshold\?"),
        ({"zzz": 0}, r"unknown config key zzz; known: image_encoder, prompt_encoder"),
        ({"dtype": "float16"}, "dtype 'float16' is not one of float32, bfloat16"),
    ],
)
def test_wrong_keys_and_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        sam_config_from_dict(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageEncoderConfig(image_size=1000), "image_size 1000 .* patch_size 16"),
        (lambda: ImageEncoderConfig(image_size=0), "image_size 0"),
        (lambda: ImageEncoderConfig(num_heads=7), "embed_dim 768 .* num_heads 7"),
        (lambda: ImageEncoderConfig(window_size=0), "window_size .* 0"),
        (lambda: ImageEncoderConfig(depth=4), r"global_attn_indexes \[5, 8, 11\] lie outside the 4"),
        (lambda: SamConfig(ImageEncoderConfig(patch_size=4), crf=True), "crf needs a patch_size .* of 8, not 4"),
        (lambda: PromptEncoderConfig(mask_in_chans=6), "mask_in_chans 6"),
        (lambda: SamConfig(prompt_embed_dim=100), "prompt_embed_dim 100 .* = 16"),
        (
            lambda: dataclasses.replace(TINY, mask_decoder=MaskDecoderConfig(num_heads=32)),
            "prompt_embed_dim 32 .* = 64",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_configs_are_hashable_and_equal_by_value():
    assert hash(configs.vit_h()) == hash(configs.vit_h())
    assert configs.vit_h() == configs.vit_h() != configs.vit_l()
    with pytest.raises(dataclasses.FrozenInstanceError):
        configs.vit_h().dtype = "bfloat16"
    hash(TrainConfig())


def test_steps_add_up():
    assert TrainConfig(stages=(StageConfig(num_steps=3), StageConfig(num_steps=4))).num_steps == 7
    assert InteractionConfig().num_steps == 11  # the paper's


def test_defaults_of_training_are_the_papers():
    config = TrainConfig()
    optim = config.optim
    assert (optim.learning_rate, optim.b1, optim.b2, optim.weight_decay) == (8e-4, 0.9, 0.999, 0.1)
    assert (optim.warmup_steps, config.num_steps, config.stages[0].batch_size) == (250, 90_000, 256)
    assert [round(share * 90_000) for share in optim.milestones] == [60_000, 86_666]
