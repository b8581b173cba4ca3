"""Images that clients have sent, encoded, by id; the least recently used ones go when memory is full."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections import OrderedDict

import jax

from sam_jax.inference.encoding import EncodedImages
from sam_jax.models.mask_decoder import PreparedEmbeddings
from sam_jax.serving.refusals import Refusal

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImage:
    """An image as the server keeps it.

    Attributes:
      content: the file as it came, which everything mode decodes again.
      original_size: (H, W) in pixels, upright. input_size: (h, w) as resized into the model's frame.
      encoded: with a leading axis of 1. prepared: its embedding, for the mask decoder.
    """

    content: bytes
    original_size: Size
    input_size: Size
    encoded: EncodedImages
    prepared: PreparedEmbeddings

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return len(self.content) + sum(x.nbytes for x in jax.tree.leaves((self.encoded, self.prepared)))


class ImageStore:
    """A bounded cache of images. Ids are random, so that nobody finds those of others. Safe for threads."""

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._images)

    def put(self, image: StoredImage) -> str:
        """Keeps an image; its id. Raises Refusal (413) for one that the cache is too small for."""
        if image.num_bytes > self._max_bytes:
            raise Refusal(413, "the image and its embedding are larger than the server's whole cache")
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._images[name] = image
            self.num_bytes += image.num_bytes
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._images.popitem(last=False)[1].num_bytes
        return name

    def get(self, name: str) -> StoredImage:
        """The image of an id. Raises Refusal (404)."""
        with self._lock:
            image = self._images.get(name)
            if image is None:
                raise Refusal(404, "no image has this id, or it has made room for others; send the image again")
            self._images.move_to_end(name)
            return image

    def remove(self, name: str) -> None:
        """Forgets an image. Raises Refusal (404)."""
        self.get(name)
        with self._lock:
            image = self._images.pop(name, None)
            self.num_bytes -= 0 if image is None else image.num_bytes
