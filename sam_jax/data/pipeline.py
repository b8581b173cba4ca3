"""From a data config to an endless, seeded, resumable stream of batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from sam_jax.config import CompositeDataConfig, StageConfig
from sam_jax.data.composites import CompositeSource
from sam_jax.data.cutout_pool import load_pool
from sam_jax.data.example import MASK_STRIDE

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
        config.composite,
        image_size=stage.image_size,
        masks_per_image=stage.masks_per_image,
        mosaics=config.composite.mosaics if stage.mosaics is None else stage.mosaics,
    )
    source = CompositeSource(load_pool(config.pool, "train"), composite, seed=seed)
    dataset = grain.MapDataset.source(source)
    if stage.num_examples:
        examples = InMemory(source, stage.num_examples)
        dataset = grain.MapDataset.source(examples).shuffle(seed=seed).repeat()
    dataset = dataset[first_step * stage.batch_size :]
    return iter(dataset.to_iter_dataset(_READ).batch(stage.batch_size, drop_remainder=True))


class InMemory:
    """The first `length` examples of a source, each made when first asked for and then kept, masks packed to bits."""

    def __init__(self, source: CompositeSource, length: int):
        self._source, self._kept = source, dict[int, dict[str, np.ndarray]]()
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index not in self._kept:
            example = self._source[index]
            self._kept[index] = {**example, "masks": np.packbits(example["masks"], axis=-1)}
        kept = self._kept[index]
        columns = kept["image"].shape[1] // MASK_STRIDE
        return {**kept, "masks": np.unpackbits(kept["masks"], axis=-1, count=columns).astype(bool)}
