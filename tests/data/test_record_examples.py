"""Records to examples: images against PIL alone, masks against what is in the image."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_jax.composites.random_shapes import smooth_field
from sam_jax.data.example import MIN_CELLS, PIXEL_MEAN_RGB, reduce_masks
from sam_jax.data.record_examples import ExampleMaker, jittered, whole
from sam_jax.data.records import DataError, NoMaskError, Record
from sam_jax.inference.encoding import EncodedImages
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from tests.tiny import TINY

SIZE = 128


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def encoded(original, kind="PNG", **options):
    buffer = io.BytesIO()
    (original if isinstance(original, Image.Image) else Image.fromarray(original)).save(buffer, kind, **options)
    return buffer.getvalue()


def square(h, w, top, left, side):
    mask = np.zeros((h, w), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def make_record(original, masks, kind="PNG", **options):
    return Record("made-up: sa_5.jpg", 5, encoded(original, kind, **options), tuple(encode(mask) for mask in masks))


def smooth_image(h, w):
    rng = np.random.default_rng(0)
    return np.dstack([128 + 50 * smooth_field(rng, h, w, 5) for _ in range(3)]).clip(0, 255).astype(np.uint8)


def blobs(h, w, count, level=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return [smooth_field(rng, h, w, 4) > level for _ in range(count)]


@pytest.mark.parametrize(("h", "w", "expected"), [(150, 225, (85, 128)), (225, 150, (128, 85)), (90, 61, (128, 87))])
def test_images_are_resized_and_padded_as_at_inference(h, w, expected):
    original = smooth_image(h, w)
    example = ExampleMaker(SIZE, 3)(0, make_record(original, blobs(h, w, 3)))
    rows, columns = expected
    assert example.input_size.tolist() == [rows, columns]
    resized = np.asarray(Image.fromarray(original).resize((columns, rows), Image.Resampling.BILINEAR))
    assert np.array_equal(example.image[:rows, :columns], resized)
    assert (example.image[rows:] == PIXEL_MEAN_RGB).all()
    assert (example.image[:, columns:] == PIXEL_MEAN_RGB).all()
    assert example.image_id == 5


def test_shapes_and_dtypes():
    fields = ExampleMaker(SIZE, 6)(0, make_record(smooth_image(90, 120), blobs(90, 120, 2))).to_dict()
    assert {name: (value.shape, value.dtype) for name, value in fields.items()} == {
        "image": ((SIZE, SIZE, 3), np.uint8),
        "masks": ((6, 32, 32), np.bool_),
        "mask_valid": ((6,), np.bool_),
        "input_size": ((2,), np.int32),
        "image_id": ((), np.int64),
    }
    assert fields["mask_valid"].tolist() == [True, True, False, False, False, False]
    assert not fields["masks"][2:].any()


@pytest.mark.parametrize(("h", "w"), [(150, 225), (511, 300), (1030, 700), (90, 61), (128, 128)])
@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("TIFF", "I")])
def test_pixels_are_exactly_those_that_the_predictor_encodes(h, w, kind, mode, monkeypatch):
    original = Image.fromarray(smooth_image(h, w))
    original = original.convert("L").convert("I") if mode == "I" else original.convert(mode)
    everything = np.ones((h, w), bool)
    record = Record("image", 0, encoded(original, kind), (encode(everything),))
    example = ExampleMaker(80, 1)(0, record)
    seen = []

    def watched(*arguments):
        seen.append(arguments[2:])
        return EncodedImages(None, None)

    monkeypatch.setattr("sam_jax.inference.predictor.encode_and_wait", watched)
    monkeypatch.setattr("sam_jax.inference.predictor.prepare_embeddings", lambda *arguments: None)
    with Image.open(io.BytesIO(record.image)) as image:
        SamPredictor(Sam(TINY), {"params": {}}).set_image(image)
    ((frames, sizes),) = seen
    rows, columns = sizes[0]
    assert example.input_size.tolist() == [rows, columns]
    np.testing.assert_array_equal(example.image[:rows, :columns], frames[0, :rows, :columns])


@pytest.mark.parametrize("factor", [2, 3, 5, 9])
def test_a_jpeg_decoded_small_is_nearly_the_full_one(factor):
    h, w = 85 * factor + 1, 128 * factor - 3
    original = smooth_image(h, w)
    record = make_record(original, [square(h, w, 0, 0, h // 2)], "JPEG", quality=95)
    example = ExampleMaker(SIZE, 1, scaled_decode=True)(0, record)
    rows, columns = example.input_size
    full = Image.open(io.BytesIO(record.image)).resize((columns, rows), Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(full, int) - example.image[:rows, :columns])
    assert difference.mean() < 1
    assert difference.max() < 8


def test_a_jpeg_decoded_small_is_not_stretched():
    """Decoded at an eighth, 1041 columns become 131, the last of which is all but empty."""
    ramp = np.linspace(0, 255, 1041).astype(np.uint8)
    original = np.broadcast_to(ramp[None, :, None], (1041, 1041, 3))
    record = make_record(np.ascontiguousarray(original), [square(1041, 1041, 0, 0, 500)], "JPEG", quality=98)
    image = ExampleMaker(SIZE, 1, scaled_decode=True)(0, record).image.astype(float)
    expected = np.asarray(Image.fromarray(ramp[None]).resize((SIZE, 1), Image.Resampling.BILINEAR), float)
    assert abs((image[..., 0] - expected)[:, -40:-4].mean()) < 0.4


def test_a_jpeg_is_never_decoded_smaller_than_the_example(monkeypatch):
    decoded = []
    resize = Image.Image.resize

    def spy(self, size, *args, **kwargs):
        decoded.append((self.size, size))
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", spy)
    for h, w in ((257, 400), (100, 140), (1030, 700)):
        mask = square(h, w, 0, 0, h // 2)
        maker = ExampleMaker(SIZE, 1, scaled_decode=True)
        maker(0, Record("", 0, encoded(np.zeros((h, w, 3), np.uint8), "JPEG"), (encode(mask),)))
    assert all(have >= want for sizes in decoded for have, want in zip(*sizes, strict=True))
    assert [have for have, _ in decoded] == [(200, 129), (140, 100), (88, 129)]


def test_exif_rotation_is_ignored_because_masks_are_in_stored_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    original = smooth_image(60, 100)
    record = make_record(original, blobs(60, 100, 1), "JPEG", exif=exif)
    assert ExampleMaker(SIZE, 1)(0, record).input_size.tolist() == [77, 128]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode):
    grey = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (60, 1))
    if mode == "I;16":
        original = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        original = (
            Image.fromarray(grey).quantize() if mode == "P" else Image.fromarray(grey).convert("RGB").convert(mode)
        )
    assert original.mode == mode
    record = make_record(original, [square(60, 100, 0, 0, 50)], "TIFF" if mode == "CMYK" else "PNG")
    image = ExampleMaker(SIZE, 1)(0, record).image[:77].astype(int)
    expected = np.asarray(Image.fromarray(grey).resize((128, 77), Image.Resampling.BILINEAR), int)
    assert np.abs(image - expected[..., None]).max() <= 2


def test_masks_lie_on_what_they_show():
    """The same square is drawn and labelled; at whole ratios both must agree exactly."""
    mask = square(256, 192, 64, 32, 96)
    original = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    example = ExampleMaker(SIZE, 2)(0, make_record(original, [mask]))
    drawn = example.image[::4, ::4, 0] > 127
    assert np.array_equal(example.masks[0][:, :24], drawn[:, :24])
    assert example.masks[0].sum() == 12 * 12


def test_too_large_and_vanishing_masks_are_left_out_and_others_take_their_place():
    h, w = 128, 128
    large, tiny = np.ones((h, w), bool), square(h, w, 5, 5, 6)
    good = [square(h, w, 8 * n, 8 * n, 40) for n in range(4)]
    record = make_record(smooth_image(h, w), [large, tiny, good[0], tiny, good[1], large, tiny, good[2], good[3]])
    expected = reduce_masks(np.stack(good), SIZE)
    for index in range(8):
        example = ExampleMaker(SIZE, 4, max_mask_share=0.9)(index, record)
        assert example.mask_valid.all()
        assert sorted(map(bytes, example.masks)) == sorted(map(bytes, expected))
    assert large.all() in ExampleMaker(SIZE, 9)(0, record).masks.all(axis=(1, 2))  # without a limit it stays


def test_masks_of_min_cells_stay_and_smaller_ones_go():
    kept, gone = square(128, 128, 0, 0, 12), np.zeros((128, 128), bool)
    kept[:4, 8:12] = False  # 8 cells of 9
    gone[:4, :28] = True  # 7 cells
    example = ExampleMaker(SIZE, 4)(0, make_record(smooth_image(128, 128), [kept, gone]))
    assert example.masks.sum(axis=(1, 2)).tolist() == [MIN_CELLS, 0, 0, 0]


def test_which_masks_hangs_on_seed_and_index_and_all_get_their_turn():
    record = make_record(smooth_image(90, 120), [square(90, 120, 3 * n, 4 * n, 30) for n in range(16)])
    maker = ExampleMaker(SIZE, 3, seed=1)
    drawn = [maker(index, record).masks for index in range(60)]
    assert np.array_equal(pickle.loads(pickle.dumps(maker))(7, record).masks, drawn[7])
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(ExampleMaker(SIZE, 3, seed=2)(0, record).masks, drawn[0])
    assert len({bytes(mask) for masks in drawn for mask in masks}) == 16


def test_only_as_many_masks_are_decoded_as_are_needed():
    """Of the rest even a broken one goes unnoticed."""
    record = make_record(smooth_image(90, 120), [square(90, 120, 0, 0, 60)] * 9)
    broken = Record(record.name, 5, record.image, (*record.segmentations, {"size": [90, 120], "counts": "1"}))
    outcomes = set()
    for index in range(40):
        try:
            outcomes.add(bool(ExampleMaker(SIZE, 2)(index, broken).mask_valid.all()))
        except DataError:
            outcomes.add("noticed")
    assert outcomes == {True, "noticed"}


def test_jitter_moves_image_and_masks_together():
    """Concentric squares in as many greys: whatever the scale and crop, a mask covers what is bright."""
    h, w = 200, 300
    mask = square(h, w, 30, 60, 120)
    original = np.repeat(np.where(mask, 230, 20).astype(np.uint8)[..., None], 3, axis=2)
    record = make_record(original, [mask])
    sizes = []
    for index in range(40):
        example = ExampleMaker(SIZE, 1, jitter=(0.3, 2.0))(index, record)
        rows, columns = example.input_size
        sizes.append((rows, columns))
        bright = (example.image[:rows, :columns].mean(axis=2) > 125)[: rows // 4 * 4, : columns // 4 * 4]
        cells = bright.reshape(rows // 4, 4, columns // 4, 4).mean(axis=(1, 3))
        sure = (cells < 0.2) | (cells > 0.8)
        inside = example.masks[0][: rows // 4, : columns // 4]
        assert sure.mean() > 0.7
        assert np.array_equal(inside[sure], cells[sure] > 0.5)
        assert (example.image[rows:] == PIXEL_MEAN_RGB).all()
    assert (SIZE, SIZE) in sizes  # enlarged and cropped
    assert min(columns for _, columns in sizes) < 0.6 * SIZE  # shrunk and padded


def test_a_cropped_image_is_the_crop_of_the_resized_one():
    original = smooth_image(100, 150)
    record = make_record(original, [np.ones((100, 150), bool)])
    example = ExampleMaker(SIZE, 1, jitter=(1.7, 1.7)).make(record, np.random.default_rng(3))
    placement = jittered(np.random.default_rng(3), (100, 150), SIZE, (1.7, 1.7))
    (h, w), (top, left) = placement.resized, placement.offset
    resized = np.asarray(Image.fromarray(original).resize((w, h), Image.Resampling.BILINEAR), int)
    assert (h, w) == (145, 218)
    assert (top, left) != (0, 0)
    assert np.abs(resized[top : top + SIZE, left : left + SIZE] - example.image).max() <= 1


def test_jitter_that_loses_every_mask_is_drawn_again():
    record = make_record(smooth_image(200, 200), [square(200, 200, 0, 0, 24)])
    maker = ExampleMaker(SIZE, 1, jitter=(0.1, 2.0))
    assert all(maker(index, record).mask_valid.all() for index in range(25))


def test_whole_rounds_half_up_as_official_code_does():
    assert whole((1500, 2250), 1024).resized == (683, 1024)
    assert whole((3, 4000), 1024).resized == (1, 1024)
    assert whole((1, 4000), 1024).resized == (1, 1024)  # never nothing


GOOD = make_record(smooth_image(90, 120), blobs(90, 120, 2), "JPEG")


def test_broken_records_are_named():
    def fails(message, error=DataError, **fields):
        record = Record(**{"name": "a.tar: b.jpg", "image_id": 1, "image": GOOD.image, "segmentations": (), **fields})
        with pytest.raises(error, match=message) as caught:
            ExampleMaker(SIZE, 2, max_mask_share=0.5)(0, record)
        assert "\n" not in str(caught.value)

    masks = GOOD.segmentations
    fails(r"a\.tar: b\.jpg cannot be decoded .*truncated", image=GOOD.image[:-600], segmentations=masks)
    fails(r"a\.tar: b\.jpg is not an image", image=b"<html>Not found</html>", segmentations=masks)
    fails(r"a\.tar: b\.jpg is not an image", image=b"", segmentations=masks)
    fails(r"a\.tar: b\.jpg: none of its 0 masks", NoMaskError)
    fails(r"none of its 1 masks.*more than 50%", NoMaskError, segmentations=(encode(np.ones((90, 120), bool)),))
    fails(r"a\.tar: b\.jpg: mask 0 has size", segmentations=(encode(np.ones((120, 90), bool)),))
    fails(r"a\.tar: b\.jpg: mask 0 has runs of", segmentations=({"size": [90, 120], "counts": [5, 5]},))


def test_image_size_must_fit_the_grid():
    with pytest.raises(ValueError, match="multiple of 4, not 130"):
        ExampleMaker(130, 4)
