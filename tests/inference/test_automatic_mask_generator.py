"""Everything mode, from points to records, around a decoder that answers with discs."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sam_jax.inference import mask_candidates
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.models.sam import Sam
from sam_jax.ops.planes import split_subpixels
from tests.tiny import TINY, random_variables

LOOSE = dict(points_per_side=4, points_per_batch=5, pred_iou_thresh=0.0, stability_score_thresh=0.2)


@pytest.fixture(autouse=True, scope="module")
def discs():
    """In the decoder's place: discs of three sizes around each point, the better the further right the point lies."""

    def decode(model, variables, embedding, points, least_iou, single_output):
        cells = np.arange(20) + 0.5
        distance = np.hypot(cells - points[:, 0, None, None] / 4, cells[:, None] - points[:, 1, None, None] / 4)
        logits = np.array([2.0, 3.0, 5.0])[:, None, None] - distance[:, None]
        logits[:, 0, 0, 0] = 1.0  # a speck far off
        iou = 0.5 + points[:, :1] / 1000 + np.array([0.0, 0.2, 0.1])
        return split_subpixels(jnp.float32(logits.reshape(-1, 20, 20))), jnp.float32(iou.reshape(-1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_candidates, "decode_points", decode)
        yield


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (70, 110, 3), np.uint8)


def generator(**options):
    return SamAutomaticMaskGenerator(Sam(TINY), random_variables(TINY), **LOOSE | options)


@pytest.fixture(scope="module")
def records(image):
    return generator().generate(image)


def test_records_describe_their_masks(records, image):
    assert len(records) > 3
    for record in records:
        mask = record["segmentation"]
        assert mask.shape == (70, 110)
        assert mask.dtype == bool
        assert record["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        assert record["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()]
        assert record["crop_box"] == [0, 0, 110, 70]
        (point,) = record["point_coords"]
        assert point in [[110 * (i + 0.5) / 4, 70 * (j + 0.5) / 4] for i, j in itertools.product(range(4), repeat=2)]
        assert record["stability_score"] >= 0.2
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)


def test_output_modes_hold_the_same_masks(records, image):
    for other in ("coco_rle", "uncompressed_rle", "low_res"):
        found = generator(output_mode=other).generate(image)
        assert [r["bbox"] for r in found] == [r["bbox"] for r in records]
        for record, expected in zip(found, records, strict=True):
            segmentation, mask = record["segmentation"], expected["segmentation"]
            if other == "low_res":
                assert segmentation.shape == (20, 20)
                continue
            if other == "uncompressed_rle":
                segmentation = coco.frPyObjects(segmentation, *segmentation["size"])
            np.testing.assert_array_equal(coco.decode(segmentation), mask)


def test_the_size_of_batches_and_chunks_changes_nothing(records, image, monkeypatch):
    monkeypatch.setattr(mask_candidates, "CHUNK_PIXELS", 128 * 128 * 2)
    found = generator(points_per_batch=16).generate(image)
    assert [r["bbox"] for r in found] == [r["bbox"] for r in records]
    for record, expected in zip(found, records, strict=True):
        np.testing.assert_array_equal(record["segmentation"], expected["segmentation"])
        np.testing.assert_allclose(record["predicted_iou"], expected["predicted_iou"], atol=1e-5)


def test_nothing_passes_is_an_empty_list(image):
    assert generator(pred_iou_thresh=1e6).generate(image) == []
    assert (
        generator(pred_iou_thresh=1e6, crop_n_layers=1, min_mask_region_area=5, mask_nms_thresh=0.5).generate(image)
        == []
    )
    assert generator(stability_score_thresh=1.1).generate(image) == []


def test_thresholds_are_the_models_own_unless_given(records, image):
    iou, stability = (np.median([r[name] for r in records]) for name in ("predicted_iou", "stability_score"))
    own = dataclasses.replace(TINY, pred_iou_thresh=float(iou), stability_score_thresh=float(stability) - 0.05)
    variables = random_variables(TINY)
    found = SamAutomaticMaskGenerator(Sam(own), variables, points_per_side=4, points_per_batch=5).generate(image)
    assert 0 < len(found) < len(records)
    assert all(r["predicted_iou"] > iou and r["stability_score"] >= stability - 0.05 for r in found)
    told = SamAutomaticMaskGenerator(Sam(own), variables, **LOOSE).generate(image)
    assert [r["bbox"] for r in told] == [r["bbox"] for r in records]


def test_crops_stay_in_their_boxes_and_need_not_include_the_whole(image):
    found = generator(crop_n_layers=1, skip_full_image=True).generate(np.tile(image, (4, 4, 1)))
    assert found
    for record in found:
        x, y, w, h = record["crop_box"]
        assert (w, h) != (110, 70)
        outside = record["segmentation"].copy()
        outside[y : y + h + 1, x : x + w + 1] = False
        assert not outside.any()
    both = generator(crop_n_layers=1).generate(image)
    assert any(record["crop_box"] == [0, 0, 110, 70] for record in both)


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (2, 70), (2, 3), (3, 70)])
def test_images_of_few_pixels_give_finite_records_once(size, layers):
    options = dict(crop_n_layers=layers, stability_score_thresh=0.0, output_mode="coco_rle", crop_nms_thresh=0.9)
    everything = generator(**options)
    for h, w in {size, size[::-1]}:
        image = np.random.default_rng(0).integers(0, 255, (h, w, 3), np.uint8)
        found = everything.generate(image)
        assert found
        seen = [(record["segmentation"]["counts"], *record["bbox"]) for record in found]
        assert len(set(seen)) == len(seen)
        for record in found:
            numbers = [record[key] for key in ("area", "predicted_iou", "stability_score")]
            assert np.isfinite(numbers + record["bbox"] + record["point_coords"][0]).all()
            assert record["area"] == coco.area(record["segmentation"])
            assert record["segmentation"]["size"] == [h, w]


def test_an_image_of_pillow_is_treated_as_its_file():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 110), np.uint8))
    image.info["exif"] = exif.tobytes()
    grey = np.rot90(np.asarray(image), -1)
    expected = generator(output_mode="coco_rle").generate(np.repeat(grey[..., None], 3, axis=2))
    assert generator(output_mode="coco_rle").generate(image) == expected
    assert expected[0]["segmentation"]["size"] == [110, 70]


def test_our_own_filters(records, image):
    areas = [record["area"] for record in records]
    low, high = np.quantile(areas, [0.3, 0.8])
    found = generator(min_mask_area=int(low), max_mask_area=int(high)).generate(image)
    assert 0 < len(found) < len(records)
    assert all(int(low) <= record["area"] <= high for record in found)
    assert all(record["area"] <= 0.3 * 7700 for record in generator(max_mask_cover=0.3).generate(image))
    apart = generator(mask_nms_thresh=0.3).generate(image)
    assert 1 < len(apart) < len(records)
    for one, other in itertools.combinations([record["segmentation"] for record in apart], 2):
        assert (one & other).sum() / (one | other).sum() <= 0.3


def test_small_regions_go(image):
    from scipy import ndimage

    found = generator(min_mask_region_area=30).generate(image)
    assert found
    for record in found:
        for area in (record["segmentation"], ~record["segmentation"]):
            labels, count = ndimage.label(area, np.ones((3, 3)))
            sizes = np.bincount(labels.ravel())[1:]
            assert count <= 1 or sizes.min() >= 30
        assert record["area"] == record["segmentation"].sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_sides": 3}, r"unknown options \['points_per_sides'\]"),
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "too few"),
        ({"output_mode": "png"}, "output_mode must be one of"),
        ({"skip_full_image": True}, "nothing to segment"),
        ({"points_per_side": 0}, "points_per_side must be positive"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        generator(**options)


def test_own_points(image):
    found = generator(points_per_side=None, point_grids=[np.array([[0.5, 0.25]])]).generate(image)
    assert {tuple(record["point_coords"][0]) for record in found} == {(55.0, 17.5)}


def test_an_image_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        generator().generate(np.zeros((5, 5)))
