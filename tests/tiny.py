"""Tiny models for tests: odd enough to see swapped axes, window padding and both branches of the decoder."""

import dataclasses
import functools

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.config import (
    HqMaskDecoderConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SamConfig,
)
from sam_jax.models.sam import Sam, init_variables

# The grid of 5 is no multiple of the window of 3. Attention of the decoder folds below 8 tokens.
TINY = SamConfig(
    image_encoder=ImageEncoderConfig(
        image_size=80, embed_dim=32, depth=3, num_heads=2, window_size=3, global_attn_indexes=(1,)
    ),
    prompt_encoder=PromptEncoderConfig(mask_in_chans=8),
    mask_decoder=MaskDecoderConfig(num_heads=2, mlp_dim=64, iou_head_hidden_dim=24),
    prompt_embed_dim=32,
)
# One layer of everything: for whole training steps, which take long to compile.
SMALLEST = dataclasses.replace(
    TINY,
    image_encoder=dataclasses.replace(TINY.image_encoder, depth=1, global_attn_indexes=()),
    mask_decoder=dataclasses.replace(TINY.mask_decoder, depth=1),
)


def official_part(config):
    """The same without what the official code has no layers for."""
    decoder = dataclasses.replace(config.mask_decoder, iou_times_stability=False)
    return dataclasses.replace(config, details=0, mask_decoder=decoder)


def as_hq(config, **changes):
    """The same with HQ-SAM's mask decoder."""
    decoder = HqMaskDecoderConfig(**dataclasses.asdict(config.mask_decoder) | changes)
    return dataclasses.replace(config, mask_decoder=decoder)


def random_variables(config, seed=0):
    """Variables with every leaf random, such that activations stay of order one."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_variables(Sam(config), jax.random.key(0)))
    leaves = {}
    for path, leaf in flatten_dict(shapes).items():
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1] == "kernel":
            leaves[path] = noise / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
        elif path[-1] in ("scale", "bias", "rel_pos_h", "rel_pos_w", "pos_embed"):
            leaves[path] = np.float32(0.1) * noise + np.float32(path[-1] == "scale")
        elif path[-1] == "running_var":
            leaves[path] = np.float32(0.5) + np.abs(noise)
        else:
            leaves[path] = noise
    return unflatten_dict(leaves)


@functools.cache
def jitted(config, method, **options):
    """`Sam.apply` of one method, compiled once per session: jitted(config, "encode_image")(variables, images)."""
    return jax.jit(functools.partial(Sam(config).apply, method=method, **options))


def random_images(seed, *shape):
    """Something like normalised images (*shape, 3)."""
    return np.random.default_rng(seed).standard_normal((*shape, 3)).astype(np.float32)


def random_embeddings(seed, batch=1, grid=(5, 5), config=TINY):
    """Something like image embeddings (B, h, w, C)."""
    shape = (batch, *grid, config.prompt_embed_dim)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
