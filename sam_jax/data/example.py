"""One training example as plain numpy arrays: the common currency of every data set in this room."""

import dataclasses

import numpy as np

PIXEL_MEAN_RGB = (124, 116, 104)  # SAM's pixel mean, rounded: padding that normalises to about zero
MASK_STRIDE = 4  # masks live on the decoder's grid, a quarter of the image side
MIN_CELLS = 8  # a mask of fewer cells of that grid is hardly a shape


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A picture padded to a square, with up to K masks.

    Attributes:
        image: (S, S, 3) uint8 RGB, padded right and bottom with PIXEL_MEAN_RGB.
        masks: (K, S // 4, S // 4) bool, all False where mask_valid is False.
        mask_valid: (K,) bool.
        input_size: (2,) int32, (h, w) of the unpadded picture inside the square, in pixels.
        image_id: () int64.
    """

    image: np.ndarray
    masks: np.ndarray
    mask_valid: np.ndarray
    input_size: np.ndarray
    image_id: np.ndarray

    def to_dict(self) -> dict[str, np.ndarray]:
        """The fields by name, for a loader to stack."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def pad_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """Pads (h, w, 3) uint8 right and bottom with the pixel mean to (image_size, image_size, 3)."""
    h, w = image.shape[:2]
    padded = np.empty((image_size, image_size, 3), np.uint8)
    padded[:h, :w] = image
    padded[:h, w:] = PIXEL_MEAN_RGB
    padded[h:] = np.full((image_size, 3), PIXEL_MEAN_RGB, np.uint8)  # whole rows copy far faster than pixels
    return padded


def reduce_masks(masks: np.ndarray, image_size: int) -> np.ndarray:
    """Pads (n, h, w) bool masks to the square and reduces them by area average > 0.5.

    Returns (n, image_size // 4, image_size // 4) bool.
    """
    n, h, w = masks.shape
    padded = np.zeros((n, image_size, image_size), np.uint8)
    padded[:, :h, :w] = masks
    grid = image_size // MASK_STRIDE
    rows = padded.reshape(n, grid, MASK_STRIDE, image_size).sum(axis=2, dtype=np.uint8)
    cells = rows.reshape(n, grid, grid, MASK_STRIDE).sum(axis=3, dtype=np.uint8)
    return cells > MASK_STRIDE**2 // 2


def make_example(image: np.ndarray, masks: np.ndarray, image_id: int, image_size: int, masks_per_image: int) -> Example:
    """Pads an (h, w, 3) uint8 picture and its (n, h, w) bool masks, n <= masks_per_image.

    Masks that all but vanish on the reduced grid are dropped; the rest are moved to the front.
    """
    reduced = reduce_masks(masks, image_size)
    reduced = reduced[reduced.sum(axis=(1, 2)) >= MIN_CELLS]
    return pack_example(image, reduced, image_id, image_size, masks_per_image)


def pack_example(
    image: np.ndarray, reduced: np.ndarray, image_id: int, image_size: int, masks_per_image: int
) -> Example:
    """Pads an (h, w, 3) uint8 picture, and masks (n, image_size // 4, image_size // 4) bool to masks_per_image."""
    grid = image_size // MASK_STRIDE
    padded = np.zeros((masks_per_image, grid, grid), bool)
    padded[: len(reduced)] = reduced
    return Example(
        image=pad_image(image, image_size),
        masks=padded,
        mask_valid=np.arange(masks_per_image) < len(reduced),
        input_size=np.array(image.shape[:2], np.int32),
        image_id=np.array(image_id, np.int64),
    )
