"""Image embeddings of a whole data set, computed once and kept on disk, for training behind a frozen image encoder."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from sam_jax.files import write_atomically
from sam_jax.models.sam import Sam
from sam_jax.training.step import image_embeddings

log = logging.getLogger(__name__)

_INFO = "cache.json"


class EmbeddingCache:
    """`<directory>/<image size>/<image id>.npy`, (h, w, C) float16 each, and a note of the encoder that they are from.

    Raises:
      ValueError: the directory holds embeddings of another encoder.
    """

    def __init__(self, directory: epath.PathLike, image_size: int, encoder_params: Any) -> None:
        self.path = epath.Path(directory) / str(image_size)
        self.path.mkdir(parents=True, exist_ok=True)
        info = self.path / _INFO
        mine = fingerprint(encoder_params)
        if info.exists():
            theirs = json.loads(info.read_text())["encoder"]
            if theirs != mine:
                raise ValueError(
                    f"{self.path} holds embeddings of another image encoder; choose another embedding_cache"
                )
        elif jax.process_index() == 0:
            info.write_text(json.dumps({"encoder": mine}) + "\n")

    def missing(self, image_ids: np.ndarray) -> np.ndarray:
        """Positions of the ids that have no embedding yet."""
        have = {file.name for file in self.path.iterdir()} if self.path.exists() else set()
        return np.flatnonzero([f"{image_id}.npy" not in have for image_id in image_ids])

    def write(self, image_id: int, embedding: np.ndarray) -> None:
        """Keeps one embedding, atomically."""
        buffer = io.BytesIO()
        np.save(buffer, embedding.astype(np.float16))
        write_atomically(self.path / f"{image_id}.npy", buffer.getvalue())

    def fill(
        self,
        model: Sam,
        variables: Any,
        picture: Callable[[int], dict[str, np.ndarray] | None],
        image_ids: np.ndarray,
        batch_size: int,
    ) -> None:
        """Computes what is missing of this host's share; what is there is not touched, so that a stopped run goes on.

        Args:
          picture: picture(i) is a dictionary with `image` (S, S, 3) and `input_size` (2,) of image_ids[i], or None
            where the image cannot be used.
        """
        todo = self.missing(image_ids)
        todo = todo[todo % jax.process_count() == jax.process_index()]
        if not len(todo):
            return
        encode = jax.jit(partial(image_embeddings, model))
        log.info("computing %d of %d image embeddings into %s", len(todo), len(image_ids), self.path)
        bar = tqdm(total=len(todo), desc="embeddings", unit="image", disable=jax.process_index() != 0)
        for start in range(0, len(todo), batch_size):
            rows = [(int(image_ids[i]), picture(int(i))) for i in todo[start : start + batch_size]]
            good = [(image_id, row) for image_id, row in rows if row is not None]
            if good:
                padded = [row for _, row in good] + [good[0][1]] * (batch_size - len(good))
                batch = {name: np.stack([row[name] for row in padded]) for name in ("image", "input_size")}
                embeddings = np.asarray(encode(variables, batch))
                for (image_id, _), embedding in zip(good, embeddings, strict=False):
                    self.write(image_id, embedding)
            bar.update(len(rows))
        bar.close()


def fingerprint(params: Any) -> str:
    """A short hash of a tree of parameters."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]
