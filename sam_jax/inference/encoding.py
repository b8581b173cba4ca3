"""Running the image encoder, and how long a thread has waited for it."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import jax

from sam_jax.models.sam import Sam
from sam_jax.ops.transforms import normalize_batch

_of_thread = threading.local()


@partial(jax.jit, static_argnums=0)
def encode_images(model: Sam, variables: Any, pictures: jax.Array, input_sizes: jax.Array) -> jax.Array:
    """Padded pictures (B, S, S, 3) uint8, valid to `input_sizes` (B, 2) -> embeddings (B, h, w, C)."""
    config = model.config
    images = normalize_batch(pictures, input_sizes, config.pixel_mean, config.pixel_std)
    embeddings: Any = model.apply(variables, images, method="encode_image")
    return embeddings


def encode_and_wait(model: Sam, variables: Any, pictures: Any, input_sizes: Any) -> jax.Array:
    """`encode_images`, finished when it returns. The decoder cannot begin before, so that waiting costs nothing."""
    start = time.perf_counter()
    embeddings = jax.block_until_ready(encode_images(model, variables, pictures, input_sizes))
    _of_thread.seconds = encoder_seconds() + time.perf_counter() - start
    return embeddings


def encoder_seconds() -> float:
    """What this thread has spent in `encode_and_wait` so far."""
    return float(getattr(_of_thread, "seconds", 0.0))
