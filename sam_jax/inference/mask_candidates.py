"""The device's part of everything mode: from a crop and a grid of points to the masks that pass the filters.

All shapes are fixed: points are decoded in batches of one size. Only masks that pass the predicted-IoU filter are
enlarged to the crop, scored, boxed and packed to bits. This is done in chunks, so there is no limit on the number of
masks. Bits stay on the device until non-maximum suppression is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.config import AmgConfig
from sam_jax.inference.encoding import EncodedImages, encode_and_wait, prepare_embeddings
from sam_jax.inference.point_decoding import decode_batches, decode_points, in_groups
from sam_jax.models.sam import Sam
from sam_jax.ops.boxes import near_crop_edge
from sam_jax.ops.crf import CELL, CrfPixels, refine_masks
from sam_jax.ops.mask_bits import Enlarging, Seen, bits_inside, enlarging, fits_kernel, see, see_many, see_stacked
from sam_jax.ops.masks import axis_matrix, bilinear_matrix
from sam_jax.ops.planes import SIDE, join_subpixels, split_subpixels
from sam_jax.ops.products import einsum
from sam_jax.ops.transforms import pad_to_square, resize_longest_side, to_input_frame

# Sides of enlarged masks are padded to multiples of this: images of similar size share programs, and bits fill bytes.
SIDE_STEP = 64
# Mask pixels per chunk, one bit each: 64 MiB.
CHUNK_PIXELS = 1 << 29
MAX_CHUNK, MIN_CHUNK = 64, 4
CROPS_AT_ONCE = 4

Box = tuple[int, int, int, int]
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Crop:
    """An encoded crop.

    Attributes:
      box: xyxy in pixels of the image.
      image_size: (H, W) of the image, pixels.
      input_size: (h, w) of the resized crop in the input frame, pixels.
      encoded: without a leading axis.
    """

    box: Box
    image_size: Size
    input_size: Size
    encoded: EncodedImages

    @property
    def size(self) -> Size:
        """(H, W) of the crop, pixels."""
        return self.box[3] - self.box[1], self.box[2] - self.box[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Masks that passed the filters, of one crop or of several.

    Attributes:
      pixels: for each mask, a chunk on the device and the mask's row in it.
      boxes: (n, 4) int64 xyxy, last pixel inclusive, and crop_boxes: (n, 4) int64 xyxy, both in pixels of the image.
      iou, stability: (n,) float32.
      points: (n, 2) float64 x, y in pixels of the image.
      area: (n,) int64, pixels.
    """

    pixels: list[tuple[dict[str, jax.Array], int]]
    boxes: np.ndarray
    crop_boxes: np.ndarray
    iou: np.ndarray
    stability: np.ndarray
    points: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: np.ndarray) -> Candidates:
        """The candidates at `indices` (n,) int, in that order."""
        arrays = {f.name: getattr(self, f.name)[indices] for f in dataclasses.fields(self) if f.name != "pixels"}
        return Candidates([self.pixels[i] for i in indices], **arrays)

    def mask(self, index: int) -> np.ndarray:
        """Fetches a mask from the device: (h, w) bool, in pixels of its crop."""
        chunk, row = self.pixels[index]
        x0, y0, x1, y1 = self.crop_boxes[index]
        columns = np.unpackbits(np.asarray(chunk["bits"][row]), axis=1)
        return columns[: x1 - x0, : y1 - y0].T.astype(bool)

    def low_res(self, index: int) -> np.ndarray:
        """One mask's logits on the decoder's grid, (4h, 4w) float32."""
        chunk, row = self.pixels[index]
        return np.asarray(chunk["low_res"][row])


def concatenate(parts: list[Candidates]) -> Candidates:
    """Joins candidates in order; without any, the result is empty."""
    empty = Candidates(
        pixels=[],
        boxes=np.zeros((0, 4), np.int64),
        crop_boxes=np.zeros((0, 4), np.int64),
        iou=np.zeros(0, np.float32),
        stability=np.zeros(0, np.float32),
        points=np.zeros((0, 2)),
        area=np.zeros(0, np.int64),
    )
    parts = [empty, *parts]
    arrays = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts])
        for f in dataclasses.fields(Candidates)
        if f.name != "pixels"
    }
    return Candidates([pixels for part in parts for pixels in part.pixels], **arrays)


@jax.jit
def examine(
    planes: jax.Array,
    indices: jax.Array,
    enlarge: Enlarging,
    size: jax.Array,
    levels: jax.Array,
    pixels: CrfPixels | None = None,
) -> dict[str, jax.Array]:
    """Enlarges masks to their crop, and computes their stability, boxes, areas and bits.

    Args:
      planes: (n, 16, h*w) logits; indices: (c,) int, the masks to examine.
      enlarge: matrices from (4h, 4w), or from (8h, 8w) with `pixels`; zero beyond the crop.
      size: (2,) (h, w) of the crop, pixels.
      levels: (3,) logits: the mask threshold, then the threshold plus and minus the stability offset.
      pixels: the crop's, for edge refinement. Stability is still computed from the model's own logits.

    Returns:
      `stability` (c,), `boxes` (c, 4) xyxy and `area` (c,) in pixels of the crop, `bits` (c, X, Y / 8) uint8 in
      column-major order, `low_res` (c, 4h, 4w).
    """
    width = enlarge.columns.shape[1] // (SIDE if pixels is None else CELL)
    grid = planes.shape[-1] // width, width

    def looks_of(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = join_subpixels(planes[index], grid)
        return mask, mask[None] if pixels is None else _refined_and_own(mask, pixels)

    def one_by_one(indices: jax.Array) -> dict[str, jax.Array]:
        inside = bits_inside(enlarge, size)

        def one(index: jax.Array) -> dict[str, jax.Array]:
            mask, looks = looks_of(index)
            return _facts(mask, see(looks, levels, enlarge, inside))

        facts: dict[str, jax.Array] = jax.lax.map(one, indices)
        return facts

    def few(indices: jax.Array) -> dict[str, jax.Array]:
        masks, looks = jax.vmap(looks_of)(indices)
        return jax.vmap(_facts)(masks, see_stacked(looks, levels, enlarge, size))

    def at_once(indices: jax.Array) -> dict[str, jax.Array]:
        masks, looks = jax.lax.map(looks_of, indices, batch_size=8)
        return jax.vmap(_facts)(masks, see_many(looks, levels, enlarge, size))

    # Edge refinement takes memory by the mask.
    tpu = at_once if pixels is None and fits_kernel(enlarge) else one_by_one
    found: dict[str, jax.Array] = jax.lax.platform_dependent(
        indices, cpu=partial(in_groups, few), tpu=tpu, default=one_by_one
    )
    return found


def _facts(mask: jax.Array, seen: Seen) -> dict[str, jax.Array]:
    """What `examine` returns for one mask."""
    area, surely, perhaps = seen.areas
    across, down = seen.across, jnp.unpackbits(seen.down)
    last = len(across) - 1 - across[::-1].argmax(), len(down) - 1 - down[::-1].argmax()
    box = jnp.stack([across.argmax(), down.argmax(), *last])
    found = {"area": area, "stability": surely / perhaps, "boxes": jnp.where(area > 0, box, 0)}
    return found | {"bits": seen.bits, "low_res": mask}


def _refined_and_own(mask: jax.Array, pixels: CrfPixels) -> jax.Array:
    """Logits of a mask (l, l) for the three levels of `examine`: (3, 2l, 2l), the first with edge refinement."""
    refined = refine_masks(mask[None, None], pixels)[0, 0]
    matrix = jnp.asarray(bilinear_matrix(len(refined), len(mask)), jnp.float32)
    own = einsum("yh,hw,xw->yx", matrix, mask, matrix)
    return jnp.stack([refined, own, own])


def encode_crops(model: Sam, variables: Any, image: np.ndarray, boxes: list[Box]) -> Iterator[Crop]:
    """Encodes crops of an image (H, W, 3) uint8, a few at a time; `boxes` are xyxy in pixels of the image."""
    side = model.config.image_size
    at_once = min(CROPS_AT_ONCE, len(boxes))
    for start in range(0, len(boxes), at_once):
        part = boxes[start : start + at_once]
        resized = [resize_longest_side(np.ascontiguousarray(image[y0:y1, x0:x1]), side) for x0, y0, x1, y1 in part]
        filled = resized + resized[:1] * (at_once - len(part))  # same shape, and program, for the last part
        sizes = np.array([one.shape[:2] for one in filled], np.int32)
        frames = np.stack([pad_to_square(one, side) for one in filled])
        encoded = encode_and_wait(model, variables, frames, sizes)
        for number, box in enumerate(part):
            yield Crop(box, image.shape[:2], resized[number].shape[:2], encoded.one(number))


def find_in_crop(
    model: Sam,
    variables: Any,
    config: AmgConfig,
    crop: Crop,
    grid: np.ndarray,
    on_points: Callable[[int], None] | None = None,
    single_output: bool = False,
) -> Candidates:
    """Masks of a crop that pass the filters on predicted IoU, stability, position and size.

    Args:
      grid: (n, 2) points (x, y) in [0, 1], as fractions of the crop's sides.
      on_points: called with the number of points of each batch before it is decoded.
      single_output: one mask per point, see `decode_points`.
    """
    points = grid * np.array(crop.size[::-1])
    in_frame = to_input_frame(points, crop.size, crop.input_size).astype(np.float32)
    enlarge = enlargement(model, config, crop)
    embedding = prepare_embeddings(model, variables, crop.encoded.embeddings[None])
    parts: list[Chunk] = []
    decoded = decode_batches(
        partial(
            decode_points,
            model,
            variables,
            embedding,
            least_iou=_least_iou(config),
            single_output=single_output,
        ),
        in_frame,
        config.points_per_batch,
        on_points,
    )
    for start, planes, iou in decoded:
        parts += _chunks(config, start, planes, iou, len(points), enlarge)
    return concatenate([_filter(config, crop, points, *part) for part in parts])


def refine_edges(model: Sam, config: AmgConfig, crop: Crop, masks: Candidates) -> Candidates:
    """Edge refinement (`SamConfig.crf`) of a crop's masks; returns those that still pass the filters of `find_in_crop`.

    Called after non-maximum suppression, on few masks: it is the most expensive step for a mask.
    """
    assert crop.encoded.pixels is not None
    if not len(masks):
        return masks
    planes = split_subpixels(jnp.stack([chunk["low_res"][row] for chunk, row in masks.pixels]))
    enlarge = enlargement(model, config, crop, crop.encoded.pixels)
    every = np.arange(len(masks))
    points = masks.points - np.array(crop.box[:2])
    parts = _examined(planes, every, every, masks.iou, enlarge)
    return concatenate([_filter(config, crop, points, *part) for part in parts])


Enlargement = dict[str, Any]
Chunk = tuple[np.ndarray, np.ndarray, dict[str, jax.Array]]  # indices of points, predicted IoU, results of `examine`


def enlargement(model: Sam, config: AmgConfig, crop: Crop, pixels: CrfPixels | None = None) -> Enlargement:
    """The arguments of `examine` that depend on the crop."""
    side, cell = model.config.image_size, SIDE if pixels is None else CELL
    grid = cell * model.config.image_encoder.grid_size
    rows, columns = (
        np.pad(axis_matrix(grid, side, resized, original), ((0, -original % SIDE_STEP), (0, 0)))
        for original, resized in zip(crop.size, crop.input_size, strict=True)
    )
    threshold, offset = model.config.mask_threshold, config.stability_score_offset
    return {
        "enlarge": enlarging(rows, columns, SIDE_STEP),
        "size": np.array(crop.size, np.int32),
        "levels": np.array([threshold, threshold + offset, threshold - offset], np.float32),
        "pixels": pixels,
    }


def _chunks(
    config: AmgConfig, start: int, planes: jax.Array, iou: jax.Array, num_points: int, enlarge: Enlargement
) -> Iterator[Chunk]:
    """Examines the masks of a batch whose predicted IoU is high enough."""
    scores = np.asarray(iou)
    passed = np.flatnonzero(scores > _least_iou(config))
    numbers = start + passed // (len(scores) // config.points_per_batch)  # several masks per point
    return _examined(planes, passed[numbers < num_points], numbers[numbers < num_points], scores, enlarge)


def _least_iou(config: AmgConfig) -> np.float32:
    """The threshold that a mask's predicted IoU must exceed."""
    assert config.pred_iou_thresh is not None
    return np.float32(config.pred_iou_thresh if config.pred_iou_thresh > 0 else -np.inf)


def _examined(
    planes: jax.Array, passed: np.ndarray, numbers: np.ndarray, scores: np.ndarray, enlarge: Enlargement
) -> Iterator[Chunk]:
    """Examines the masks at indices `passed` (n,), whose points are `numbers` (n,), chunk by chunk."""
    pixels = len(enlarge["enlarge"].columns) * len(enlarge["enlarge"].row_bands) * SIDE_STEP
    largest = int(np.clip(2 ** int(np.log2(max(1, CHUNK_PIXELS // pixels))), 1, MAX_CHUNK))
    for first in range(0, len(passed), largest):
        indices = passed[first : first + largest]
        size = min(largest, max(MIN_CHUNK, 1 << (len(indices) - 1).bit_length()))
        filled = np.concatenate([indices, np.repeat(indices[:1], size - len(indices))]).astype(np.int32)
        yield numbers[first : first + largest], scores[indices], examine(planes, filled, **enlarge)


def _filter(
    config: AmgConfig, crop: Crop, points: np.ndarray, numbers: np.ndarray, iou: np.ndarray, found: dict[str, jax.Array]
) -> Candidates:
    """The masks of a chunk that are stable, not cut off by the crop, and of an accepted size."""
    count = len(numbers)
    stability, boxes, area = (np.asarray(found[name])[:count] for name in ("stability", "boxes", "area"))
    stability = np.nan_to_num(stability)  # 0 / 0 of an empty mask
    h, w = crop.image_size
    kept = ~near_crop_edge(boxes, np.array(crop.box), np.array([0, 0, w, h]))
    assert config.stability_score_thresh is not None
    if config.stability_score_thresh > 0:
        kept &= stability >= config.stability_score_thresh
    kept &= (area >= config.min_mask_area) & (area <= config.max_mask_cover * h * w)
    if config.max_mask_area is not None:
        kept &= area <= config.max_mask_area
    wants_logits = config.output_mode == "low_res" or crop.encoded.pixels is not None
    needed = {"bits": found["bits"]} | ({"low_res": found["low_res"]} if wants_logits else {})
    x0, y0 = crop.box[:2]
    return Candidates(
        [(needed, int(row)) for row in np.flatnonzero(kept)],
        boxes=boxes[kept].astype(np.int64) + np.array([x0, y0, x0, y0]),
        crop_boxes=np.tile(np.array(crop.box, np.int64), (int(kept.sum()), 1)),
        iou=iou[kept],
        stability=stability[kept],
        points=points[numbers[kept]] + np.array([x0, y0]),
        area=area[kept].astype(np.int64),
    )
