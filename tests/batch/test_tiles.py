"""Tiles, and what becomes of masks that their borders cut, around a generator that finds everything of one colour."""

import itertools
import types

import numpy as np
import pytest

from sam_jax.batch.tiles import TileLayout, find_in_tiles, merge_tiles
from sam_jax.ops.rle import decode_mask, encode_mask

H, W = 90, 130


class Colours:
    """Finds each colour of an image's first channel, and what `also` adds: groups of colours. Knows all by heart."""

    config = types.SimpleNamespace(crop_nms_thresh=0.7)

    def __init__(self, also=(), score=lambda mask: 0.9):
        self.also, self.score, self.sizes = also, score, []

    def find(self, image):
        self.sizes.append(image.shape[:2])
        return image[..., 0]

    def records(self, found, size):
        assert found.shape == size
        groups = [(colour,) for colour in np.unique(found) if colour > 0] + [
            group for group in self.also if np.isin(found, group).any()
        ]
        return [self.record(np.isin(found, group)) for group in groups]

    def record(self, mask):
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2
        return {
            "segmentation": encode_mask(mask),
            "area": int(mask.sum()),
            "bbox": "unused",
            "predicted_iou": self.score(mask),
            "point_coords": [[float(columns[middle]), float(rows[middle])]],
            "stability_score": 0.95,
            "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
        }


def draw(*boxes, size=(H, W)):
    """Rectangles x0, y0, x1, y1 of the colours 1, 2, ..., later ones on top."""
    image = np.zeros((*size, 3), np.uint8)
    for colour, (x0, y0, x1, y1) in enumerate(boxes, 1):
        image[y0:y1, x0:x1] = colour
    return image


def merged(generator, image, tile=40, overlap=10, threshold=0.5):
    layout = TileLayout(image.shape[:2], tile, overlap)
    return merge_tiles(find_in_tiles(generator, image, layout), layout, threshold, 0.7)


def masks_of(records):
    return {decode_mask(record["segmentation"]).tobytes() for record in records}


def whole(image, *groups):
    return {np.isin(image[..., 0], group).tobytes() for group in groups}


@pytest.mark.parametrize("size", [(90, 130), (40, 41), (41, 200), (100, 30), (161, 161)])
@pytest.mark.parametrize(("tile", "overlap"), [(40, 10), (40, 1), (41, 20)])
def test_tiles_cover_the_image_and_overlap_enough(size, tile, overlap):
    layout = TileLayout(size, tile, overlap)
    seen = np.zeros(size, int)
    for x0, y0, x1, y1 in layout.boxes:
        assert (x1 - x0, y1 - y0) == (min(tile, size[1]), min(tile, size[0]))
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1
    for axis in (0, 1):
        starts = sorted({box[axis] for box in layout.boxes})
        assert all(later - earlier <= tile - overlap for earlier, later in itertools.pairwise(starts))
    for one, others in enumerate(layout.neighbours):
        for other in others:
            x0, y0, x1, y1 = layout.region(one, other)
            assert x0 < x1
            assert y0 < y1
            assert one in layout.neighbours[other]


def test_what_borders_cut_is_put_together():
    """Something within a tile, in an overlap, over one border, over a corner, over everything; and the rest."""
    image = draw((0, 0, W, H), (5, 5, 20, 15), (31, 5, 37, 12), (10, 20, 90, 28), (55, 50, 80, 75), (3, 60, 8, 89))
    generator = Colours()
    records = merged(generator, image)
    assert len(generator.sizes) == 3 * 4
    assert set(generator.sizes) == {(40, 40)}
    assert masks_of(records) == whole(image, *((colour,) for colour in range(1, 7)))
    assert len(records) == 6
    for record in records:
        mask = decode_mask(record["segmentation"])
        assert mask.shape == (H, W)
        rows, columns = np.nonzero(mask)
        x0, y0 = columns.min(), rows.min()
        assert record["bbox"] == [x0, y0, columns.max() - x0, rows.max() - y0]
        assert record["area"] == mask.sum()
        assert record["predicted_iou"] == pytest.approx(0.9)
        assert record["stability_score"] == pytest.approx(0.95)
        assert all(mask[int(y), int(x)] for x, y in record["point_coords"])
        x, y, w, h = record["crop_box"]
        assert mask[y : y + h, x : x + w].sum() == mask.sum()


def test_parts_and_wholes_stay_apart():
    image = draw((10, 5, 120, 18), (10, 18, 120, 33), size=(40, W))
    records = merged(Colours(also=[(1, 2)]), image)
    assert masks_of(records) == whole(image, (1,), (2,), (1, 2))


def test_an_object_that_one_tile_sees_alone():
    image = draw((2, 2, 12, 12))
    (record,) = merged(Colours(), image)
    assert record["crop_box"] == [0, 0, 40, 40]
    assert len(record["point_coords"]) == 1


def test_of_complete_views_the_best_stands_for_all():
    """A square in the overlap of two tiles; the left one sees a row less of it and is surer."""
    image = draw((31, 10, 37, 20))

    class Careless(Colours):
        def records(self, found, size):
            self.seen = getattr(self, "seen", 0) + 1
            records = super().records(found, size)
            if self.seen == 1:
                short = found > 0
                short[10] = False
                return [self.record(short) | {"predicted_iou": 0.99}]
            return records

    layout = TileLayout((40, 70), 40, 10)
    pieces = find_in_tiles(Careless(), image[:40, :70], layout)
    (record,) = merge_tiles(pieces, layout, 0.5, 0.7)
    assert record["predicted_iou"] == 0.99
    assert record["bbox"] == [31, 11, 5, 8]


def test_a_cut_piece_that_the_neighbour_does_not_confirm():
    """Half of an object lies in the overlap. If the tile that sees all of it finds nothing, the half goes as well."""

    class Blind(Colours):
        def records(self, found, size):
            self.seen = getattr(self, "seen", 0) + 1
            return super().records(found, size) if self.seen != self.blind else []

    layout = TileLayout((40, 70), 40, 10)
    image = draw((33, 10, 50, 20), size=(40, 70))
    generator = Blind()
    generator.blind = 2
    assert merge_tiles(find_in_tiles(generator, image, layout), layout, 0.5, 0.7) == []
    generator = Blind()
    generator.blind = 1
    (record,) = merge_tiles(find_in_tiles(generator, image, layout), layout, 0.5, 0.7)
    assert record["bbox"] == [33, 10, 16, 9]
    image = draw((20, 10, 50, 20), size=(40, 70))  # neither sees it whole: what is found is kept
    generator = Blind()
    generator.blind = 2
    (record,) = merge_tiles(find_in_tiles(generator, image, layout), layout, 0.5, 0.7)
    assert record["bbox"] == [20, 10, 19, 9]


def test_disagreement_is_not_united():
    image = draw((10, 10, 60, 30), size=(40, 70))

    class Shifted(Colours):
        def records(self, found, size):
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen == 1:
                return super().records(found, size)
            other = np.zeros(size, bool)
            other[24:38, 0:20] = True
            return [self.record(other)]

    layout = TileLayout((40, 70), 40, 10)
    assert len(merge_tiles(find_in_tiles(Shifted(), image, layout), layout, 0.5, 0.7)) == 2


def test_an_empty_image():
    assert merged(Colours(), draw()) == []


def test_two_masks_of_one_tile_never_become_one_object():
    """Two bars in the right tile join, within the overlap, what the left tile takes for one each; links go by IoU."""
    image = draw((30, 10, 60, 16), (30, 16, 60, 22), size=(40, 70))
    records = merged(Colours(also=[(1, 2)]), image)
    assert masks_of(records) == whole(image, (1,), (2,), (1, 2))
