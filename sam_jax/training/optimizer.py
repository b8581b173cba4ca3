"""AdamW as in SAM's paper, or Muon: warm-up, step (or cosine) decay, layer-wise rates, weight decay of kernels only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from sam_jax.config import OptimConfig, SamConfig
from sam_jax.sharding import MIN_SPLIT_ELEMENTS

_COEFFICIENTS = 3.4445, -4.775, 2.0315  # of Newton-Schulz, Muon's and optax's defaults


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


def learning_rate_by_clock(config: OptimConfig) -> Callable[[Any, Any], jax.Array]:
    """(step, share of the time that is used) -> the learning rate: warm-up by steps, decay by the clock."""

    def rate(step: Any, share: Any) -> jax.Array:
        warm = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        if config.cosine:
            decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))
        else:
            passed = (jnp.asarray(share) >= jnp.asarray((*config.milestones, jnp.inf))).sum()
            decay = jnp.float32(config.milestone_factor) ** passed
        return config.learning_rate * warm * decay

    return rate


def layer_scales(config: OptimConfig, sam: SamConfig, params: Any) -> Any:
    """The factor on each parameter's learning rate: `layer_decay` to the power of its depth below the neck."""
    depth = sam.vit.depth

    def scale(path: str, _: Any) -> float:
        if match := re.match(r"image_encoder/blocks_(\d+)/", path):
            return config.layer_decay ** (depth - int(match.group(1)))
        return config.layer_decay ** (depth + 1) if re.match(r"image_encoder/(pos|patch)_embed", path) else 1.0

    return _by_path(scale, params)


def decay_mask(params: Any) -> Any:
    """True for the parameters with weight decay, which are the kernels.

    Position tables, tokens, biases and norms have none: shrinking them does not regularise.
    """
    return _by_path(lambda path, _: path.endswith("/kernel"), params)


def _by_path(value: Callable[[str, Any], Any], params: Any) -> Any:
    """The tree with value(path, parameter) in place of each parameter; a path is "image_encoder/pos_embed"."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: value(path, parameter) for path, parameter in flat.items()}, sep="/")


def make_optimizer(config: OptimConfig, sam: SamConfig, num_steps: int | None) -> optax.GradientTransformation:
    """The whole chain, from raw gradients to updates.

    With `num_steps` None the rate follows the clock: `update` takes the share of the time that is used as `share`.
    """
    schedule = None if num_steps is None else learning_rate_schedule(config, num_steps)
    return optax.chain(
        _clip(config.clip_norm) if config.clip_norm else optax.identity(),
        _directions(config),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        _scale_by_layer(config, sam),
        _by_clock(config) if schedule is None else optax.scale_by_learning_rate(schedule),
    )


class ClockState(NamedTuple):
    """Steps that were taken, () int32, and the share of the time that was used before the last, () float32."""

    step: jax.Array
    share: jax.Array


def _by_clock(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    rate = learning_rate_by_clock(config)

    def init(params: Any) -> ClockState:
        return ClockState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: ClockState, params: Any = None, *, share: jax.Array, **_: Any) -> Any:
        factor = -rate(state.step, share)
        return jax.tree.map(lambda x: factor * x, updates), ClockState(state.step + 1, share)

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(gradients: Any) -> jax.Array:
    """The norm of all gradients as one vector.

    Small ones, which no mesh splits, are concatenated first: XLA turns every sum into three loops, which were a fifth
    of a step's compiled program on CPUs.
    """
    leaves = jax.tree.leaves(gradients)
    small = [x.ravel() for x in leaves if x.size < MIN_SPLIT_ELEMENTS]
    large = [x for x in leaves if x.size >= MIN_SPLIT_ELEMENTS]
    return optax.tree.norm([jnp.concatenate(small), *large] if small else large)


def _clip(limit: float) -> optax.GradientTransformation:
    """Scales gradients down to a global norm of at most `limit`.

    It multiplies where optax divides: XLA fuses a product into its uses, but gives a quotient a loop of its own.
    """

    def update(updates: Any, params: Any = None) -> Any:
        norm = global_norm(updates)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates)

    return optax.stateless(update)


def muon_matrices(params: Any) -> Any:
    """True for the kernels that Muon updates, as matrices: the last axis is the outputs, all others the inputs.

    Adam updates kernels with fewer than 32 inputs or outputs, and transposed convolutions, which are not one matrix.
    """

    def is_matrix(path: str, x: Any) -> bool:
        return path.endswith("/kernel") and "upscaling" not in path and min(math.prod(x.shape[:-1]), x.shape[-1]) >= 32

    return _by_path(is_matrix, params)


def _directions(config: OptimConfig) -> optax.GradientTransformation:
    """Update directions, about as long as Adam's; weight decay and learning rates come later in the chain."""
    adam = optax.scale_by_adam(config.b1, config.b2)
    if config.optimizer == "adamw":
        return adam
    parts = {"muon": optax.chain(_momentum(), optax.stateless(_orthogonal)), "adam": adam}
    return optax.partition(parts, lambda params: jax.tree.map(lambda x: "muon" if x else "adam", muon_matrices(params)))


def _momentum() -> optax.GradientTransformation:
    """Nesterov momentum with the state and the averages of optax's `scale_by_muon`."""
    decay = 0.95

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = state.count + 1
        mean = optax.tree.update_moment(updates, state.mu, decay, 1)
        old, new = optax.tree.bias_correction(mean, decay, count + 1), optax.tree.bias_correction(updates, decay, count)
        ahead = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, old, new)
        return ahead, state._replace(count=count, mu=mean)

    return optax.GradientTransformation(scale_by_muon().init, update)


def _orthogonal(updates: Any, params: Any = None) -> Any:
    """The nearest orthogonal matrices, scaled to a root mean square of 0.2 for any shape (Liu et al. 2025).

    Matrices of one shape share a Newton-Schulz iteration: one by one, they make a step's program half as long again.
    """
    leaves, structure = jax.tree.flatten(updates)
    of_shape: dict[tuple[int, int], list[int]] = {}
    for i, x in enumerate(leaves):
        of_shape.setdefault((math.prod(x.shape[:-1]), x.shape[-1]), []).append(i)
    stacks = {shape: jnp.stack([leaves[i].reshape(shape) for i in of_shape[shape]]) for shape in of_shape}
    # Muon without momentum is Newton-Schulz alone; given coefficients for each iteration, optax makes it a loop.
    newton_schulz = scale_by_muon(
        (_COEFFICIENTS,) * 5,
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=dict.fromkeys(stacks, MuonDimensionNumbers(1, 2)),
    )
    found, _ = newton_schulz.update(stacks, newton_schulz.init(stacks))
    for shape, members in of_shape.items():
        for i, x in zip(members, 0.2 * max(shape) ** 0.5 * found[shape], strict=True):
            leaves[i] = x.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


def _scale_by_layer(config: OptimConfig, sam: SamConfig) -> optax.GradientTransformation:
    def update(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u, s: u * s, updates, layer_scales(config, sam, updates))

    return optax.stateless(update)
