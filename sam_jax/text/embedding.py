"""Towers at work: texts and crops to embeddings, a fixed number at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sam_jax.config import TowersConfig
from sam_jax.text.tokenizers import Tokenizer
from sam_jax.text.towers import Towers

_TEXTS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedTowers:
    """Towers with their variables and their tokenizer; `load_towers` makes them of a directory.

    Attributes:
      dtype: compute dtype; embeddings are float32 in any case.
    """

    config: TowersConfig
    variables: dict[str, Any]
    tokenizer: Tokenizer
    dtype: str = "float32"

    @cached_property
    def module(self) -> Towers:
        """The network."""
        return Towers(self.config, jnp.dtype(self.dtype))

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        return self.config.embed_dim

    @cached_property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return math.exp(np.asarray(self.variables["params"]["logit_scale"]).item())

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> (n, embed_dim) float32 of length one. Raises TextError for a text that cannot be used."""
        tokens = self.tokenizer(texts)
        found = [_embed_tokens(self.module, self.variables, rows) for rows in _batches(tokens, _TEXTS_AT_ONCE)]
        return _joined(found, len(texts), self.embed_dim)

    def embed_images(
        self, images: np.ndarray, tokens_inside: np.ndarray | None = None, batch_size: int = 32, progress: bool = False
    ) -> np.ndarray:
        """Images -> (n, embed_dim) float32 of length one.

        Args:
          images: (n, S, S, 3) uint8, S the side of the image tower.
          tokens_inside: (n, grid, grid) bool, as of `Towers.embed_images`.
          batch_size: images at once.
          progress: shows a bar where there is a terminal.

        Raises:
          ValueError: images of another shape or dtype.
        """
        side = self.config.vision.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images have dtype {images.dtype} and shape {images.shape}; expected (n, {side}, {side}, 3) of uint8"
            )
        parts = [images] if tokens_inside is None else [images, tokens_inside]
        batches = zip(*(_batches(part, batch_size) for part in parts), strict=True)
        total = -(-len(images) // batch_size)
        bar = tqdm(batches, total=total, desc="crops", unit="batch", disable=None if progress else True, leave=False)
        found = [np.asarray(_embed_images(self.module, self.variables, *batch)) for batch in bar]
        return _joined(found, len(images), self.embed_dim)

    def on_device(self, device: jax.Device) -> LoadedTowers:
        """The same, with its variables on a device."""
        return dataclasses.replace(self, variables=jax.device_put(self.variables, device))


@partial(jax.jit, static_argnums=0)
def _embed_tokens(module: Towers, variables: Any, tokens: jax.Array) -> jax.Array:
    found: Any = module.apply(variables, tokens, method="embed_tokens")
    return found


@partial(jax.jit, static_argnums=0)
def _embed_images(
    module: Towers, variables: Any, images: jax.Array, tokens_inside: jax.Array | None = None
) -> jax.Array:
    mean, deviation = (jnp.asarray(x, jnp.float32) for x in (module.config.pixel_mean, module.config.pixel_std))
    normalised = (images.astype(jnp.float32) - mean) / deviation
    found: Any = module.apply(variables, normalised, tokens_inside, method="embed_images")
    return found


def _batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows, `size` at a time; the last is repeated to fill the last batch, which so needs no program of its own."""
    for start in range(0, len(rows), size):
        yield rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]


def _joined(parts: Sequence[Any], count: int, width: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, width), np.float32), *map(np.asarray, parts)])[:count]
