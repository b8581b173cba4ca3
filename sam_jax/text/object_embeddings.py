"""What stands for a text at training: the image tower's embedding of an object, from crops that differ.

Source: SAM paper, appendix D.6.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from sam_jax.config import TextPromptConfig, to_dict
from sam_jax.ops.rle import decode_mask
from sam_jax.text.crops import Crop, crop_mask
from sam_jax.text.embedding import LoadedTowers

# Settings that say where things lie, as opposed to what is made of them.
_PLACES = ("towers", "cache")


def embed_objects(
    towers: LoadedTowers,
    config: TextPromptConfig,
    image: np.ndarray,
    segmentations: Sequence[dict[str, Any]],
    seed: int,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """Embeddings of an image's objects.

    Args:
      image: (H, W, 3) uint8.
      segmentations: compressed COCO RLEs of the image's size.
      seed: of the enlargements and backgrounds.

    Returns:
      (n, looks, E) float16 of length one; NaN for masks smaller than `config.min_area`.
    """
    found = np.full((len(segmentations), config.looks, towers.embed_dim), np.nan, np.float16)
    rng = np.random.default_rng(seed)
    shape = len(segmentations), config.looks
    enlarge = rng.uniform(1.0, config.max_enlarge, shape)
    background = rng.uniform(size=shape) < config.keep_background

    def looks(number: int) -> list[Crop]:
        mask = decode_mask(segmentations[number])
        if mask.sum() < max(1, config.min_area):
            return []
        draws = zip(enlarge[number], background[number], strict=True)
        return [crop_mask(towers.config, image, mask, by, bool(keep)) for by, keep in draws]

    crops = list(pool.map(looks, range(len(segmentations))))
    if flat := [crop for part in crops for crop in part]:
        inside = np.stack([crop.tokens_inside for crop in flat]) if config.attend_to_mask else None
        embedded = towers.embed_images(np.stack([crop.pixels for crop in flat]), inside)
        found[[bool(part) for part in crops]] = embedded.reshape(-1, config.looks, towers.embed_dim)
    return found


def settings_key(towers: LoadedTowers, config: TextPromptConfig) -> str:
    """16 hexadecimal digits that stand for all else that embeddings follow from: towers, their weights, settings."""
    said = {name: value for name, value in to_dict(config).items() if name not in _PLACES}
    digest = hashlib.sha256(json.dumps([said, to_dict(towers.config), towers.dtype], sort_keys=True).encode())
    for leaf in jax.tree.leaves(towers.variables):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]
