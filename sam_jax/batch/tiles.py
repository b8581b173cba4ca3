"""Everything mode on tiles, for images that are too large to be segmented at once.

The generator sees each tile as a separate image, so masks are cut at its borders. Masks of two tiles are matched if
their IoU in the overlap of the tiles is high enough: greedily, highest IoU first, then most similar area (a part and
its whole may look alike in the overlap), each mask at most once per pair of tiles. Matched pairs are merged in order of
IoU, unless an object would then have two masks of one tile.

If no piece of an object is cut (touches a tile border inside the image), each piece is the whole object, and the one
with the highest predicted IoU is kept. Otherwise the object is the union of its pieces, with the area-weighted mean of
their scores. A cut piece without a match is dropped if another tile contains its place whole, since that tile found no
such object. Finally NMS drops objects whose boxes overlap too much, as everything mode does between crops.

Masks are kept as run lengths of their tiles, and objects are drawn one at a time, in their own bounding boxes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sam_jax.inference.automatic_mask_generator import FEW_PIXELS, Record, SamAutomaticMaskGenerator
from sam_jax.ops.boxes import nms
from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import decode_mask, encode_mask, encode_placed

Box = tuple[int, int, int, int]
Size = tuple[int, int]
# A mask this close to its tile's border, as a fraction of the tile's side, counts as cut: one pixel of the mask
# decoder's 256 x 256 grid.
NEAR = 1 / 256


@dataclass(frozen=True, eq=False)
class Piece:
    """A mask of one tile.

    Attributes:
      tile: the tile's number.
      box: (4,) int64 xyxy in pixels of the image, last pixel inclusive.
      record: from everything mode, in pixels of the tile.
      shared: number of another tile -> run lengths of the mask in the overlap with that tile.
      is_cut: whether it touches a border of its tile inside the image.
    """

    tile: int
    box: np.ndarray
    record: Record
    shared: dict[int, dict[str, Any]]
    is_cut: bool


class TileLayout:
    """Tiles of an image: all of one size, evenly spaced, overlapping by at least `overlap` pixels.

    Attributes:
      size: (H, W) of the image, pixels.
      boxes: xyxy of each tile, in pixels of the image.
      neighbours: for each tile, the numbers of the tiles that it overlaps.
    """

    def __init__(self, size: Size, tile: int, overlap: int) -> None:
        self.size = size
        ys, xs = (_starts(side, tile, overlap) for side in size)
        h, w = size
        self.boxes: list[Box] = [(x, y, min(x + tile, w), min(y + tile, h)) for y in ys for x in xs]
        array = np.array(self.boxes)
        self.neighbours = [
            [
                int(j)
                for j in np.flatnonzero((array[:, :2] < box[2:]).all(1) & (array[:, 2:] > box[:2]).all(1))
                if j != i
            ]
            for i, box in enumerate(array)
        ]

    def region(self, one: int, other: int) -> Box:
        """The overlap of two tiles: xyxy in pixels of the image."""
        low = np.maximum(self.boxes[one][:2], self.boxes[other][:2])
        high = np.minimum(self.boxes[one][2:], self.boxes[other][2:])
        return (*low.tolist(), *high.tolist())

    def cuts(self, tile: int, box: np.ndarray) -> bool:
        """Whether a mask's box (4,), last pixel inclusive, touches a border of the tile inside the image."""
        x0, y0, x1, y1 = self.boxes[tile]
        h, w = self.size
        near_x, near_y = max(1, round((x1 - x0) * NEAR)), max(1, round((y1 - y0) * NEAR))
        return bool(
            (x0 > 0 and box[0] < x0 + near_x)
            or (y0 > 0 and box[1] < y0 + near_y)
            or (x1 < w and box[2] >= x1 - near_x)
            or (y1 < h and box[3] >= y1 - near_y)
        )

    def is_whole_elsewhere(self, piece: Piece) -> bool:
        """Whether another tile contains the piece's box without cutting it."""
        for other in self.neighbours[piece.tile]:
            x0, y0, x1, y1 = self.boxes[other]
            inside = (piece.box[:2] >= (x0, y0)).all() and (piece.box[2:] < (x1, y1)).all()
            if inside and not self.cuts(other, piece.box):
                return True
        return False


def find_in_tiles(generator: SamAutomaticMaskGenerator, image: np.ndarray, layout: TileLayout) -> list[list[Piece]]:
    """Masks of each tile of an image (H, W, 3) uint8. The host encodes one tile while the device works on the next."""
    pieces: list[list[Piece]] = []
    waiting: deque[Future[list[Piece]]] = deque()
    with ThreadPoolExecutor(1, "tile") as host:
        for number, (x0, y0, x1, y1) in enumerate(layout.boxes):
            found = generator.find(np.ascontiguousarray(image[y0:y1, x0:x1]))
            waiting.append(host.submit(_pieces, generator, found, layout, number))
            if len(waiting) > 1:
                pieces.append(waiting.popleft().result())
        return pieces + [job.result() for job in waiting]


def merge_tiles(
    pieces: list[list[Piece]], layout: TileLayout, iou_threshold: float, box_nms_thresh: float
) -> list[Record]:
    """Records of an image, as in everything mode; see the top of this file.

    Args:
      pieces: of each tile, in the order of the layout.
      iou_threshold: masks with at least this IoU in the overlap are one object.
      box_nms_thresh: of two objects whose boxes overlap by more than this IoU, the one of lower predicted IoU goes.

    Returns:
      Records in descending predicted IoU. `crop_box` encloses all tiles that an object was found in, `point_coords` are
      all its points.
    """
    links = [link for one, other in _pairs(layout) for link in _agreements(pieces[one], pieces[other], iou_threshold)]
    groups = _unite([piece for part in pieces for piece in part], sorted(links, key=lambda link: -link[0]))
    records = []
    for group in groups:
        if len(group) == 1 and group[0].is_cut and layout.is_whole_elsewhere(group[0]):
            continue
        if not any(piece.is_cut for piece in group):
            group = [max(group, key=lambda piece: piece.record["predicted_iou"])]
        records.append(_record(group, layout))
    boxes = np.array([record["bbox"] for record in records], np.int64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([record["predicted_iou"] for record in records], np.float32)
    return [records[i] for i in nms(boxes, scores, box_nms_thresh, min(layout.size) <= FEW_PIXELS)]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [i * (length - tile) // steps for i in range(steps + 1)]


def _pieces(generator: SamAutomaticMaskGenerator, found: Any, layout: TileLayout, number: int) -> list[Piece]:
    """The pieces of a tile: its records, and the part of each in the overlap with every other tile."""
    x0, y0, x1, y1 = layout.boxes[number]
    pieces = []
    for record in generator.records(found, (y1 - y0, x1 - x0)):
        mask = decode_mask(record["segmentation"])
        if not record["area"]:
            continue
        box = mask_to_box(mask) + np.array([x0, y0, x0, y0])
        shared = {}
        for other in layout.neighbours[number]:
            left, top, right, bottom = layout.region(number, other)
            part = mask[top - y0 : bottom - y0, left - x0 : right - x0]
            if part.any():
                shared[other] = encode_mask(part)
        pieces.append(Piece(number, box, record, shared, layout.cuts(number, box)))
    return pieces


def _pairs(layout: TileLayout) -> Iterator[tuple[int, int]]:
    return ((one, other) for one, others in enumerate(layout.neighbours) for other in others if one < other)


Link = tuple[float, Piece, Piece]


def _agreements(ones: Sequence[Piece], others: Sequence[Piece], threshold: float) -> list[Link]:
    """Matches masks of two tiles by their IoU in the overlap, each mask at most once: (IoU, piece, piece)."""
    if not ones or not others:
        return []
    first, second = ones[0].tile, others[0].tile
    ones = [piece for piece in ones if second in piece.shared]
    others = [piece for piece in others if first in piece.shared]
    if not ones or not others:
        return []
    rles = [piece.shared[second] for piece in ones], [piece.shared[first] for piece in others]
    overlaps = coco.iou(*rles, [0] * len(others))
    rows, columns = np.nonzero(overlaps >= threshold)
    areas = [np.array([piece.record["area"] for piece in side], np.float64) for side in (ones, others)]
    alike = np.minimum(*(a := (areas[0][rows], areas[1][columns]))) / np.maximum(*a)
    links: list[Link] = []
    free_rows, free_columns = set(rows.tolist()), set(columns.tolist())
    for k in np.lexsort((-alike, -overlaps[rows, columns].round(2))):
        i, j = int(rows[k]), int(columns[k])
        if i in free_rows and j in free_columns:
            free_rows.remove(i)
            free_columns.remove(j)
            links.append((float(overlaps[i, j]), ones[i], others[j]))
    return links


def _unite(pieces: Sequence[Piece], links: Sequence[Link]) -> list[list[Piece]]:
    """Merges pieces into objects along the links, in order; a link that would join two pieces of a tile is ignored."""
    group_of = {id(piece): [piece] for piece in pieces}
    for _, one, other in links:
        first, second = group_of[id(one)], group_of[id(other)]
        if first is second or {piece.tile for piece in first} & {piece.tile for piece in second}:
            continue
        first += second
        for piece in second:
            group_of[id(piece)] = first
    unique = {id(group): group for group in group_of.values()}
    return list(unique.values())


def _record(group: list[Piece], layout: TileLayout) -> Record:
    """The record of an object, in pixels of the image."""
    boxes = np.stack([piece.box for piece in group])
    x0, y0 = boxes[:, :2].min(axis=0).tolist()
    x1, y1 = boxes[:, 2:].max(axis=0).tolist()
    canvas = np.zeros((y1 - y0 + 1, x1 - x0 + 1), bool)
    points: list[list[float]] = []
    for piece in group:
        left, top = layout.boxes[piece.tile][:2]
        px0, py0, px1, py1 = piece.box.tolist()
        mask = decode_mask(piece.record["segmentation"])[py0 - top : py1 - top + 1, px0 - left : px1 - left + 1]
        canvas[py0 - y0 : py1 - y0 + 1, px0 - x0 : px1 - x0 + 1] |= mask
        points += [[x + left, y + top] for x, y in piece.record["point_coords"]]
    crops = np.array([_crop_box(piece, layout) for piece in group])
    crop_x, crop_y = crops[:, :2].min(axis=0).tolist()
    crop_x1, crop_y1 = crops[:, 2:].max(axis=0).tolist()
    weights = [piece.record["area"] for piece in group]
    return {
        "segmentation": encode_placed(canvas, (x0, y0), layout.size),
        "area": int(canvas.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "predicted_iou": float(np.average([piece.record["predicted_iou"] for piece in group], weights=weights)),
        "point_coords": points,
        "stability_score": float(np.average([piece.record["stability_score"] for piece in group], weights=weights)),
        "crop_box": [crop_x, crop_y, crop_x1 - crop_x, crop_y1 - crop_y],
    }


def _crop_box(piece: Piece, layout: TileLayout) -> list[int]:
    left, top = layout.boxes[piece.tile][:2]
    x, y, w, h = piece.record["crop_box"]
    return [x + left, y + top, x + w + left, y + h + top]
