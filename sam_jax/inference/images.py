"""Reads images of all kinds: with EXIF rotation, grey, with alpha, 16 bits deep, too large, or broken."""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from sam_jax.rgb import to_rgb

# About 13,000 x 13,000; larger files are probably decompression bombs or mistakes.
MAX_PIXELS = 178_956_970


class _Quiet:
    """A context in which Pillow gives no warnings (odd tags do not matter here) and has no size limit (ours names the
    remedy). Both settings are process-wide: the last thread to leave restores them."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


_QUIET = _Quiet()


class ImageError(ValueError):
    """An image that cannot be used; the message names the file and the remedy."""


def read_image(path: epath.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image, upright, as (H, W, 3) uint8 RGB.

    EXIF rotation is applied, grey becomes RGB, alpha is dropped, deeper values are scaled to 8 bits (see `rgb.to_rgb`).

    Args:
      path: local or gs://.
      max_pixels: the largest image to decode, in pixels.

    Raises:
      ImageError: missing, unreadable, truncated or too large.
    """
    file = epath.Path(path)
    if not file.exists():
        raise ImageError(f"{path} does not exist; expected an image (JPEG, PNG, WebP, ...)")
    if file.is_dir():
        raise ImageError(f"{path} is a directory; expected an image (JPEG, PNG, WebP, ...)")
    return decode_image(file.read_bytes(), path, max_pixels)


def decode_image(
    content: bytes, name: epath.PathLike, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> np.ndarray:
    """A file's content as `read_image` gives it: (H, W, 3) uint8 RGB, upright.

    Args:
      content: of an image file.
      name: what errors call it.
      max_pixels: the largest image to decode, in pixels.
      formats: Pillow's names of those that are read; None is all that it knows.

    Raises:
      ImageError: no image, truncated or too large.
    """
    try:
        with _QUIET, Image.open(io.BytesIO(content), formats=formats) as image:
            _check_size(name, image.size, max_pixels)
            image.load()
            return np.array(to_rgb(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that PIL can read; convert it to JPEG or PNG") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} is broken ({error}); fetch or export it again") from error


def as_array(image: np.ndarray | Image.Image, image_format: str = "RGB") -> np.ndarray:
    """Checks an image, and returns its pixels: (H, W, 3) uint8, channels in the order of `image_format`.

    Args:
      image: (H, W, 3) uint8, or a Pillow image of any mode. Pillow images are treated like files by `read_image`: EXIF
        rotation is applied, and they become RGB.
      image_format: of an array, "RGB" or "BGR"; for Pillow images it must be "RGB".

    Raises:
      ValueError: another type, dtype, shape or format.
      ImageError: Pillow cannot decode the image.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format is {image_format!r}; expected 'RGB' or 'BGR'")
    if isinstance(image, Image.Image):
        if image_format != "RGB":
            raise ValueError(f"image_format is {image_format!r}; expected 'RGB', as a PIL image knows its channels")
        try:
            with _QUIET:
                image = np.array(to_rgb(ImageOps.exif_transpose(image)))
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageError(f"the PIL image cannot be decoded ({error}); open or make it again") from error
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is a {type(image).__name__}; expected a numpy array (H, W, 3) of uint8 or a PIL image")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image has dtype {image.dtype} and shape {image.shape}; expected (H, W, 3) uint8 in 0..255; "
            "sam_jax.read_image reads grey, RGBA and 16-bit files as that"
        )
    return image


def _check_size(path: epath.PathLike, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{path} has {width}x{height} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            "shrink it, or raise max_pixels if you trust the file"
        )


def read_mask_input(path: epath.PathLike) -> np.ndarray:
    """Reads mask logits (1, 4h, 4w) from a .npy file; `predict` checks the shape. Raises ImageError if it cannot."""
    file = epath.Path(path)
    if not file.exists():
        raise ImageError(f"{path} does not exist; expected a .npy file of mask logits")
    try:
        return np.lib.format.read_array(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise ImageError(f"{path} is not a .npy array ({error}); save low_res_masks[i:i+1] with numpy.save") from error
