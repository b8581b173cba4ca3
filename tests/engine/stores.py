"""Small stores, and masks to put into them."""

import uuid

import numpy as np
from PIL import Image

from sam_jax.engine.rows import MaskDraft
from sam_jax.engine.store import init_store
from sam_jax.ops.rle import encode_mask
from tests.predicting import make_image

SIZE = (30, 40)


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def write_images(folder, count, size=SIZE, seed=0):
    """Image files of different contents."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"image_{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(make_image(*size, seed + number)).save(path)
    return paths


def make_store(tmp_path, count=3, clock=None, **config):
    """An open store with images; without any that are held out, unless asked for."""
    from sam_jax.config import EngineConfig

    store = init_store(tmp_path / "store", EngineConfig(**{"hold_out": 0.0} | config))
    if clock is not None:
        store.clock = clock
    for path in write_images(tmp_path / "images", count):
        store.add_image(path)
    return store


def rectangle(y0, x0, y1, x1, size=SIZE):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def draft(mask=None, **fields):
    """A mask to save."""
    mask = rectangle(5, 5, 15, 20) if mask is None else mask
    return MaskDraft(**{"key": str(uuid.uuid4()), "segmentation": encode_mask(mask)} | fields)
