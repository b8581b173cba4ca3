"""AdamW as the paper sets it: warm-up, step (or cosine) decay, layer-wise learning rates, decay of matrices only."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.config import OptimConfig, SamConfig

# Tables, tokens, biases and norms are not decayed: shrinking a position or a bias regularises nothing.
_DECAYED = re.compile(r".*/kernel")


def learning_rate_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then milestones or a half cosine over the rest of `num_steps`."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, max(1, num_steps // 2))
    if config.cosine:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, warmup + 1))
    drops: dict[int, float] = {}
    for share in config.milestones:
        step = max(1, int(share * num_steps) - warmup)
        drops[step] = drops.get(step, 1.0) * config.milestone_factor
    after = optax.piecewise_constant_schedule(peak, drops)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def layer_scales(config: OptimConfig, sam: SamConfig, params: Any) -> Any:
    """The factor on each parameter's learning rate: `layer_decay` to the power of its distance from the neck."""
    depth = sam.image_encoder.depth

    def scale(path: str) -> float:
        if match := re.match(r"image_encoder/blocks_(\d+)/", path):
            return config.layer_decay ** (depth - int(match.group(1)))
        return config.layer_decay ** (depth + 1) if re.match(r"image_encoder/(pos|patch)_embed", path) else 1.0

    return unflatten_dict({path: scale(path) for path in flatten_dict(params, sep="/")}, sep="/")


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay applies to."""
    flat = {path: bool(_DECAYED.fullmatch(path)) for path in flatten_dict(params, sep="/")}
    return unflatten_dict(flat, sep="/")


def make_optimizer(config: OptimConfig, sam: SamConfig, num_steps: int) -> optax.GradientTransformation:
    """The whole chain, from raw gradients to updates."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        _scale_by_layer(config, sam),
        optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps)),
    )


def _scale_by_layer(config: OptimConfig, sam: SamConfig) -> optax.GradientTransformation:
    def update(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u, s: u * s, updates, layer_scales(config, sam, updates))

    return optax.stateless(update)
