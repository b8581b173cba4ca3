"""Converts Pillow images of any mode to 8-bit RGB, the same for inference, training and evaluation."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Possible values of white in modes of more than 8 bits.
_WHITES = (255.0, 65535.0)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> mode RGB.

    Grey becomes RGB. Alpha is dropped and the colours are kept, except where they are premultiplied with an alpha of 0.
    The modes I, I;16 and F do not define white. It is the smallest of 1 (only in F), 255 and 65535 that no pixel
    exceeds: these modes hold values in 0..1, 8-bit or 16-bit values, and an 8-bit image looks the same in each. For
    values beyond 16 bits there is no convention: the largest is white, since any fixed value would make most images
    black. Negative values and NaN are black, infinity is white.

    Args:
      image: is not changed. EXIF and colour profiles are ignored.

    Raises:
      OSError: the pixels cannot be decoded.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image), image.mode == "F")).convert("RGB")
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    if image.mode in ("P", "PA"):  # Pillow warns about transparent palettes if converted to RGB directly
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray, has_shares: bool) -> np.ndarray:
    """(h, w) of any numbers -> (h, w) uint8, rounded."""
    values = values.astype(np.float64)
    largest = values.max(initial=0.0, where=np.isfinite(values))
    white = next((top for top in ((1.0,) if has_shares else ()) + _WHITES if largest <= top), largest)
    shares = np.clip(np.nan_to_num(values, posinf=white) / white, 0, 1)
    return (shares * 255.0 + 0.5).astype(np.uint8)
