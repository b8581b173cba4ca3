"""Runs the image encoder, and measures how long each thread has waited for it."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any, NamedTuple

import jax

from sam_jax.models.mask_decoder import PreparedEmbeddings
from sam_jax.models.sam import Sam
from sam_jax.ops.crf import CrfPixels, crf_pixels
from sam_jax.ops.transforms import normalize_batch

_of_thread = threading.local()


class EncodedImages(NamedTuple):
    """What the mask decoder and edge refinement need of B images.

    Attributes:
      embeddings: (B, h, w, C) float32.
      pixels: input of edge refinement, with a leading axis B; None if `SamConfig.crf` is off.
    """

    embeddings: jax.Array
    pixels: CrfPixels | None

    def one(self, number: int) -> EncodedImages:
        """A single image, without the leading axis."""
        picked: EncodedImages = jax.tree.map(lambda x: x[number], self)
        return picked


@partial(jax.jit, static_argnums=0)
def encode_images(model: Sam, variables: Any, frames: jax.Array, input_sizes: jax.Array) -> EncodedImages:
    """Encodes padded RGB images (B, S, S, 3) uint8; `input_sizes` (B, 2) int are (h, w) of the valid parts, pixels."""
    config = model.config
    images = normalize_batch(frames, input_sizes, config.pixel_mean, config.pixel_std)
    embeddings: Any = model.apply(variables, images, method="encode_image")
    if not config.crf:
        return EncodedImages(embeddings, None)
    pixels = jax.vmap(partial(crf_pixels, patch_size=config.image_encoder.patch_size))(images, input_sizes)
    return EncodedImages(embeddings, pixels)


@partial(jax.jit, static_argnums=0)
def prepare_embeddings(model: Sam, variables: Any, embeddings: jax.Array) -> PreparedEmbeddings:
    """What the mask decoder makes of `EncodedImages.embeddings` once, for all prompts; see `Sam`."""
    prepared: Any = model.apply(variables, embeddings, method="prepare_embeddings")
    return prepared


def encode_and_wait(model: Sam, variables: Any, frames: Any, input_sizes: Any) -> EncodedImages:
    """Runs `encode_images` and waits for the result. The decoder needs it anyway, so waiting costs nothing."""
    start = time.perf_counter()
    encoded = jax.block_until_ready(encode_images(model, variables, frames, input_sizes))
    _of_thread.seconds = encoder_seconds() + time.perf_counter() - start
    return encoded


def encoder_seconds() -> float:
    """Seconds that this thread has spent in `encode_and_wait` so far."""
    return float(getattr(_of_thread, "seconds", 0.0))
