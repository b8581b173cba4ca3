"""What any image of Pillow looks like in 8-bit RGB: one answer for inference, training and evaluation."""

from __future__ import annotations

import numpy as np
from PIL import Image

# The values that stand for white in containers of more than 8 bits.
_WHITES = (255.0, 65535.0)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> mode RGB.

    Grey becomes RGB and alpha is dropped; the colours below it are kept, but where they were multiplied by it and it is
    0. The modes I, I;16 and F do not say which value is white. It is the smallest of 1 (F alone), 255 and 65535 that no
    pixel exceeds: people keep shares, 8 and 16 bits in them, and an 8-bit image then looks the same in each. Values
    beyond 16 bits have no such custom: their largest is white, since any fixed one would make most images black.
    Negative values and NaN are black, infinity is white.

    Args:
      image: is not changed. EXIF and colour profiles are not heeded.

    Raises:
      OSError: its pixels cannot be decoded.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode == "F")).convert("RGB")
    if image.mode == "La":  # Pillow goes from it to LA alone
        image = image.convert("LA")
    if image.mode in ("P", "PA"):  # it warns of transparent palettes on the way to RGB
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray, has_shares: bool) -> np.ndarray:
    """(h, w) of any numbers -> uint8, to the nearest."""
    values = values.astype(np.float64)
    largest = values.max(initial=0.0, where=np.isfinite(values))
    white = next((top for top in ((1.0,) if has_shares else ()) + _WHITES if largest <= top), largest)
    shares = np.clip(np.nan_to_num(values, posinf=white) / white, 0, 1)
    return (shares * 255.0 + 0.5).astype(np.uint8)
