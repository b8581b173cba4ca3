"""Seeded batches of training data, of which each host reads its share.

Example i of a run depends only on the seed and on i, not on the number of hosts, workers or restarts. Step s reads
examples s * B to (s + 1) * B, so a checkpoint needs only the step number to resume the data.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grain
import numpy as np

from sam_jax.composites.pool import load_pool
from sam_jax.composites.slots import slot_dtype
from sam_jax.composites.source import CompositeSource
from sam_jax.composites.supply import Batches, again, in_order
from sam_jax.composites.workers import Workers
from sam_jax.config import CompositeConfig, CompositeDataConfig, RecordDataConfig, StageConfig
from sam_jax.data.open_records import open_records
from sam_jax.data.record_stream import RecordStream
from sam_jax.data.records import RecordSource
from sam_jax.training.fingerprint import fingerprint_of_pool, fingerprint_of_records

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
_THREADS = 2  # PIL and numpy release the interpreter lock in their inner loops


def make_batches(
    config: CompositeDataConfig | RecordDataConfig,
    stage: StageConfig,
    seed: int,
    first_step: int,
    shard: tuple[int, int] = (0, 1),
    embeddings: str | None = None,
    source: RecordSource | None = None,
    accelerated: bool = False,
) -> Iterator[Batch]:
    """This host's share of a stage's batches, endless, from step `first_step` of the stage.

    Args:
      shard: (index of this host, number of hosts).
      embeddings: a directory of image embeddings to yield in place of images.
      source: the result of `open_source`, if already open.
      accelerated: whether the step runs on something else than the cores that make examples.

    Yields:
      `image` (b, S, S, 3) uint8 or `image_embeddings` (b, h, w, C) float16, `input_size` (b, 2) int32 (h, w),
      `masks` (b, K, S/stride, S/stride) bool, `mask_valid` (b, K) bool, `image_id` (b,) int64, with
      b = batch_size / hosts and stride = `stage.mask_stride`.

    Raises:
      ValueError: the batch does not divide over the hosts, the buffer is too small, or the data cannot be opened.
    """
    host, hosts = shard
    size, rest = divmod(stage.batch_size, hosts)
    if rest:
        raise ValueError(f"batch_size {stage.batch_size} does not divide over {hosts} hosts")
    if isinstance(config, CompositeDataConfig):
        if count := worker_count(config, accelerated):
            return _made_by_workers(config, stage, seed, count, size, range(first_step * hosts + host, 2**62, hosts))
        examples, workers, prefetch = _composites(config, stage, seed), 0, 32
    else:
        source = open_source(config) if source is None else source
        assert source is not None
        records = RecordStream(source, config, stage, seed, held_out=False, embeddings=embeddings)
        log.info("%s: %d images to train on", config.path, len(records))
        examples = grain.MapDataset.range(len(records)).shuffle(seed=seed).repeat().map_with_index(records.draw)
        workers, prefetch = config.num_workers, config.prefetch
    # The data set is endless, so no batch is dropped; without drop_remainder, grain computes the number of batches in
    # floats, which overflow for batches of one image.
    batches = examples.batch(size, drop_remainder=True)[first_step * hosts + host :: hosts]
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=max(2, math.ceil(prefetch / size)))
    stream = batches.to_iter_dataset(options)
    if workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)


class HeldOutBatches:
    """Batches, as of `make_batches`, of up to `count` held-out examples, the same in every pass.

    The last batch is padded with examples whose masks are all invalid. Data is opened at once, to fail before any work
    is done.

    Raises:
      ValueError: the data cannot be opened, or none of it is held out.
    """

    def __init__(
        self,
        config: CompositeDataConfig | RecordDataConfig,
        stage: StageConfig,
        seed: int,
        count: int,
        shard: tuple[int, int] = (0, 1),
        embeddings: str | None = None,
        source: RecordSource | None = None,
    ) -> None:
        self._stage, self._shard, self._count = stage, shard, count
        if isinstance(config, CompositeDataConfig):
            composites = CompositeSource(load_pool(config.pool, "val"), _composite_config(config, stage), seed=seed)
            self._example_at: Callable[[], Callable[[int], Batch]] = lambda: composites.__getitem__
            return
        records = open_source(config) if source is None else source
        assert records is not None
        stream = partial(RecordStream, records, config, stage, seed, True, embeddings)
        self._count = min(count, len(stream()))
        # A new stream for each pass: images that one pass cannot read do not count in the next.
        self._example_at = lambda: _by_position(stream())

    def __iter__(self) -> Iterator[Batch]:
        example_at, count = self._example_at(), self._count
        host, hosts = self._shard
        size = self._stage.batch_size // hosts
        for start in range(0, count, self._stage.batch_size):
            rows = []
            for position in range(start + host * size, start + (host + 1) * size):
                example = example_at(position % count)
                unused = {} if position < count else {"mask_valid": np.zeros_like(example["mask_valid"])}
                rows.append({**example, **unused})
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def open_source(config: CompositeDataConfig | RecordDataConfig) -> RecordSource | None:
    """The images on disk that a data config names, or None for composites. Raises DataError if there are none."""
    return None if isinstance(config, CompositeDataConfig) else open_records(config.path, config.image_dir)


def fingerprint(config: CompositeDataConfig | RecordDataConfig, source: RecordSource | None = None) -> dict[str, Any]:
    """Identifies a data set by its content, wherever it is stored; see `training/fingerprint.py`."""
    if isinstance(config, CompositeDataConfig):
        return fingerprint_of_pool(config.pool)
    source = open_source(config) if source is None else source
    assert source is not None
    return fingerprint_of_records(source)


def _by_position(stream: RecordStream) -> Callable[[int], Batch]:
    return lambda position: stream.draw(position, position)


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
        return grain.MapDataset.source(source).repeat()
    return grain.MapDataset.source(InMemory(source, stage.num_examples)).shuffle(seed=seed).repeat()


def worker_count(config: CompositeDataConfig, accelerated: bool) -> int:
    """Processes that make composites; 0 means threads of this process."""
    if config.num_workers is not None:
        return config.num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores - 2 if accelerated else 0, int(config.reuse > 1))


def _made_by_workers(
    config: CompositeDataConfig, stage: StageConfig, seed: int, count: int, size: int, batches: range
) -> Iterator[Batch]:
    """The examples of the batches of these numbers, `size` in each, as `count` processes make them."""
    composite = _composite_config(config, stage)
    slot = slot_dtype(composite).itemsize
    capacity, kept = int(config.buffer_gib * 2**30 / slot), stage.num_examples
    least = 2 * size if kept is None else kept
    if capacity < least:
        raise ValueError(
            f"data.buffer_gib {config.buffer_gib} holds {capacity} examples of {stage.image_size} px, and {least} are "
            f"{'two batches' if kept is None else 'num_examples'}; set data.buffer_gib to {least * slot / 2**30:.2g} "
            "or more"
        )
    if config.reuse == 1:  # few are ahead of training
        capacity = max(least, min(capacity, 4 * size, 4 * count + 2 * size)) if kept is None else kept
    positions = itertools.chain.from_iterable(range(number * size, (number + 1) * size) for number in batches)
    indices = (position % composite.length for position in positions)
    if kept is not None:
        order = grain.MapDataset.range(kept).shuffle(seed=seed).repeat()
        indices = (int(order[position]) for position in positions)
    workers = Workers(config.pool, composite, seed, count, capacity)
    if config.reuse == 1:
        return Batches(workers, in_order(workers, indices, size, keep=kept is not None))
    log.info("%d processes make examples of %d px, room for %d", count, stage.image_size, capacity)
    if batches.start >= batches.step:
        log.info("examples are new ones: with data.reuse, those before the stop do not come again")
    return Batches(workers, again(workers, indices, size, config.reuse, seed + batches.start))


class InMemory:
    """The first `length` examples of a source, each made on first use and then kept, with masks packed to bits."""

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
