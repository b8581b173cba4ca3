"""Simulated interactive segmentation: the prompts of a training step (SAM paper, appendix A).

Masks are on the mask decoder's grid, `STRIDE` pixels of the input frame per cell. Every function is pure, batched over
(B, N), and static in shape; random choices depend only on the key, so that all hosts make the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import reduce

from sam_jax.config import InteractionConfig
from sam_jax.ops.planes import subpixel_position
from sam_jax.structs import Prompts

# The mask decoder predicts on a grid of patch_size / 4 = 4 pixels (SAM's patch size is 16).
STRIDE = 4
_TEXTS = 1 << 16  # folded into a key; small numbers are those that `split` folds in


def reduce_masks(masks: jax.Array, factor: int) -> jax.Array:
    """(B, N, factor * h, factor * w) bool -> (B, N, h, w) bool: cells of which a mask fills more than half."""
    if factor == 1:
        return masks
    share = reduce(masks.astype(jnp.float32), "b n (h i) (w j) -> b n h w", "mean", i=factor, j=factor)
    return share > 0.5


def first_prompts(
    config: InteractionConfig, key: jax.Array, targets: jax.Array, text_embeddings: jax.Array | None = None
) -> Prompts:
    """A point or a box for each object, with absent points as slots for later ones; with texts, also a text.

    Args:
      targets: (B, N, h, w) bool. Empty masks (padding) get an arbitrary prompt.
      text_embeddings: (B, N, E).
    """
    choice, where, noise = jax.random.split(key, 3)
    batch = targets.shape[:2]
    use_box = jax.random.bernoulli(choice, config.box_probability, batch)
    coords = jnp.zeros((*batch, 1 + config.num_points, 2)).at[:, :, 0].set(sample_pixel(where, targets))
    labels = jnp.full((*batch, 1 + config.num_points), -1).at[:, :, 0].set(jnp.where(use_box, -1, 1))
    boxes = jitter_boxes(config, noise, mask_boxes(targets), frame=(targets.shape[2], targets.shape[3]))
    prompts = Prompts(point_coords=coords, point_labels=labels, boxes=boxes, box_valid=use_box)
    return prompts if text_embeddings is None else _with_texts(config, key, prompts, text_embeddings)


def _with_texts(config: InteractionConfig, key: jax.Array, prompts: Prompts, embeddings: jax.Array) -> Prompts:
    """Some prompts with a text beside them, and some with a text alone."""
    assert prompts.point_labels is not None
    assert prompts.box_valid is not None
    has, alone = jax.random.split(jax.random.fold_in(key, _TEXTS))
    has_text = jax.random.bernoulli(has, config.text_probability, embeddings.shape[:2])
    is_alone = has_text & jax.random.bernoulli(alone, config.text_alone, embeddings.shape[:2])
    return prompts.replace(  # type: ignore[attr-defined]
        point_labels=jnp.where(is_alone[..., None], -1, prompts.point_labels),
        box_valid=prompts.box_valid & ~is_alone,
        text_embeddings=embeddings,
        text_valid=has_text,
    )


def is_ambiguous(config: InteractionConfig, prompts: Prompts) -> jax.Array:
    """Whether each first prompt may mean several masks: a point alone or a text alone. (B, N) bool."""
    assert prompts.point_labels is not None
    assert prompts.box_valid is not None
    single = ~prompts.box_valid | config.box_multimask
    if prompts.text_valid is None:
        return single
    return single & ~(prompts.text_valid & (prompts.box_valid | (prompts.point_labels >= 0).any(axis=-1)))


def add_error_points(
    prompts: Prompts,
    slot: jax.Array,
    key: jax.Array,
    predicted: jax.Array,
    targets: jax.Array,
    keep: jax.Array,
    grid: tuple[int, int],
) -> Prompts:
    """Puts a point from each error region into `slot`: foreground for false negatives, background for false positives.

    A perfect prediction gets a point anywhere, with its true label. Where `keep` is True (a mask-only interaction) the
    prompts do not change.

    Args:
      slot: scalar int32, which of the P points to set; keep: scalar bool.
      predicted, targets: (B, N, 16, S) bool, masks as planes (ops/planes.py) over the embedding grid.
      grid: (h, w), the embedding grid; S = h * w.
    """
    error = predicted != targets
    error = error | ~error.any(axis=(-2, -1), keepdims=True)
    draw, jitter = jax.random.split(key)
    index = _draw_index(draw, error)
    coords = _draw_pixel(jitter, subpixel_position(index, grid[1], grid[0] * grid[1]))
    flat = targets.reshape(*index.shape, -1)
    labels = jnp.take_along_axis(flat, index[..., None], axis=-1)[..., 0].astype(jnp.int32)
    old_coords, old_labels = prompts.point_coords, prompts.point_labels
    assert old_coords is not None
    assert old_labels is not None
    return prompts.replace(  # type: ignore[attr-defined]
        point_coords=jnp.where(keep, old_coords, old_coords.at[:, :, slot].set(coords)),
        point_labels=jnp.where(keep, old_labels, old_labels.at[:, :, slot].set(labels)),
    )


def sample_pixel(key: jax.Array, region: jax.Array) -> jax.Array:
    """A uniformly drawn point of each region: (B, N, h, w) bool -> (B, N, 2) float32 (x, y) in the input frame."""
    draw, jitter = jax.random.split(key)
    index, width = _draw_index(draw, region), region.shape[-1]
    return _draw_pixel(jitter, jnp.stack([index % width, index // width], axis=-1))


def _draw_index(key: jax.Array, region: jax.Array) -> jax.Array:
    """(B, N, ...) bool -> (B, N): index into the flattened region of a uniformly drawn True."""
    scores = jax.random.uniform(key, region.shape) + region
    return scores.reshape(*region.shape[:2], -1).argmax(axis=-1)


def _draw_pixel(key: jax.Array, cell: jax.Array) -> jax.Array:
    """A uniformly drawn pixel of the input frame in each cell: (..., 2) (x, y) -> the same, float32."""
    inside = jax.random.randint(key, cell.shape, 0, STRIDE)
    return (cell * STRIDE + inside).astype(jnp.float32)


def mask_boxes(masks: jax.Array) -> jax.Array:
    """Tight boxes of (B, N, h, w) bool masks: (B, N, 4) xyxy in pixels of the input frame; zeros for empty masks."""
    columns, rows = masks.any(axis=-2), masks.any(axis=-1)
    x0, y0 = columns.argmax(axis=-1), rows.argmax(axis=-1)
    x1 = columns.shape[-1] - 1 - columns[..., ::-1].argmax(axis=-1)
    y1 = rows.shape[-1] - 1 - rows[..., ::-1].argmax(axis=-1)
    boxes = jnp.stack([x0 * STRIDE, y0 * STRIDE, (x1 + 1) * STRIDE - 1, (y1 + 1) * STRIDE - 1], axis=-1)
    return jnp.where(masks.any(axis=(-2, -1))[..., None], boxes, 0).astype(jnp.float32)


def jitter_boxes(config: InteractionConfig, key: jax.Array, boxes: jax.Array, frame: tuple[int, int]) -> jax.Array:
    """Boxes (..., 4) xyxy with noise added to every coordinate, clamped to the frame of (h, w) cells."""
    sides = jnp.tile(boxes[..., 2:] - boxes[..., :2], 2)
    if config.box_noise_uniform:
        limit = jnp.minimum(config.box_noise * sides, config.box_noise_max)
        noise = limit * jax.random.uniform(key, boxes.shape, minval=-1)
    else:
        # A third of the side at most: the corners of a small box must not change places.
        limit = jnp.minimum(config.box_noise_max, sides / 3)
        noise = jnp.clip(config.box_noise * sides * jax.random.normal(key, boxes.shape), -limit, limit)
    high = jnp.asarray([frame[1], frame[0], frame[1], frame[0]]) * STRIDE - 1
    return jnp.clip(boxes + noise, 0, high)
