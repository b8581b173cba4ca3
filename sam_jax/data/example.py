"""One training example as plain numpy arrays, which every data set gives."""

import dataclasses

import numpy as np

PIXEL_MEAN_RGB = (124, 116, 104)  # SAM's pixel mean, rounded: padding that normalises to about zero
MASK_STRIDE = 4  # masks are on the decoder's grid, a quarter of the image side
MIN_CELLS = 8  # of that grid; a smaller mask has hardly any shape


def min_cells(stride: int) -> int:
    """The number of cells of `stride` pixels that have the area of MIN_CELLS of the decoder's grid."""
    return MIN_CELLS * (MASK_STRIDE // stride) ** 2


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """An image padded to a square, with up to K masks.

    Attributes:
        image: (S, S, 3) uint8 RGB, padded right and bottom with PIXEL_MEAN_RGB.
        masks: (K, S // stride, S // stride) bool, all False where mask_valid is False; stride is 4 unless a stage's
            `mask_stride` says otherwise.
        mask_valid: (K,) bool.
        input_size: (2,) int32, (h, w) of the unpadded image inside the square, in pixels.
        image_id: () int64.
        text_embeddings: (K, E) float32, zeros where mask_valid is False; None where records have none.
    """

    image: np.ndarray
    masks: np.ndarray
    mask_valid: np.ndarray
    input_size: np.ndarray
    image_id: np.ndarray
    text_embeddings: np.ndarray | None = None

    def to_dict(self) -> dict[str, np.ndarray]:
        """The fields by name, for a loader to stack; without those that are None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}


def pad_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """Pads (h, w, 3) uint8 right and bottom with the pixel mean to (image_size, image_size, 3)."""
    h, w = image.shape[:2]
    padded = np.empty((image_size, image_size, 3), np.uint8)
    padded[:h, :w] = image
    padded[:h, w:] = PIXEL_MEAN_RGB
    padded[h:] = np.full((image_size, 3), PIXEL_MEAN_RGB, np.uint8)  # whole rows copy far faster than pixels
    return padded


def reduce_masks(masks: np.ndarray, image_size: int, stride: int = MASK_STRIDE) -> np.ndarray:
    """Pads (n, h, w) bool masks to the square and reduces them: True where a mask fills more than half of a cell.

    Returns (n, image_size // stride, image_size // stride) bool.
    """
    n, h, w = masks.shape
    padded = np.zeros((n, image_size, image_size), np.uint8)
    padded[:, :h, :w] = masks
    # Sums of whole planes: numpy's own over short axes take several times as long.
    rows = sum((padded[:, start::stride] for start in range(1, stride)), padded[:, ::stride])
    cells = sum((rows[:, :, start::stride] for start in range(1, stride)), rows[:, :, ::stride])
    return cells > stride**2 // 2


def make_example(
    image: np.ndarray,
    masks: np.ndarray,
    image_id: int,
    image_size: int,
    masks_per_image: int,
    stride: int = MASK_STRIDE,
) -> Example:
    """Pads an (h, w, 3) uint8 image and its (n, h, w) bool masks, n <= masks_per_image.

    Masks with fewer than `min_cells(stride)` cells on the reduced grid are dropped; the rest are moved to the front.
    """
    reduced = reduce_masks(masks, image_size, stride)
    reduced = reduced[reduced.sum(axis=(1, 2)) >= min_cells(stride)]
    return pack_example(image, reduced, image_id, image_size, masks_per_image)


def pack_example(
    image: np.ndarray, reduced: np.ndarray, image_id: int, image_size: int, masks_per_image: int
) -> Example:
    """Pads an (h, w, 3) uint8 image to the square, and reduced masks (n, S // stride, S // stride) bool to K."""
    padded = np.zeros((masks_per_image, *reduced.shape[1:]), bool)
    padded[: len(reduced)] = reduced
    return Example(
        image=pad_image(image, image_size),
        masks=padded,
        mask_valid=np.arange(masks_per_image) < len(reduced),
        input_size=np.array(image.shape[:2], np.int32),
        image_id=np.array(image_id, np.int64),
    )
