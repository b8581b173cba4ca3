"""Groups of objects that are segmented together: prompts in, masks in pixels of the images out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np

from sam_jax.evaluation import programs
from sam_jax.evaluation.metrics import mask_boundary, mask_iou
from sam_jax.inference.encoding import EncodedImages, encode_images
from sam_jax.models.sam import Sam
from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import decode_mask
from sam_jax.ops.transforms import (
    boxes_to_input_frame,
    pad_to_square,
    resize_longest_side,
    resized_size,
    to_input_frame,
)
from sam_jax.structs import MaskPredictions, Prompts

Size = tuple[int, int]
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, eq=False)
class Engine:
    """A model, and the host threads that run beside it."""

    model: Sam
    variables: Any
    pool: ThreadPoolExecutor

    def map(self, work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """Applies `work` to all items, in threads."""
        return list(self.pool.map(work, items))

    def encode(self, images: Sequence[np.ndarray], batch: int) -> EncodedImages:
        """Encodes images (H, W, 3) uint8 of any size, padded to a batch of `batch`."""
        side = self.model.config.image_size
        frames = np.zeros((batch, side, side, 3), np.uint8)
        sizes = np.full((batch, 2), side, np.int32)
        for number, resized in enumerate(self.map(lambda image: resize_longest_side(image, side), images)):
            frames[number], sizes[number] = pad_to_square(resized, side), resized.shape[:2]
        return encode_images(self.model, self.variables, frames, sizes)


class Target:
    """An object's true mask.

    Attributes:
      image: index of the object's image in its batch.
      mask: (H, W) bool, in pixels of the image.
    """

    def __init__(self, image: int, segmentation: dict[str, Any]) -> None:
        self.image, self.mask = image, decode_mask(segmentation)

    @cached_property
    def boundary(self) -> np.ndarray:
        """(H, W) bool, see `metrics.mask_boundary`."""
        return mask_boundary(self.mask)

    @cached_property
    def box(self) -> np.ndarray:
        """(4,) float64 xyxy in pixels of the image: the outer edges of the outermost pixels, as in COCO boxes."""
        return (mask_to_box(self.mask) + np.array([0, 0, 1, 1])).astype(np.float64)

    def iou(self, predicted: np.ndarray) -> float:
        """IoU with a predicted mask (H, W) bool."""
        return mask_iou(self.mask, predicted)

    def boundary_iou(self, predicted: np.ndarray) -> float:
        """Boundary IoU with a predicted mask (H, W) bool."""
        return mask_iou(self.boundary, mask_boundary(predicted))


class ObjectGroup:
    """Up to R x N objects of one batch of images. Methods take and return one entry per object (n, ...).

    The N objects of a row share an image; unused rows and slots are padding.

    Args:
      engine: the model.
      encoded: the images of the batch.
      targets: n objects, grouped by image.
      shape: (R, N).
    """

    def __init__(
        self, engine: Engine, encoded: EncodedImages, targets: Sequence[Target], shape: tuple[int, int]
    ) -> None:
        self.engine, self.encoded, self.targets, self.shape = engine, encoded, targets, shape
        self._place = _places([target.image for target in targets], shape)
        self._image_of = np.zeros(shape[0], np.int32)
        self._image_of[self._place[0]] = [target.image for target in targets]
        config = engine.model.config
        self._original = [target.mask.shape for target in targets]
        self._input = [resized_size(size, config.image_size) for size in self._original]

    def boxes(self) -> np.ndarray:
        """The objects' tight boxes: (n, 4) float64 xyxy in pixels of the image."""
        return np.array([target.box for target in self.targets])

    def predict(
        self,
        coords: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        mask_inputs: jax.Array | None = None,
    ) -> MaskPredictions:
        """All masks of all objects, (R, N, M, ...) on the device.

        Args:
          coords: (n, P, 2) x, y in pixels of the image; labels: (n, P) 1, 0 or -1 for absent. None means one absent
            point, so that boxes alone reuse the compiled program of a first click.
          boxes: (n, 4) xyxy in pixels of the image.
          mask_inputs: (R, N, 1, l, l) logits, from `choose`.
        """
        n, has_box = len(self.targets), boxes is not None
        if coords is None or labels is None:
            coords, labels = np.zeros((n, 1, 2)), np.full((n, 1), -1)
        if boxes is None:
            boxes = np.zeros((n, 4))
        sizes = list(zip(self._original, self._input, strict=True))
        points = [to_input_frame(xy, *size) for xy, size in zip(coords, sizes, strict=True)]
        prompts = Prompts(
            point_coords=self._spread(np.array(points, np.float32)),
            point_labels=self._spread(labels.astype(np.int32), -1),
            boxes=self._in_frame(boxes),
            box_valid=self._spread(np.full(n, has_box), False),
            mask_inputs=None if mask_inputs is None else mask_inputs[:, :, 0],
        )
        engine = self.engine
        return programs.decode(engine.model, engine.variables, self.encoded.embeddings, self._image_of, prompts)

    def choose(self, predictions: MaskPredictions, index: np.ndarray) -> tuple[jax.Array, np.ndarray]:
        """Mask `index` (n,) of each object: logits (R, N, 1, l, l) on the device, predicted IoU (n,) on the host."""
        one = programs.choose(predictions, self._spread(index.astype(np.int32)))
        return one.low_res_masks, self.gather(one.iou_predictions)[:, 0]

    def gather(self, values: jax.Array) -> np.ndarray:
        """(R, N, ...) -> (n, ...) on the host."""
        return np.asarray(values)[self._place]

    def in_image(self, low_res_masks: jax.Array, boxes: np.ndarray | None = None) -> list[np.ndarray]:
        """Logits (R, N, M, l, l) -> masks (M, H, W) bool of each object, in pixels of its image.

        Args:
          boxes: (n, 4) xyxy in pixels of the image if they were the prompts: edge refinement stays inside them.
        """
        config, pixels = self.engine.model.config, self.encoded.pixels
        if pixels is not None:
            limits, patch = None if boxes is None else self._in_frame(boxes), config.image_encoder.patch_size
            low_res_masks = programs.refine_edges(low_res_masks, pixels, self._image_of, limits, patch)
        first = np.zeros(self.shape[0], int)  # an object of each row; empty rows use the first object
        first[self._place[0]] = np.arange(len(self.targets))
        side = low_res_masks.shape[-1]
        rows, cols = programs.enlarging_matrices(
            side, config.image_size, [self._input[i] for i in first], [self._original[i] for i in first]
        )
        packed = np.asarray(programs.enlarge(low_res_masks, rows, cols, config.mask_threshold))

        def unpack(number: int) -> np.ndarray:
            h, w = self._original[number]
            bits = packed[self._place[0][number], self._place[1][number], :, :h]
            return np.unpackbits(bits, axis=-1, count=w).astype(bool)

        return self.engine.map(unpack, range(len(self.targets)))

    def _in_frame(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) in pixels of the image -> (R, N, 4) float32 in pixels of the input frame."""
        places = zip(boxes, self._original, self._input, strict=True)
        return self._spread(np.array([boxes_to_input_frame(*place) for place in places], np.float32))

    def _spread(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """(n, ...) -> (R, N, ...)."""
        out = np.full((*self.shape, *values.shape[1:]), fill, values.dtype)
        out[self._place] = values
        return out


def split_into_rows(image_of: Sequence[int], shape: tuple[int, int]) -> list[slice]:
    """Splits objects, grouped by image, into runs that fit into (R, N); a row holds objects of one image only."""
    cuts, start, rows, used, last = [], 0, 0, 0, None
    for number, image in enumerate(image_of):
        if image != last or used == shape[1]:
            if rows == shape[0]:
                cuts.append(slice(start, number))
                start, rows = number, 0
            rows, used, last = rows + 1, 0, image
        used += 1
    return [*cuts, slice(start, len(image_of))]


def _places(image_of: Sequence[int], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and slot of each object, (n,) int each."""
    rows, slots, last = list[int](), list[int](), None
    for image in image_of:
        new = image != last or slots[-1] + 1 == shape[1]
        rows.append((rows[-1] + 1 if rows else 0) if new else rows[-1])
        slots.append(0 if new else slots[-1] + 1)
        last = image
    return np.array(rows, int), np.array(slots, int)
