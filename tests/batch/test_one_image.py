"""From prompts to files, with a predictor that is told what to find."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_jax.batch.one_image import ImagePrompts, draw_overlay, prompt_fields, segment_image, write_results
from sam_jax.inference.predictor import PredictedMasks
from sam_jax.ops.rle import decode_mask

H, W = 30, 50
POINT = np.array([[10.0, 5.0]])
POINTS = np.array([[10.0, 5.0], [40.0, 20.0]])
BOX = np.array([[5.0, 4.0, 30.0, 20.0]])
BOXES = np.array([[5.0, 4.0, 30.0, 20.0], [20.0, 10.0, 45.0, 28.0]])
LOGITS = np.zeros((1, 20, 20), np.float32)


class Told:
    """Mask m of object n is the top 10 * (n + 1) + m pixels of column n. Remembers what it was asked."""

    ious = np.array([0.2, 0.9, 0.9], np.float32)

    def set_image(self, image):
        self.image = image

    def predict(self, *prompts, multimask_output):
        given = (None if part is None else part[None] for part in prompts)
        return PredictedMasks(*(part[0] for part in self.predict_many(*given, multimask_output=multimask_output)))

    def predict_many(
        self, point_coords=None, point_labels=None, boxes=None, mask_inputs=None, *, multimask_output=True
    ):
        self.asked = (point_coords, point_labels, boxes, mask_inputs, multimask_output)
        n, m = 1 if boxes is None else len(boxes), 3 if multimask_output else 1
        masks = np.zeros((n, m, H, W), bool)
        for i, j in np.ndindex(n, m):
            masks[i, j, : (i + 1) * 10 + j, i] = True
        low_res = np.arange(n * m, dtype=np.float32).reshape(n, m, 1, 1) + np.zeros((20, 20), np.float32)
        return PredictedMasks(masks, np.tile(self.ious[:m], (n, 1)), low_res)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


def read(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize(
    ("prompts", "empty", "ambiguous"),
    [
        (ImagePrompts(), True, False),
        (ImagePrompts(POINT, np.array([1])), False, True),
        (ImagePrompts(POINTS, np.array([1, 0])), False, False),
        (ImagePrompts(POINT, np.array([0]), boxes=BOX), False, False),
        (ImagePrompts(POINT, np.array([1]), mask_input=LOGITS), False, False),
        (ImagePrompts(boxes=BOXES), False, False),
        (ImagePrompts(mask_input=LOGITS), False, False),
    ],
)
def test_what_is_empty_and_what_is_ambiguous(prompts, empty, ambiguous):
    assert (prompts.is_empty, prompts.is_ambiguous) == (empty, ambiguous)


@pytest.mark.parametrize("other", [{"points": POINT, "labels": np.array([1])}, {"mask_input": LOGITS}])
def test_several_boxes_take_no_points_or_mask(other):
    with pytest.raises(ValueError, match=r"2 boxes are 2 objects.*give one box with them, or boxes alone"):
        ImagePrompts(boxes=BOXES, **other)


def test_an_ambiguous_point_gives_three_masks_best_first(image):
    predictor = Told()
    out = segment_image(predictor, image, ImagePrompts(POINT, np.array([1])))
    assert predictor.image is image
    assert predictor.asked[0].shape == (1, 1, 2)
    assert predictor.asked[1].shape == (1, 1)
    assert predictor.asked[2:] == (None, None, True)
    assert out.masks.shape == (3, H, W)
    # All three parts are in the same order; equals keep theirs.
    np.testing.assert_array_equal(out.iou_predictions, np.float32([0.9, 0.9, 0.2]))
    assert out.masks.sum(axis=(1, 2)).tolist() == [11, 12, 10]
    assert out.low_res_masks[:, 0, 0].tolist() == [1, 2, 0]


def test_boxes_are_one_mask_each_in_their_order(image):
    predictor = Told()
    out = segment_image(predictor, image, ImagePrompts(boxes=BOXES))
    assert predictor.asked[2] is BOXES
    assert predictor.asked[4] is False
    assert out.masks.sum(axis=(1, 2)).tolist() == [10, 20]
    assert out.iou_predictions.shape == (2,)
    assert out.low_res_masks.shape == (2, 20, 20)


def test_points_box_and_mask_are_one_object(image):
    predictor = Told()
    out = segment_image(predictor, image, ImagePrompts(POINTS, np.array([1, 0]), BOX, LOGITS))
    shapes = [part.shape for part in predictor.asked[:4]]
    assert shapes == [(1, 2, 2), (1, 2), (1, 4), (1, 1, 20, 20)]
    assert predictor.asked[4] is False
    assert len(out.masks) == 1


def test_prompt_fields():
    assert prompt_fields(ImagePrompts(boxes=BOXES), 1) == {"box": [20.0, 10.0, 45.0, 28.0]}
    points = {"point_coords": [[10.0, 5.0], [40.0, 20.0]], "point_labels": [1, 0]}
    assert prompt_fields(ImagePrompts(POINTS, np.array([1, 0])), 0) == points
    assert prompt_fields(ImagePrompts(POINTS, np.array([1, 0]), BOX), 0) == points | {"box": BOX[0].tolist()}
    assert prompt_fields(ImagePrompts(mask_input=LOGITS), 0) == {}


def test_write_results(tmp_path, image):
    prompts = ImagePrompts(boxes=BOXES)
    predicted = segment_image(Told(), image, prompts)
    overlay = write_results(tmp_path / "new" / "out", "some/where/cat.v2.png", image, prompts, predicted)
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {
        "cat.v2.masks.json",
        "cat.v2.mask_0.png",
        "cat.v2.mask_1.png",
        "cat.v2.overlay.jpg",
    }
    assert read(overlay).shape == (H, W, 3)
    content = json.loads((overlay.parent / "cat.v2.masks.json").read_text())
    assert content["image"] == {"file_name": "cat.v2.png", "width": W, "height": H}
    for index, record in enumerate(content["annotations"]):
        mask = read(overlay.parent / f"cat.v2.mask_{index}.png")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, predicted.masks[index] * 255)
        np.testing.assert_array_equal(decode_mask(record["segmentation"]), predicted.masks[index])
        assert record["id"] == index
        assert record["box"] == BOXES[index].tolist()
        assert record["bbox"] == [index, 0, 0, 10 * (index + 1) - 1]
        assert record["area"] == 10 * (index + 1)


def test_fewer_masks_than_last_time_leave_no_stale_file(tmp_path, image):
    """A directory holds the results of one run: what the JSON lists is what lies there."""
    for prompts in (ImagePrompts(POINT, np.array([1])), ImagePrompts(boxes=BOX)):
        write_results(tmp_path, "cat.png", image, prompts, segment_image(Told(), image, prompts))
    assert {path.name for path in tmp_path.glob("*.png")} == {"cat.mask_0.png"}


def test_a_failed_write_is_never_taken_for_results(tmp_path, image, monkeypatch):
    """The JSON comes last, and an older one does not outlive the masks that it lists."""
    prompts = ImagePrompts(boxes=BOXES)
    predicted = segment_image(Told(), image, prompts)
    write_results(tmp_path, "cat.png", image, prompts, predicted)
    monkeypatch.setattr("sam_jax.batch.one_image.draw_overlay", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_results(tmp_path, "cat.png", image, prompts, predicted)
    assert not (tmp_path / "cat.masks.json").exists()


def test_the_overlay_has_a_panel_per_mask_where_the_prompt_was_ambiguous(image):
    ambiguous, clear = ImagePrompts(POINT, np.array([1])), ImagePrompts(boxes=BOX)
    assert draw_overlay(image, ambiguous, segment_image(Told(), image, ambiguous)).shape == (H, 3 * W, 3)
    assert draw_overlay(image, clear, segment_image(Told(), image, clear)).shape == (H, W, 3)
