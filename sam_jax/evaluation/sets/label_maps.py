"""Label images, whose pixel values are object numbers: reading them, and splitting them into masks."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from sam_jax.data.records import DataError
from sam_jax.data.segmentations import Rle, Size
from sam_jax.evaluation.sets.annotation_files import LabelledFile
from sam_jax.ops.rle import encode_mask

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_label_map(path: epath.Path, size: Size) -> np.ndarray:
    """A label image -> (H, W) int64: palette images as their indices, colours as R + 256 G + 65536 B.

    Args:
      path: PNG, or any other lossless format that PIL reads.
      size: (H, W) of the image; the label image must have the same.

    Raises:
      DataError: the label image is missing, not readable or of another size.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            values = np.asarray(image).astype(np.int64)
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that PIL can read; expected a PNG of object numbers") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the labels cannot be read ({error})") from None
    if values.ndim == 3:
        values = values[..., :3] @ np.array([1, 256, 65536][: min(3, values.shape[2])])
    if values.shape != tuple(size):
        h, w = values.shape
        raise DataError(f"{path} has {w}x{h} pixels, its image {size[1]}x{size[0]}; labels must have the image's size")
    return values


def split_label_map(labels: np.ndarray, keep: Callable[[np.ndarray], np.ndarray] | None = None) -> list[Rle]:
    """(H, W) int64 -> one RLE per value, in increasing order.

    Args:
      labels: a label image.
      keep: distinct values (k,) -> which of them are objects, (k,) bool; None means all except 0.
    """
    values, place = np.unique(labels, return_inverse=True)
    wanted = values != 0 if keep is None else keep(values)
    numbers = np.where(wanted, np.cumsum(wanted), 0)[place].reshape(labels.shape)
    found = []
    for number, window in enumerate(ndimage.find_objects(numbers), 1):
        mask = np.zeros(labels.shape, bool)
        mask[window] = numbers[window] == number
        found.append(encode_mask(mask))
    return found


def paired_files(root: epath.Path) -> list[LabelledFile]:
    """images/NAME.jpg (or another format) with labels/NAME.png. Raises DataError if an image has no labels."""
    images = sorted(file for file in (root / "images").iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    labels = {file.stem: file for file in (root / "labels").iterdir() if file.suffix.lower() == ".png"}
    if not images:
        raise DataError(f"{root / 'images'} holds no image; expected NAME.jpg there and NAME.png in labels/")
    missing = [file for file in images if file.stem not in labels]
    if missing:
        more = f", nor have {len(missing) - 1} others" if len(missing) > 1 else ""
        wanted = root / "labels" / f"{missing[0].stem}.png"
        raise DataError(f"{missing[0]} has no {wanted}{more}; add it or remove the image")
    return [LabelledFile(file, labels[file.stem]) for file in images]
