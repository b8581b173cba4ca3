"""From a data config to an endless, seeded, resumable stream of batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from sam_jax.config import CompositeDataConfig, StageConfig
from sam_jax.data.composites import CompositeSource
from sam_jax.data.cutout_pool import load_pool

# Threads suffice: PIL and numpy leave the interpreter lock in their inner loops.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=32)


def make_batches(
    config: CompositeDataConfig, stage: StageConfig, seed: int, first_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a stage from its step `first_step` on.

    Example i of a run depends on (seed, i) alone, so that a resumed run sees what it would have seen.

    Yields:
      `image` (B, S, S, 3) uint8, `input_size` (B, 2) int32, `masks` (B, K, S/4, S/4) bool, `mask_valid` (B, K) bool,
      `image_id` (B,) int64.
    """
    composite = dataclasses.replace(
        config.composite, image_size=stage.image_size, masks_per_image=stage.masks_per_image
    )
    source = CompositeSource(load_pool(config.pool, "train"), composite, seed=seed)
    dataset = grain.MapDataset.source(source)[first_step * stage.batch_size :]
    return iter(dataset.to_iter_dataset(_READ).batch(stage.batch_size, drop_remainder=True))
