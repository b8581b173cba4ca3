"""What a batch goes through on the device before a step: images mirrored with their masks, colours changed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sam_jax.config import AugmentConfig

Batch = dict[str, jax.Array]

GAIN, CONTRAST, BRIGHTNESS = 0.12, 0.1, 12.0  # deviations: of logarithms, and of values from 0 to 255


def augment(config: AugmentConfig, batch: Batch, key: jax.Array) -> Batch:
    """The batch with its shapes and dtypes kept; what lies in the padding stays as it is, and stays padding.

    Args:
      batch: as `forward_with_loss` takes it, with images.
      key: draws which images are changed, and how.
    """
    mirror_key, chosen_key, colour_key = jax.random.split(key, 3)
    count = len(batch["image"])
    if config.mirror:
        batch = mirror(batch, jax.random.bernoulli(mirror_key, config.mirror, (count,)))
    if config.recolour:
        chosen = jax.random.bernoulli(chosen_key, config.recolour, (count,))
        normal = jax.random.normal(colour_key, (count, 5))
        gain = jnp.exp(GAIN * normal[:, :3] + CONTRAST * normal[:, 3:4])
        image = recolour(batch["image"], batch["input_size"], gain, BRIGHTNESS * normal[:, 4])
        batch = batch | {"image": jnp.where(chosen[:, None, None, None], image, batch["image"])}
    return batch


def mirror(batch: Batch, chosen: jax.Array) -> Batch:
    """Turns the chosen images (B,) bool left to right, within their own width.

    Masks lie on a grid of cells. An image whose width is no multiple of them loses the columns of its last cell, three
    at most, so that cells fall on cells; masks that lie there alone are no longer valid.
    """
    image, masks, size = batch["image"], batch["masks"], batch["input_size"]
    stride = image.shape[2] // masks.shape[3]
    width = jnp.where(chosen, size[:, 1] - size[:, 1] % stride, size[:, 1])
    turned = _turn(image, width, axis=2)  # columns beyond the new width are padding, of which nothing is seen
    cells = width // stride
    turned_masks = _turn(masks, cells, axis=3) & (jnp.arange(masks.shape[3]) < cells[:, None])[:, None, None, :]
    image = jnp.where(chosen[:, None, None, None], turned, image)
    masks = jnp.where(chosen[:, None, None, None], turned_masks, masks)
    valid = batch["mask_valid"] & masks.any(axis=(2, 3))
    return batch | {
        "image": image,
        "masks": masks,
        "mask_valid": valid,
        "input_size": jnp.stack([size[:, 0], width], axis=1),
    }


def _turn(x: jax.Array, width: jax.Array, axis: int) -> jax.Array:
    """(B, ...) with the first `width` (B,) positions along an axis in the opposite order."""
    places = jnp.arange(x.shape[axis])
    order = jnp.where(places < width[:, None], width[:, None] - 1 - places, places)
    shape = [len(x), *[1] * (x.ndim - 1)]
    shape[axis] = x.shape[axis]
    return jnp.take_along_axis(x, order.reshape(shape), axis=axis)


def recolour(image: jax.Array, size: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
    """(B, S, S, 3) uint8 with each channel's distance from middle grey times `gain` (B, 3), plus `shift` (B,)."""
    changed = (image.astype(jnp.float32) - 128) * gain[:, None, None] + 128 + shift[:, None, None, None]
    rows = jnp.arange(image.shape[1]) < size[:, :1]
    columns = jnp.arange(image.shape[2]) < size[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(inside, jnp.round(jnp.clip(changed, 0, 255)).astype(jnp.uint8), image)
