"""From a data config to a seeded stream of batches, each host with its share.

Example i of a run depends on the seed and on i alone: not on the number of hosts, workers or restarts. Step s reads
examples s * B to (s + 1) * B, so that the step number is all that a checkpoint has to know about the data.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import grain
import numpy as np

from sam_jax.config import CompositeConfig, CompositeDataConfig, RecordDataConfig, StageConfig
from sam_jax.data.composites import CompositeSource
from sam_jax.data.cutout_pool import load_pool
from sam_jax.data.open_records import open_records
from sam_jax.data.record_stream import RecordStream
from sam_jax.data.records import RecordSource

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
_THREADS = 2  # PIL and numpy leave the interpreter lock in their inner loops


def make_batches(
    config: CompositeDataConfig | RecordDataConfig,
    stage: StageConfig,
    seed: int,
    first_step: int,
    shard: tuple[int, int] = (0, 1),
    embeddings: str | None = None,
) -> Iterator[Batch]:
    """This host's part of a stage's batches, from its step `first_step` on, without end.

    Args:
      shard: (index of this host, number of hosts).
      embeddings: a directory of image embeddings that take the place of `image`.

    Yields:
      `image` (b, S, S, 3) uint8 or `image_embeddings` (b, h, w, C), `input_size` (b, 2) int32,
      `masks` (b, K, S/4, S/4) bool, `mask_valid` (b, K) bool, `image_id` (b,) int64, with b = batch_size / hosts.

    Raises:
      ValueError: the batch does not divide over the hosts, or the data cannot be opened.
    """
    if isinstance(config, CompositeDataConfig):
        examples, workers, prefetch = _composites(config, stage, seed), 0, 32
    else:
        records = open_stream(config, stage, seed, held_out=False, embeddings=embeddings)
        log.info("%s: %d images to train on", config.path, len(records))
        examples = grain.MapDataset.range(len(records)).shuffle(seed=seed).repeat().map_with_index(records.draw)
        workers, prefetch = config.num_workers, config.prefetch
    host, hosts = shard
    size, rest = divmod(stage.batch_size, hosts)
    if rest:
        raise ValueError(f"batch_size {stage.batch_size} does not divide over {hosts} hosts")
    batches = examples.batch(size)[first_step * hosts + host :: hosts]
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=max(2, math.ceil(prefetch / size)))
    stream = batches.to_iter_dataset(options)
    if workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)


class HeldOutBatches:
    """About `count` examples that training does not see, always the same, as `make_batches` yields them.

    The last batch is filled up with examples whose masks are all invalid. Data is opened when it is first iterated
    over, once.
    """

    def __init__(
        self,
        config: CompositeDataConfig | RecordDataConfig,
        stage: StageConfig,
        seed: int,
        count: int,
        shard: tuple[int, int] = (0, 1),
        embeddings: str | None = None,
    ) -> None:
        self._config, self._stage, self._seed, self._count = config, stage, seed, count
        self._shard, self._embeddings = shard, embeddings

    @cached_property
    def _composites(self) -> CompositeSource:
        assert isinstance(self._config, CompositeDataConfig)
        pool = load_pool(self._config.pool, "val")
        return CompositeSource(pool, _composite_config(self._config, self._stage), seed=self._seed)

    @cached_property
    def _records(self) -> RecordSource:
        assert isinstance(self._config, RecordDataConfig)
        return open_records(self._config.path, self._config.image_dir)

    def _examples(self) -> tuple[Callable[[int], Batch], int]:
        """An example by its number, and how many there are."""
        if isinstance(self._config, CompositeDataConfig):
            return self._composites.__getitem__, self._count
        # A stream of its own for each pass: what one cannot read does not count against the next.
        stream = RecordStream(self._records, self._config, self._stage, self._seed, True, self._embeddings)
        return lambda position: stream.draw(position, position), min(self._count, len(stream))

    def __iter__(self) -> Iterator[Batch]:
        example_at, count = self._examples()
        host, hosts = self._shard
        size = self._stage.batch_size // hosts
        for start in range(0, count, self._stage.batch_size):
            rows = []
            for position in range(start + host * size, start + (host + 1) * size):
                example = example_at(position % count)
                unused = {} if position < count else {"mask_valid": np.zeros_like(example["mask_valid"])}
                rows.append({**example, **unused})
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def open_stream(
    config: RecordDataConfig, stage: StageConfig, seed: int, held_out: bool, embeddings: str | None = None
) -> RecordStream:
    """The images on disk that a run trains on, or those that it holds out."""
    return RecordStream(open_records(config.path, config.image_dir), config, stage, seed, held_out, embeddings)


def _composite_config(config: CompositeDataConfig, stage: StageConfig) -> CompositeConfig:
    return dataclasses.replace(
        config.composite,
        image_size=stage.image_size,
        masks_per_image=stage.masks_per_image,
        mask_stride=stage.mask_stride,
        mosaics=config.composite.mosaics if stage.mosaics is None else stage.mosaics,
    )


def _composites(config: CompositeDataConfig, stage: StageConfig, seed: int) -> Any:
    source = CompositeSource(load_pool(config.pool, "train"), _composite_config(config, stage), seed=seed)
    if stage.num_examples is None:
        return grain.MapDataset.source(source)
    return grain.MapDataset.source(InMemory(source, stage.num_examples)).shuffle(seed=seed).repeat()


class InMemory:
    """The first `length` examples of a source, each made when first asked for and then kept, masks packed to bits."""

    def __init__(self, source: CompositeSource, length: int):
        self._source, self._kept = source, dict[int, Batch]()
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        if index not in self._kept:
            example = self._source[index]
            self._kept[index] = {**example, "masks": np.packbits(example["masks"], axis=-1)}
        kept = self._kept[index]
        columns = kept["image"].shape[1] // self._source.config.mask_stride
        return {**kept, "masks": np.unpackbits(kept["masks"], axis=-1, count=columns).astype(bool)}
