"""The training step: pure functions of state, batch and key.

The image encoder runs once; the mask decoder runs once per interaction, each time fed with its own best mask.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sam_jax.config import TrainConfig
from sam_jax.models.sam import Sam
from sam_jax.ops.transforms import normalize_batch
from sam_jax.structs import MaskPredictions, Prompts
from sam_jax.training.losses import affinity_loss, mask_losses, prompt_loss
from sam_jax.training.prompts import add_error_points, first_prompts

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """Everything that changes while training. `step` counts finished steps."""

    step: jax.Array
    params: Any
    constants: Any
    opt_state: Any


def create_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        jnp.zeros((), jnp.int32), variables["params"], variables["constants"], optimizer.init(variables["params"])
    )


def train_step(
    model: Sam,
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One optimizer step. `key` is the run's key; the step number is folded in."""
    key = jax.random.fold_in(key, state.step)
    grad_fn = jax.value_and_grad(forward_with_loss, argnums=2, has_aux=True)
    (_, metrics), grads = grad_fn(model, config, state.params, state.constants, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(state.step + 1, params, state.constants, opt_state), metrics


def forward_with_loss(
    model: Sam, config: TrainConfig, params: Any, constants: Any, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Loss of a batch, averaged over interactions and valid masks.

    Args:
      batch: `image` (B, S, S, 3) uint8, `input_size` (B, 2) int32 (h, w), `masks` (B, N, S/4, S/4) bool,
        `mask_valid` (B, N) bool.
    """
    variables = {"params": params, "constants": constants}
    drop_key, prompt_key, affinity_key = jax.random.split(key, 3)
    images = normalize_batch(batch["image"], batch["input_size"], model.config.pixel_mean, model.config.pixel_std)
    embeddings = model.apply(variables, images, False, method="encode_image", rngs={"drop_path": drop_key})

    def decode(prompts: Prompts) -> MaskPredictions:
        predictions: Any = model.apply(variables, embeddings, prompts, method="predict_masks")
        return predictions

    losses, ious = interact(config, decode, batch["masks"], prompt_key)
    weight = batch["mask_valid"] / jnp.maximum(batch["mask_valid"].sum(), 1)
    per_step = (losses * weight).sum(axis=(1, 2))
    iou_per_step = (ious * weight).sum(axis=(1, 2))
    loss = per_step.mean()
    metrics = {"loss": loss, "iou_first": iou_per_step[0], "iou_last": iou_per_step[-1]}
    if config.loss.affinity_weight:
        metrics["affinity"] = affinity_loss(embeddings, batch["masks"], batch["mask_valid"], affinity_key)
        loss = loss + config.loss.affinity_weight * metrics["affinity"]
    return loss, metrics


def interact(config: TrainConfig, decode: Any, targets: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All interactions of one step: loss and IoU of the chosen mask per interaction, both (steps, B, N)."""
    sim = config.interaction
    first_key, place_key, loop_key = jax.random.split(key, 3)
    prompts = first_prompts(sim, first_key, targets)
    assert prompts.box_valid is not None
    multimask = ~prompts.box_valid | sim.box_multimask
    feedback, *first = _decode_and_score(config, decode, prompts, targets, multimask)
    if sim.num_steps == 1:
        return first[0][None], first[1][None]

    def body(carry: tuple[Prompts, jax.Array], inputs: tuple[jax.Array, jax.Array]) -> Any:
        prompts, logits = carry
        slot, key = inputs
        prompts = add_error_points(prompts, jnp.maximum(slot, 0), key, logits > 0, targets, keep=slot < 0)
        prompts = prompts.replace(mask_inputs=logits)  # type: ignore[attr-defined]
        logits, loss, iou = _decode_and_score(config, decode, prompts, targets, jnp.zeros_like(multimask))
        return (prompts.replace(mask_inputs=None), logits), (loss, iou)

    steps = sim.num_steps - 1
    inputs = (point_slots(config, place_key), jax.random.split(loop_key, steps))
    body = jax.checkpoint(body) if config.remat_interactions else body
    _, later = jax.lax.scan(body, (prompts, feedback), inputs)
    losses, ious = (jnp.concatenate([a[None], b]) for a, b in zip(first, later, strict=True))
    return losses, ious


def point_slots(config: TrainConfig, key: jax.Array) -> jax.Array:
    """For each interaction after the first, the slot of its new point, or -1 for a mask-only one. (steps,) int32."""
    sim = config.interaction
    inner = sim.num_points + max(0, sim.num_mask_only_steps - 1)
    # The last interaction is mask-only; the others of that kind take random places before it.
    is_point = jax.random.permutation(key, jnp.arange(inner) < sim.num_points)
    if sim.num_mask_only_steps:
        is_point = jnp.append(is_point, False)
    return jnp.where(is_point, jnp.cumsum(is_point), -1)


def _decode_and_score(
    config: TrainConfig, decode: Any, prompts: Prompts, targets: jax.Array, multimask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits to feed back (B, N, h, w), loss (B, N) and IoU (B, N) of the mask with the highest predicted IoU."""
    predictions = decode(prompts)
    losses = mask_losses(config.loss, predictions.low_res_masks, predictions.iou_predictions, targets)
    loss = prompt_loss(config.loss, losses, multimask)
    best = jnp.where(multimask, 1 + predictions.iou_predictions[..., 1:].argmax(axis=-1), 0)[..., None]
    logits = jnp.take_along_axis(predictions.low_res_masks, best[..., None, None], axis=2)[:, :, 0]
    return jax.lax.stop_gradient(logits), loss, jnp.take_along_axis(losses.true_iou, best, axis=2)[..., 0]
