"""The training step: pure functions of state, batch and key.

The image encoder runs once; the mask decoder runs once per interaction, with its best mask so far as a prompt.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sam_jax.config import FinetuneConfig, TrainConfig
from sam_jax.models.details import pixel_embeddings, split_details
from sam_jax.models.sam import Sam
from sam_jax.ops.planes import SIDE, join_subpixels, split_subpixels
from sam_jax.ops.products import exact_products
from sam_jax.ops.transforms import normalize_batch
from sam_jax.structs import Prompts
from sam_jax.training.augment import augment
from sam_jax.training.finetune import assemble, split_params
from sam_jax.training.losses import MaskLosses, affinity_loss, enlarge, mask_losses, prompt_loss
from sam_jax.training.optimizer import global_norm
from sam_jax.training.prompts import add_error_points, first_prompts, is_ambiguous, reduce_masks

_AUGMENT = 1 << 20  # folded into a step's key; small numbers are those that `split` folds in

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """What a checkpoint holds. `step` counts finished steps; `frozen` holds the parameters that are not trained."""

    step: jax.Array
    params: Any
    frozen: Any
    constants: Any
    opt_state: Any


class Scores(NamedTuple):
    """Per interaction and prompt, (steps, B, N): the loss, and IoU and loss parts of the mask that is fed back."""

    loss: jax.Array
    iou: jax.Array
    focal: jax.Array
    dice: jax.Array
    iou_error: jax.Array


def create_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    finetune: FinetuneConfig = FinetuneConfig(),  # noqa: B008 (frozen)
    key: jax.Array | None = None,
) -> TrainState:
    """The state before the first step. `key` draws low-rank factors, nothing else."""
    key = jax.random.key(0) if key is None else key
    params, frozen = split_params(finetune, variables["params"], key)
    return TrainState(jnp.zeros((), jnp.int32), params, frozen, variables["constants"], optimizer.init(params))


def model_variables(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """The variables that the model takes and that a model directory holds."""
    return {"params": assemble(config.finetune, state.params, state.frozen), "constants": state.constants}


def train_step(
    model: Sam,
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    share: jax.Array | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on a batch as of `forward_with_loss`. `key` is the run's key; the step number is folded in.

    `share` () float32 is for an optimizer by the clock: the share of the time that is used.

    Returns:
      The next state, and the metrics of `forward_with_loss` with `grad_norm`, before clipping.
    """
    batch_key = jax.random.fold_in(key, state.step)
    if config.augment.mirror or config.augment.recolour:
        batch = augment(config.augment, batch, jax.random.fold_in(batch_key, _AUGMENT))
    count = batch["mask_valid"].sum()

    def loss_of(params: Any, piece: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        whole = assemble(config.finetune, params, state.frozen)
        return forward_with_loss(model, config, whole, state.constants, piece, key, count)

    metrics, grads = _gradients(loss_of, state.params, batch, batch_key, config.accumulate)
    with exact_products():
        clock: dict[str, Any] = {} if share is None else {"share": share}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **clock)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = global_norm(grads)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics  # type: ignore[attr-defined]


def _gradients(loss_of: Any, params: Any, batch: Batch, key: jax.Array, pieces: int) -> tuple[Metrics, Any]:
    """Metrics and gradients of a batch, computed in equal pieces one after the other."""
    grad_fn = jax.value_and_grad(loss_of, has_aux=True)
    if pieces == 1:
        (_, metrics), grads = grad_fn(params, batch, key)
        return metrics, grads

    def of_piece(piece: Batch, key: jax.Array) -> tuple[Metrics, Any]:
        (_, metrics), grads = grad_fn(params, piece, key)
        return metrics, grads

    # Image i goes to piece i % pieces, so that every device already holds its part of each piece.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), batch)
    keys = jax.random.split(key, pieces)
    shapes = jax.eval_shape(of_piece, jax.tree.map(lambda x: x[0], split), keys[0])
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, xs: (jax.tree.map(jnp.add, sums, of_piece(*xs)), None), zero, (split, keys))
    return total


def forward_with_loss(
    model: Sam,
    config: TrainConfig,
    params: Any,
    constants: Any,
    batch: Batch,
    key: jax.Array,
    count: jax.Array | None = None,
    deterministic: bool = False,
) -> tuple[jax.Array, Metrics]:
    """Loss of a batch, averaged over its valid masks.

    Args:
      batch: `image` (B, S, S, 3) uint8 and `input_size` (B, 2) int32 (h, w), or `image_embeddings` (B, h, w, C);
        `masks` (B, N, S/4, S/4) bool, or finer, `mask_valid` (B, N) bool; with text prompts, `text_embeddings`
        (B, N, E).
      count: the number of valid masks to average over, if the batch is a piece of a larger one; None counts its own.
      deterministic: switches off drop path and dropout.

    Returns:
      The loss, and metrics, whose sum over pieces is that of the batch: `loss`, its parts `focal`, `dice` and
      `iou_error` averaged over interactions, and the IoU of the chosen mask after each interaction, `iou_1`, ...
    """
    drop_key, prompt_key, affinity_key = jax.random.split(key, 3)
    variables = {"params": params, "constants": constants}
    embeddings = image_embeddings(model, variables, batch, None if deterministic else drop_key)
    count = batch["mask_valid"].sum() if count is None else count
    weight = batch["mask_valid"] / jnp.maximum(count, 1)
    decoder_params = {name: part for name, part in params.items() if name != "image_encoder"}
    decode = partial(_decode, model, constants)
    learned, targets = (decoder_params, embeddings), batch["masks"]
    factor = finer_than_decoder(targets, embeddings)
    # Flax derives a stream of random numbers for each module, so drop path and dropout can share a key.
    dropout = None if deterministic or not config.sam.mask_decoder.dropout_rate else drop_key
    texts = batch.get("text_embeddings")
    loss, scores = interact(config, decode, learned, targets, weight, prompt_key, factor, dropout, texts)
    sums = Scores(*((x * weight).sum(axis=(1, 2)) for x in scores))
    metrics = {"loss": loss, "focal": sums.focal.mean(), "dice": sums.dice.mean(), "iou_error": sums.iou_error.mean()}
    metrics |= {f"iou_{step + 1}": iou for step, iou in enumerate(sums.iou)}
    if config.loss.affinity_weight:
        proper, details = split_details(embeddings, config.sam.prompt_embed_dim)
        h, w = proper.shape[1:3]
        kinds = [proper] if details is None else [proper, pixel_embeddings(details.masks, (h, w))]
        losses = [affinity_loss(x, batch["masks"], batch["mask_valid"], affinity_key) for x in kinds]
        affinity = jnp.stack(losses).mean() / config.accumulate
        metrics["affinity"] = affinity
        loss = loss + config.loss.affinity_weight * affinity
    return loss, metrics


def finer_than_decoder(masks: jax.Array, embeddings: jax.Array) -> int:
    """Side of a cell of the decoder's grid in cells of masks (B, N, H, W), for embeddings (B, h, w, C)."""
    return masks.shape[2] // (SIDE * embeddings.shape[1])


def _decode(
    model: Sam,
    constants: Any,
    learned: Any,
    prompts: Prompts,
    planes: jax.Array | None,
    num_masks: int | None,
    dropout: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`Sam.predict_planes` with `learned`: all parameters but the encoder's, and the image embeddings.

    `dropout` is the key of the dropout; None switches it off.
    """
    params, embeddings = learned
    variables = {"params": params, "constants": constants}
    arguments = embeddings, prompts, planes, slice(num_masks), dropout is None
    rngs = None if dropout is None else {"dropout": dropout}
    result: Any = model.apply(variables, *arguments, method="predict_planes", rngs=rngs)
    return result


def image_embeddings(
    model: Sam, variables: dict[str, Any], batch: Batch, drop_key: jax.Array | None = None
) -> jax.Array:
    """Embeddings (B, h, w, C) float32 of a batch: its own if it has any, else those of its images.

    `drop_key` is the key of the drop path; None switches it off.
    """
    if "image_embeddings" in batch:
        return batch["image_embeddings"].astype(jnp.float32)
    images = normalize_batch(batch["image"], batch["input_size"], model.config.pixel_mean, model.config.pixel_std)
    rngs = None if drop_key is None else {"drop_path": drop_key}
    embeddings: Any = model.apply(variables, images, drop_key is None, method="encode_image", rngs=rngs)
    return embeddings


def evaluation_step(model: Sam, config: TrainConfig, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Metrics of `forward_with_loss`, summed over a held-out batch's valid masks, and their number as `count`."""
    variables = model_variables(config, state)
    one = jnp.ones((), jnp.int32)
    args = variables["params"], variables["constants"], batch, key, one
    _, metrics = forward_with_loss(model, config, *args, deterministic=True)
    metrics.pop("affinity", None)  # an average, not a sum
    return metrics | {"count": batch["mask_valid"].sum()}


def interact(
    config: TrainConfig,
    decode: Any,
    learned: Any,
    targets: jax.Array,
    weight: jax.Array,
    key: jax.Array,
    factor: int = 1,
    dropout: jax.Array | None = None,
    texts: jax.Array | None = None,
) -> tuple[jax.Array, Scores]:
    """All interactions of one step, each prompted with a point from the error of the one before.

    Masks that are fed back carry no gradient, so the gradient of the loss is a sum over interactions. Each term is
    computed right after its decoder pass: memory is that of one pass, and nothing is computed twice.

    Args:
      decode: (learned, prompts, planes to feed back or None, number of masks or None) -> planes and IoU predictions,
        as `Sam.predict_planes`. All trained parameters that it uses must come from `learned`.
      learned: a tree of float arrays, with respect to which the loss is differentiated.
      targets: (B, N, 4h, 4w) bool, or finer; weight: (B, N), of each prompt in the loss.
      factor: side of a cell of the decoder's grid, on which prompts are drawn and masks fed back, in target cells.
      dropout: a key; `decode` gets one derived from it at each interaction, as its fifth argument.
      texts: (B, N, E) text embeddings of the objects, or None.

    Returns:
      The loss and the scores; no gradient flows through the scores.
    """
    run = partial(_interactions, config, decode, factor=factor)

    @jax.custom_vjp
    def total(
        learned: Any,
        targets: jax.Array,
        weight: jax.Array,
        key: jax.Array,
        dropout: jax.Array | None,
        texts: jax.Array | None,
    ) -> tuple[jax.Array, Scores]:
        loss, scores, _ = run(False, learned, targets, weight, key, dropout, texts)
        return loss, scores

    def forward(*args: Any) -> tuple[tuple[jax.Array, Scores], Any]:
        loss, scores, gradient = run(True, *args)
        return (loss, scores), gradient

    def backward(gradient: Any, cotangents: tuple[jax.Array, Scores]) -> tuple[Any, None, None, None, None, None]:
        return jax.tree.map(lambda x: x * cotangents[0].astype(x.dtype), gradient), None, None, None, None, None

    total.defvjp(forward, backward)
    return total(learned, targets, weight, key, dropout, texts)


def _interactions(
    config: TrainConfig,
    decode: Any,
    differentiate: bool,
    learned: Any,
    targets: jax.Array,
    weight: jax.Array,
    key: jax.Array,
    dropout: jax.Array | None = None,
    texts: jax.Array | None = None,
    factor: int = 1,
) -> tuple[jax.Array, Scores, Any]:
    """The loss, the scores (steps, B, N) and, with `differentiate`, the loss's gradient with respect to `learned`."""
    sim = config.interaction
    first_key, place_key, loop_key = jax.random.split(key, 3)
    fine, targets = targets, reduce_masks(targets, factor)
    prompts = first_prompts(sim, first_key, targets, texts)
    multimask = is_ambiguous(sim, prompts)
    grid = (targets.shape[2] // SIDE, targets.shape[3] // SIDE)
    targets = split_subpixels(targets)
    # Later prompts are not ambiguous: only the first mask is trained on them.
    later_masks = None if config.loss.supervise_all_outputs else 1
    share = 1.0 if config.loss.sum_interactions else 1 / sim.num_steps

    def score(
        number: Any, prompts: Prompts, planes: jax.Array | None, multimask: jax.Array, num_masks: int | None
    ) -> tuple[Any, Any]:
        drawn = () if dropout is None else (jax.random.fold_in(dropout, number),)

        def loss_of(learned: Any) -> tuple[jax.Array, Any]:
            logits, ious = decode(learned, prompts, planes, num_masks, *drawn)
            enlarged = logits if factor == 1 else enlarge(join_subpixels(logits, grid), fine.shape[2:])
            losses = mask_losses(config.loss, enlarged, ious, targets if factor == 1 else fine)
            feedback, scores = _score(config, logits, ious, losses, multimask)
            return share * (scores.loss * weight).sum(), (feedback, scores)

        if not differentiate:
            loss, aux = loss_of(learned)
            return (loss, ()), aux
        (loss, aux), gradient = jax.value_and_grad(loss_of, has_aux=True)(learned)
        return (loss, gradient), aux

    total, (planes, first) = score(0, prompts, None, multimask, None)
    first = jax.tree.map(lambda x: x[None], first)
    if sim.num_steps == 1:
        return total[0], first, total[1]

    def body(carry: tuple[Prompts, jax.Array, Any], inputs: tuple[jax.Array, ...]) -> Any:
        prompts, planes, total = carry
        number, slot, key = inputs
        place = jnp.maximum(slot, 0)
        prompts = add_error_points(prompts, place, key, planes > 0, targets, keep=slot < 0, grid=grid)
        more, (planes, scores) = score(number, prompts, planes, jnp.zeros_like(multimask), later_masks)
        return (prompts, planes, jax.tree.map(jnp.add, total, more)), scores

    numbers, keys = jnp.arange(1, sim.num_steps), jax.random.split(loop_key, sim.num_steps - 1)
    inputs = (numbers, point_slots(config, place_key), keys)
    (_, _, total), later = jax.lax.scan(body, (prompts, planes, total), inputs)
    return total[0], jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, later), total[1]


def point_slots(config: TrainConfig, key: jax.Array) -> jax.Array:
    """Of each interaction after the first, the slot of its new point, or -1 if it is mask-only. (steps - 1,) int32."""
    sim = config.interaction
    inner = sim.num_points + max(0, sim.num_mask_only_steps - 1)
    # The last interaction is mask-only; the other mask-only ones have random positions before it.
    is_point = jax.random.permutation(key, jnp.arange(inner) < sim.num_points)
    if sim.num_mask_only_steps:
        is_point = jnp.append(is_point, False)
    return jnp.where(is_point, jnp.cumsum(is_point), -1)


def _score(
    config: TrainConfig, planes: jax.Array, iou_predictions: jax.Array, losses: MaskLosses, multimask: jax.Array
) -> tuple[jax.Array, Scores]:
    """Logits to feed back, (B, N, 16, S), those of the mask with the highest predicted IoU, and its scores (B, N).

    Args:
      planes: (B, N, M, 16, S) logits; iou_predictions: (B, N, M); losses: (B, N, M) each; multimask: (B, N) bool,
        whether to choose among the three masks or to take the single one.
    """
    if planes.shape[2] == 1:
        best = jnp.zeros((*multimask.shape, 1), jnp.int32)
    else:
        best = jnp.where(multimask, 1 + iou_predictions[..., 1:].argmax(axis=-1), 0)[..., None]
    logits = jnp.take_along_axis(planes, best[..., None, None], axis=2)[:, :, 0]
    focal, dice, iou_error, iou = [jnp.take_along_axis(part, best, axis=2)[..., 0] for part in losses]
    scores = Scores(prompt_loss(config.loss, losses, multimask), iou, focal, dice, iou_error)
    return jax.lax.stop_gradient(logits), scores
