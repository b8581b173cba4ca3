"""Text prompts of training: embeddings of all objects, computed before the first step where they are not there yet."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from PIL import Image
from tqdm import tqdm

from sam_jax.config import RecordDataConfig, TrainConfig
from sam_jax.data.record_stream import chosen_indices
from sam_jax.data.records import DataError, Record, RecordSource
from sam_jax.data.text_records import TextRecords, objects_key
from sam_jax.files import write_atomically
from sam_jax.rgb import to_rgb
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.loading import load_towers
from sam_jax.text.object_embeddings import embed_objects, settings_key
from sam_jax.training.interruption import Interrupted

log = logging.getLogger(__name__)

_THREADS = 4  # that cut crops


def with_text_prompts(
    config: TrainConfig, source: RecordSource | None, stop: Callable[[int], bool] = lambda _: False
) -> RecordSource | None:
    """A source whose records carry text embeddings, which are computed where they are missing; without text prompts,
    the source itself.

    Args:
      stop: asked after each image with its number, 1, 2, ..., equally often on all hosts.

    Raises:
      Interrupted: it said so; what is computed is kept.
      ValueError: the towers cannot be loaded, or are of another width than the model's text prompts.
    """
    if config.text.towers is None:
        return source
    assert source is not None
    assert isinstance(config.data, RecordDataConfig)
    towers = load_towers(config.text.towers)
    if towers.embed_dim != config.sam.text_embed_dim:
        raise ValueError(
            f"text.towers {config.text.towers} has embeddings of {towers.embed_dim}, sam.text_embed_dim is "
            f"{config.sam.text_embed_dim}; give the towers' width"
        )
    directory = epath.Path(config.text.cache) / settings_key(towers, config.text)
    directory.mkdir(parents=True, exist_ok=True)
    wanted = [chosen_indices(source.image_ids, config.data, held_out) for held_out in (False, True)]
    fill(config, towers, source, np.concatenate(wanted), directory, stop)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("text embeddings")
    return TextRecords(source, directory)


def fill(
    config: TrainConfig,
    towers: LoadedTowers,
    source: RecordSource,
    indices: np.ndarray,
    directory: epath.Path,
    stop: Callable[[int], bool],
) -> None:
    """Computes what is missing of this host's share of the records `indices` (n,); bad images are logged."""
    kept = {file.name for file in directory.iterdir()}
    host, hosts = jax.process_index(), jax.process_count()
    rounds = -(-len(indices) // hosts)
    with ThreadPoolExecutor(_THREADS, "crops") as pool:
        for number in tqdm(range(rounds), desc="text embeddings", unit="image", disable=host != 0):
            place = number * hosts + host
            if place < len(indices):
                try:
                    record = source[int(indices[place])]
                    key = objects_key(record)
                    if f"{key}.npy" not in kept:
                        _compute(config, towers, record, directory / f"{key}.npy", int(key, 16), pool)
                except DataError as error:
                    log.warning("no text embeddings: %s", error)
            if stop(number + 1):
                raise Interrupted(f"stopped at text embeddings, {number + 1} of {rounds} images; run it again to go on")


def _compute(
    config: TrainConfig, towers: LoadedTowers, record: Record, file: epath.Path, seed: int, pool: ThreadPoolExecutor
) -> None:
    try:
        with Image.open(io.BytesIO(record.image)) as opened:
            image = np.asarray(to_rgb(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{record.name} cannot be decoded ({error}); fetch the file again") from error
    buffer = io.BytesIO()
    np.save(buffer, embed_objects(towers, config.text, image, record.segmentations, seed, pool))
    write_atomically(file, buffer.getvalue())
