"""Indexed PNGs as DAVIS publishes them: the value of a pixel is the number of its object, the palette its colour."""

from __future__ import annotations

import io

import numpy as np
from etils import epath
from PIL import Image

from sam_jax.files import write_atomically

VOID = 255


def davis_palette() -> np.ndarray:
    """(256, 3) uint8 RGB: the bits of a number, spread over the channels from the highest bit down (PASCAL VOC's)."""
    numbers, palette = np.arange(256), np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= (((numbers >> channel) & 1) << (7 - level)).astype(np.uint8)
        numbers = numbers >> 3
    return palette


def write_labels(path: epath.PathLike, labels: np.ndarray) -> None:
    """Writes labels (H, W) uint8 as an indexed PNG."""
    image = Image.fromarray(labels, "L")
    image.putpalette(davis_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def read_labels(path: epath.PathLike) -> np.ndarray:
    """Labels (H, W) uint8 of an indexed or grey PNG. Raises ValueError if it is neither."""
    try:
        with Image.open(io.BytesIO(epath.Path(path).read_bytes())) as image:
            if image.mode not in ("P", "L", "1"):
                raise ValueError(f"{path} has mode {image.mode}; expected an indexed or grey PNG of object numbers")
            return np.array(image.convert("L") if image.mode == "1" else image)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); expected an indexed PNG of object numbers") from error
