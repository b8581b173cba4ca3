"""From a record to a training example: choosing masks, decoding the image, and placing it in the square.

The image is resized as at inference (longest side to S, sides rounded half up, PIL's antialiased bilinear filter).
EXIF orientation is ignored: masks are in pixels as stored, and the official code does not rotate images either.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from sam_jax.data.example import MASK_STRIDE, MIN_CELLS, Example, min_cells, pack_example
from sam_jax.data.records import DataError, NoMaskError, Record
from sam_jax.data.rle_grid import Placement, Size, decode_runs, reduce_runs
from sam_jax.rgb import to_rgb

_JITTER_DRAWS = 8  # draws of scale and crop without a visible mask, before the whole image is used


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes examples; the same (seed, index, record) gives the same bytes in any thread or process.

    Attributes:
        image_size: side S of the padded square, pixels; a multiple of 4.
        masks_per_image: K, masks kept per image; a random K of more.
        seed: of the choice of masks and of the jitter.
        max_mask_share: masks that cover more than this share of the image are dropped.
        jitter: (smallest, largest) scale of large-scale jitter, or None.
        mask_stride: side in pixels of the square of a cell of the masks: 4, 2 or 1.
        scaled_decode: decode JPEGs at reduced size where that leaves enough pixels, see `read_frame`.
        with_image: False leaves the image black, for callers that do not use it: decoding takes most of the time.
    """

    image_size: int
    masks_per_image: int
    seed: int = 0
    max_mask_share: float = 1.0
    jitter: tuple[float, float] | None = None
    mask_stride: int = MASK_STRIDE
    scaled_decode: bool = False
    with_image: bool = True

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % MASK_STRIDE:
            raise ValueError(f"image_size must be a multiple of {MASK_STRIDE}, not {self.image_size}")

    def __call__(self, index: int, record: Record) -> Example:
        """One example of a record.

        Args:
          index: the example's position in the endless stream of all epochs, so that each epoch has new draws.
          record: the image and its masks.

        Raises:
          DataError: as `make`.
        """
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, int(index)))))
        return self.make(record, rng)

    def make(self, record: Record, rng: np.random.Generator) -> Example:
        """One example of a record, with random choices from `rng`.

        Raises:
          DataError: the image cannot be read or a mask is broken; the message names the record.
          NoMaskError: no mask can be trained on.
        """
        try:
            with Image.open(io.BytesIO(record.image)) as opened:
                for placement in self._placements(rng, (opened.height, opened.width)):
                    masks, numbers = self._draw_masks(rng, record, placement)
                    if len(masks):
                        image = self._frame(opened, placement)
                        packed = pack_example(image, masks, record.image_id, self.image_size, self.masks_per_image)
                        return self._with_texts(packed, record, numbers, rng)
        except DataError as error:
            raise DataError(f"{record.name}: {error}") from None
        except UnidentifiedImageError:
            raise DataError(f"{record.name} is not an image that PIL can read; fetch the file again") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{record.name} cannot be decoded ({error}); fetch the file again") from error
        raise NoMaskError(
            f"{record.name}: none of its {len(record.segmentations)} masks can be trained on: each covers more than "
            f"{self.max_mask_share:.0%} of the image or fewer than {MIN_CELLS} cells of {MASK_STRIDE} x "
            f"{MASK_STRIDE} pixels"
        )

    def _placements(self, rng: np.random.Generator, size: Size) -> list[Placement]:
        """Placements of the image, in the order in which to try them."""
        if self.jitter is None:
            return [whole(size, self.image_size)]
        drawn = [jittered(rng, size, self.image_size, self.jitter) for _ in range(_JITTER_DRAWS)]
        return [*drawn, whole(size, self.image_size)]

    def _frame(self, opened: Image.Image, placement: Placement) -> np.ndarray:
        if self.with_image:
            return read_frame(opened, placement, self.image_size, self.scaled_decode)
        h, w = (min(side, self.image_size) for side in placement.resized)
        return np.zeros((h, w, 3), np.uint8)

    def _with_texts(self, example: Example, record: Record, numbers: np.ndarray, rng: np.random.Generator) -> Example:
        """The example with one of the text embeddings of each of its masks, the record's `numbers` (n,)."""
        texts = record.text_embeddings
        if texts is None:
            return example
        rows = np.zeros((self.masks_per_image, texts.shape[-1]), np.float32)
        rows[: len(numbers)] = texts[numbers, rng.integers(texts.shape[1], size=len(numbers))]
        return dataclasses.replace(example, text_embeddings=rows)

    def _draw_masks(
        self, rng: np.random.Generator, record: Record, placement: Placement
    ) -> tuple[np.ndarray, np.ndarray]:
        """Up to `masks_per_image` random masks that can be trained on: (n, S // mask_stride, S // mask_stride) bool,
        and which of the record's they are, (n,) int.

        Masks are decoded in random order until enough are found, so that unused masks cost nothing.
        """
        h, w = placement.size
        grid_size, fewest = self.image_size // self.mask_stride, min_cells(self.mask_stride)
        # A mask must fill more than half of a grid cell to get it: smaller masks vanish for certain.
        ratio = (placement.resized[0] / h) * (placement.resized[1] / w)
        smallest, largest = fewest * self.mask_stride**2 / (2 * ratio), self.max_mask_share * h * w
        order = rng.permutation(len(record.segmentations))
        found, missing = [np.zeros((0, grid_size, grid_size), bool)], self.masks_per_image
        numbers = [np.zeros(0, int)]
        while len(order) and missing:
            chosen, order = np.split(order, [missing])
            runs = decode_runs([record.segmentations[number] for number in chosen], placement.size)
            good = (runs.areas >= smallest) & (runs.areas <= largest)
            runs, chosen = runs.select(good), chosen[good]
            reduced = reduce_runs(runs, placement, grid_size, self.mask_stride)
            large = np.count_nonzero(reduced, axis=(1, 2)) >= fewest
            found.append(reduced[large])
            numbers.append(chosen[large])
            missing -= len(found[-1])
        return np.concatenate(found), np.concatenate(numbers)


def whole(size: Size, image_size: int) -> Placement:
    """Resizes the image's longest side to `image_size`, both sides rounded half up, as SAM does at inference."""
    scale = image_size / max(size)
    h, w = (max(1, int(side * scale + 0.5)) for side in size)
    return Placement(size, (h, w))


def jittered(rng: np.random.Generator, size: Size, image_size: int, scales: tuple[float, float]) -> Placement:
    """Large-scale jitter: `whole` times a uniformly drawn scale, randomly cropped to the frame if larger.

    Source: Ghiasi et al. 2021 (copy-paste); a smaller image is placed top left, where SAM expects it.
    """
    placement = whole(size, max(1, int(image_size * rng.uniform(*scales) + 0.5)))
    top, left = (int(rng.integers(max(side - image_size, 0) + 1)) for side in placement.resized)
    return dataclasses.replace(placement, offset=(top, left))


def read_frame(opened: Image.Image, placement: Placement, image_size: int, scaled_decode: bool = False) -> np.ndarray:
    """The part of an image inside the frame: (h, w, 3) uint8 RGB, both sides at most `image_size`.

    Its pixels are those of inference. With `scaled_decode` they differ slightly: a JPEG is decoded at 1/2, 1/4 or 1/8
    size, which its DCT blocks allow at no cost, as long as that is no smaller than the resized image; the bilinear
    filter does the rest.
    """
    h, w = placement.resized
    drafted = opened.draft(None, (w, h)) if scaled_decode else None
    width, height = drafted[1][2:] if drafted else opened.size
    top, left = placement.offset
    bottom, right = min(top + image_size, h), min(left + image_size, w)
    box = left * width / w, top * height / h, min(right * width / w, width), min(bottom * height / h, height)
    rgb = to_rgb(opened)
    return np.asarray(rgb.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box))
