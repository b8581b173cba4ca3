"""Masks for the boxes of a detector: the refinement pass, and the command."""

import json

import numpy as np
import pytest

from sam_jax.batch.prompt_files import ImageObjects, ObjectPrompt
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask
from sam_jax.zero_shot.instances import InstanceSegmenter
from tests.tiny import TINY
from tests.zero_shot.conftest import SIZE
from tests.zero_shot.test_proposals import write_annotations

BOXES = [(10.0, 10.0, 60.0, 50.0), (5.5, 20.0, 95.0, 70.0), (0.0, 0.0, 30.0, 30.0)]


def test_the_best_mask_goes_back_with_its_box(variables, image):
    """As the predictor does it in two calls; boxes in groups of two."""
    segmenter = InstanceSegmenter(Sam(TINY), variables, boxes_per_batch=2)
    prompts = [ObjectPrompt(box=box, extra={"category_id": n, "score": n / 10}) for n, box in enumerate(BOXES)]
    records = segmenter.records(segmenter.find(image, ImageObjects(tuple(prompts))), SIZE)
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(image)
    for number, (record, box) in enumerate(zip(records, BOXES, strict=True)):
        first = predictor.predict(box=np.array(box))
        best = first.iou_predictions.argmax()
        again = predictor.predict(
            box=np.array(box), mask_input=first.low_res_masks[best : best + 1], multimask_output=False
        )
        assert record["predicted_iou"] == pytest.approx(float(again.iou_predictions[0]), abs=1e-4)
        assert (decode_mask(record["segmentation"]) == again.masks[0]).mean() > 0.999
        assert (record["category_id"], record["score"]) == (number, number / 10)
    assert segmenter.find(image, None) == []
    with pytest.raises(ValueError, match="no box"):
        segmenter.find(image, ImageObjects((ObjectPrompt(points=((1.0, 1.0),), labels=(1,)),)))


@pytest.fixture
def run(run_task):
    options = ["--boxes-per-batch", "4"]
    return lambda *arguments: run_task("instances", *arguments, *options)


def write_boxes(path, ids=(7, 8)):
    found = [{"image_id": n, "category_id": 1, "bbox": [10, 10, 50, 40], "score": 0.75} for n in ids]
    path.write_text(json.dumps(found))
    return path


@pytest.mark.slow
def test_the_command(run, tmp_path):
    code, out, err = run("--boxes", write_boxes(tmp_path / "boxes.json"))
    assert code == 0, err
    assert "2 images done with 2 masks" in out
    results = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert [(entry["image_id"], entry["score"], entry["category_id"]) for entry in results] == [
        (7, 0.75, 1),
        (8, 0.75, 1),
    ]
    assert all(entry["segmentation"]["size"] == list(SIZE) for entry in results)
    code, out, _ = run("--boxes", tmp_path / "boxes.json")
    assert "already finished: 2" in out


@pytest.mark.oracle
def test_the_command_scores(run, tmp_path):
    boxes, truth = write_boxes(tmp_path / "boxes.json"), write_annotations(tmp_path / "coco.json")
    code, out, err = run("--boxes", boxes, "--annotations", truth)
    assert code == 0, err
    assert "boundary AP" in out
    assert 0 <= json.loads((tmp_path / "out/report.json").read_text())["scores"]["AP"] <= 1
    code, _, err = run("--boxes", write_boxes(tmp_path / "more.json", (7, 9)), "--annotations", truth)
    assert (code, "no image has the id 9" in err) == (2, True)


def test_mistakes(run, tmp_path):
    code, _, err = run()
    assert (code, "--boxes FILE is missing" in err) == (2, True)
    code, _, err = run("--boxes", write_boxes(tmp_path / "boxes.json", (1, 2)))
    assert (code, "has prompts for none of the images" in err) == (2, True)
