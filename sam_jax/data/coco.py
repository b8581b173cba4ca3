"""Data sets in COCO's instances format: one JSON file, and a directory of images."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from etils import epath
from PIL import Image

from sam_jax.data.coco_files import CocoImage, ImageId, read_coco
from sam_jax.data.coco_places import CocoPlaces
from sam_jax.data.records import DataError, Record
from sam_jax.data.segmentations import to_rles


class CocoInstances:
    """A `RecordSource` of a COCO instances file: `coco_files` reads the file, `coco_places` finds the images.

    Attributes:
        image_ids: (n,) int64, in the order of the file; an id that is not such an integer is hashed to one.
    """

    def __init__(self, json_path: epath.PathLike, image_dir: epath.PathLike | None = None):
        """Reads the file; images are read and polygons converted when accessed.

        Args:
            json_path: local or gs://.
            image_dir: directory that each `file_name` is relative to; None looks for images beside the file.

        Raises:
            DataError: the file is not in COCO's format, or its images cannot be found.
        """
        self._path = epath.Path(json_path)
        self._images = read_coco(self._path)
        self._places = CocoPlaces(self._path, self._images, () if image_dir is None else (image_dir,))
        self.image_ids = np.array([_number(image.image_id) for image in self._images], np.int64)
        if len(np.unique(self.image_ids)) < len(self.image_ids):
            raise DataError(f"{self._path}: two of its image ids hash to the same number; number the images instead")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        image, name = self._images[index], f"{self._path}: {self._images[index].name}"
        content = self._places.read(index)
        masks = to_rles(image.segmentations(), _size(image, content, name), name)
        return Record(name, int(self.image_ids[index]), content, tuple(masks))


def _size(image: CocoImage, content: bytes, name: str) -> tuple[int, int]:
    """(h, w) from the file, or from the image if the file does not say."""
    if image.height is not None and image.width is not None:
        return image.height, image.width
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: its size cannot be read ({error}); fetch the image again") from None


def _number(image_id: ImageId) -> int:
    if isinstance(image_id, int) and -(2**63) <= image_id < 2**63:
        return image_id
    return int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], "big") >> 1
