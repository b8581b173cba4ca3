"""Both segmenters on the tiny model: the records are those of the classes behind them."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from sam_jax.batch.prompt_files import ImageObjects, ObjectPrompt
from sam_jax.batch.segmenters import EverythingSegmenter, PromptedSegmenter
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask, encode_mask
from tests.tiny import TINY

H, W = 60, 96
ALL = dict(points_per_side=2, points_per_batch=4, pred_iou_thresh=-100.0, stability_score_thresh=0.0)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return Sam(TINY)


def test_everything_is_what_the_generator_finds(model, variables, image):
    segmenter = EverythingSegmenter(model, variables, **ALL)
    records = segmenter.records(segmenter.find(image), (H, W))
    expected = SamAutomaticMaskGenerator(model, variables, **ALL, output_mode="coco_rle").generate(image)
    assert records == expected
    assert records
    json.dumps(records)
    assert segmenter.records(segmenter.find(Image.fromarray(image)), (H, W)) == records
    other = segmenter.on_device(jax.local_devices()[3])
    found = other.find(image)
    assert found.pixels[0][0]["bits"].devices() == {jax.local_devices()[3]}
    assert other.records(found, (H, W)) == records


def test_tiles(model, variables, image):
    whole = EverythingSegmenter(model, variables, **ALL)
    tiled = EverythingSegmenter(model, variables, tile=96, **ALL)
    assert tiled.records(tiled.find(image), (H, W)) == whole.records(whole.find(image), (H, W))
    tiled = EverythingSegmenter(model, variables, tile=64, tile_overlap=16, **ALL).on_device(jax.local_devices()[1])
    records = tiled.records(tiled.find(image), (H, W))
    assert records
    for record in records:
        mask = decode_mask(record["segmentation"])
        assert mask.shape == (H, W)
        assert record["area"] == mask.sum()
    json.dumps(records)


def same(record, mask, iou):
    assert record["segmentation"] == encode_mask(mask)
    assert record["predicted_iou"] == pytest.approx(iou, abs=1e-5)
    assert record["area"] == mask.sum()


@pytest.mark.long
def test_prompts_are_what_the_predictor_says(model, variables, image):
    prompts = (
        ObjectPrompt(box=(10.0, 5.0, 50.0, 30.0), extra={"category_id": 3, "score": 0.25}),
        ObjectPrompt(((50.0, 37.0),), (1,)),
        ObjectPrompt(((50.0, 37.0), (10.0, 20.0)), (1, 0), extra={"category_id": 4}),
        ObjectPrompt(((80.0, 50.0), (20.0, 10.0), (5.0, 5.0)), (1, 1, 0)),
        ObjectPrompt(((50.0, 37.0),), (0,), box=(10.0, 5.0, 80.0, 50.0)),
        ObjectPrompt(box=(40.5, 20.0, 90.0, 59.0)),
    )
    segmenter = PromptedSegmenter(model, variables).on_device(jax.local_devices()[1])
    records = segmenter.records(segmenter.find(image, ImageObjects(prompts)), (H, W))
    assert len(records) == len(prompts)
    json.dumps(records)
    predictor = SamPredictor(model, variables)
    predictor.set_image(image)
    for record, prompt in zip(records, prompts, strict=True):
        single = len(prompt.points) == 1 and prompt.box is None
        predicted = predictor.predict(
            np.array(prompt.points) if prompt.points else None,
            np.array(prompt.labels) if prompt.points else None,
            None if prompt.box is None else np.array(prompt.box),
            multimask_output=single,
        )
        best = predicted.iou_predictions.argmax()
        same(record, predicted.masks[best], predicted.iou_predictions[best])
        assert record.get("box") == (None if prompt.box is None else list(prompt.box))
        assert record.get("point_labels") == (list(prompt.labels) if prompt.points else None)
        assert {key: record[key] for key in ("category_id", "score") if key in record} == prompt.extra


def test_more_objects_than_go_at_once(model, variables, image, monkeypatch):
    prompts = tuple(ObjectPrompt(box=(2.0 * i, i, 40.0 + i, 50.0)) for i in range(5))
    segmenter = PromptedSegmenter(model, variables)
    together = segmenter.records(segmenter.find(image, ImageObjects(prompts)), (H, W))
    monkeypatch.setattr("sam_jax.batch.segmenters.OBJECTS_AT_ONCE", 2)
    apart = segmenter.records(segmenter.find(image, ImageObjects(prompts)), (H, W))
    assert [record["box"] for record in apart] == [record["box"] for record in together]
    assert [record["segmentation"] for record in apart] == [record["segmentation"] for record in together]


def test_no_prompts_cost_nothing(model):
    assert PromptedSegmenter(model, None).find(np.zeros((5, 5, 3), np.uint8), ImageObjects()) == []


def test_prompts_outside_the_image(model, variables, image):
    segmenter = PromptedSegmenter(model, variables)
    with pytest.raises(ValueError, match="box 100,5,120,30 lies outside the image"):
        segmenter.find(image, ImageObjects((ObjectPrompt(box=(100.0, 5.0, 120.0, 30.0)),)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 0}, "tile must be a number of pixels, not 0"),
        (
            {"tile": 40, "tile_overlap": 20},
            r"tile_overlap must be at least 1 and less than half of tile \(40\), not 20",
        ),
        ({"tile": 40, "tile_overlap": 0}, "not 0"),
        ({"tile_overlap": 20}, "tile_overlap has no effect without tile"),
        ({"points": 3}, r"unknown options \['points'\]"),
    ],
)
def test_mistakes(model, options, words):
    with pytest.raises(ValueError, match=words):
        EverythingSegmenter(model, {}, **options)
