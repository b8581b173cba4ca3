"""Image embeddings of a whole data set, computed once and kept on disk, for training with a frozen image encoder."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from sam_jax.config import RecordDataConfig, SamConfig, TrainConfig, to_dict
from sam_jax.files import write_atomically
from sam_jax.models.sam import Sam
from sam_jax.training.finetune import encoder_is_frozen
from sam_jax.training.step import image_embeddings

log = logging.getLogger(__name__)

_INFO = "cache.json"
# Settings that apply after the image embeddings, and settings of the encoder that change no result.
_OF_MASKS = {"prompt_encoder", "text_embed_dim", "mask_decoder", "crf"}
_OF_MASKS |= {"mask_threshold", "pred_iou_thresh", "stability_score_thresh"}
_WITHOUT_EFFECT = {"drop_path_rate", "remat", "scan", "attention", "token_order"}


class Images(Protocol):
    """Images by number; `data.record_stream.RecordStream` is one."""

    def __len__(self) -> int: ...

    def key(self, number: int) -> str | None:
        """A hash of the encoded image, or None if it cannot be read."""
        ...

    def image(self, number: int) -> dict[str, np.ndarray] | None:
        """`image` (S, S, 3) uint8 and `input_size` (2,) int32 (h, w), or None if the image cannot be used."""
        ...


class EmbeddingCache:
    """`<directory>/<image size>/<image key>.npy`, (h, w, C) float16 each, and `cache.json`: how they were made.

    An image's key is a hash of its encoded bytes, so data sets can share a directory, and equal images share an
    embedding. Everything else that determines an embedding is stored once and must match.

    Args:
      directory: local or gs://.
      image_size: side in pixels of the input frame.
      encoder_params: the image encoder's parameters.
      settings: what else determines an embedding, by name: the encoder's settings (`encoder_settings`) and how images
        are decoded and resized. Values that JSON can hold.

    Raises:
      ValueError: the directory holds embeddings of another encoder, or made with other settings.
    """

    def __init__(
        self, directory: epath.PathLike, image_size: int, encoder_params: Any, settings: dict[str, Any]
    ) -> None:
        self.path = epath.Path(directory) / str(image_size)
        self.path.mkdir(parents=True, exist_ok=True)
        info = self.path / _INFO
        mine = json.loads(json.dumps({"encoder": fingerprint(encoder_params), **settings}))
        if info.exists():
            theirs = json.loads(info.read_text())
            differences = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
            if differences:
                raise ValueError(
                    f"{self.path} holds embeddings of another image encoder or of other settings "
                    f"({', '.join(differences)} differ); choose another embedding_cache"
                )
        elif jax.process_index() == 0:
            write_atomically(info, (json.dumps(mine, indent=2) + "\n").encode())

    def write(self, key: str, embedding: np.ndarray) -> None:
        """Stores one embedding (h, w, C), atomically."""
        buffer = io.BytesIO()
        np.save(buffer, embedding.astype(np.float16))
        write_atomically(self.path / f"{key}.npy", buffer.getvalue())

    def fill(
        self,
        model: Sam,
        variables: Any,
        images: Images,
        batch_size: int,
        stop: Callable[[int], bool] = lambda _: False,
    ) -> bool:
        """Computes the missing embeddings of this host's share of `images`. An interrupted call can be repeated.

        Args:
          stop: called after each round of `batch_size` images with the round's number, 1, 2, ..., equally often on all
            hosts; True ends the work.

        Returns:
          True, or False if `stop` ended it.
        """
        kept = {file.name for file in self.path.iterdir()}
        encode = jax.jit(partial(image_embeddings, model))
        share = -(-len(images) // jax.process_count())  # of the busiest host, so that all have equally many rounds
        mine = range(jax.process_index(), len(images), jax.process_count())
        todo: dict[str, int] = {}
        computed = 0
        bar = tqdm(total=len(mine), desc="embeddings", unit="image", disable=jax.process_index() != 0)
        with bar, ThreadPoolExecutor(batch_size) as readers:
            for number, start in enumerate(range(0, share, batch_size), 1):
                some = mine[start : start + batch_size]
                keys = zip(readers.map(images.key, some), some, strict=True)
                todo |= {key: i for key, i in keys if key is not None and f"{key}.npy" not in kept}
                while len(todo) >= batch_size or (todo and start + batch_size >= share):
                    batch = [(key, todo.pop(key)) for key in list(todo)[:batch_size]]
                    computed += self._encode(partial(encode, variables), images, batch, batch_size)
                    kept |= {f"{key}.npy" for key, _ in batch}
                bar.update(len(some))
                if stop(number):
                    return False
        log.info("%d of %d image embeddings computed, the rest were there, in %s", computed, len(mine), self.path)
        return True

    def _encode(
        self, encode: Callable[[Any], jax.Array], images: Images, batch: list[tuple[str, int]], batch_size: int
    ) -> int:
        """Computes and stores a batch of embeddings; returns how many of the images could be used."""
        rows = [(key, images.image(i)) for key, i in batch]
        good = [(key, row) for key, row in rows if row is not None]
        if good:
            padded = [row for _, row in good] + [good[0][1]] * (batch_size - len(good))
            fields = {name: np.stack([row[name] for row in padded]) for name in ("image", "input_size")}
            for (key, _), embedding in zip(good, np.asarray(encode(fields)), strict=False):
                self.write(key, embedding)
        return len(good)


def check_cache_config(config: TrainConfig) -> None:
    """Raises ValueError if a config caches embeddings that would change during training."""
    if config.finetune.embedding_cache is None:
        return
    data = config.data
    changed = config.augment.mirror or config.augment.recolour
    if (
        not encoder_is_frozen(config.finetune)
        or not isinstance(data, RecordDataConfig)
        or data.jitter is not None
        or changed
    ):
        raise ValueError(
            "finetune.embedding_cache needs a frozen image encoder: 'image_encoder/.*' in finetune.frozen, "
            "lora_rank 0, and images on disk without data.jitter and augment"
        )
    if config.init_from is None:
        raise ValueError("finetune.embedding_cache needs init_from: embeddings of an untrained encoder are useless")


def encoder_settings(sam: SamConfig) -> dict[str, Any]:
    """All settings of a network that its image embeddings depend on, by name."""
    settings = {name: value for name, value in to_dict(sam).items() if name not in _OF_MASKS}
    settings["image_encoder"] = {
        name: value for name, value in settings["image_encoder"].items() if name not in _WITHOUT_EFFECT
    }
    return settings


def fingerprint(params: Any) -> str:
    """A short hash of a tree of parameters."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]
