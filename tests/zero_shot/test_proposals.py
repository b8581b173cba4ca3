"""Proposals of a tiny model: ranked, limited, made twice alike; and the command."""

import dataclasses
import json

import numpy as np
import pytest

from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.models.sam import Sam
from sam_jax.ops.boxes import nms
from sam_jax.ops.rle import decode_mask
from sam_jax.zero_shot.proposals import ProposalOptions, ProposalSegmenter
from tests.tiny import TINY
from tests.zero_shot.conftest import SIZE

# 25 points in batches of 9: the last one is not full.
OPTIONS = {"points_per_side": 5, "points_per_batch": 9}


def proposals(variables, image, **options):
    segmenter = ProposalSegmenter(Sam(TINY), variables, ProposalOptions(**OPTIONS | options))
    return segmenter.records(segmenter.find(image), SIZE)


@pytest.mark.long
@pytest.mark.parametrize(("thresh", "count"), [(1.0, 75), (0.9, None)])
def test_ranked_by_the_mean_of_both_scores(variables, image, thresh, count):
    """The same masks as everything mode without filters has, in another order."""
    records = proposals(variables, image, box_nms_thresh=thresh)
    every = SamAutomaticMaskGenerator(
        Sam(TINY), variables, **OPTIONS, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0
    )
    found = every.find(image)
    assert len(found) == 75
    score = (found.iou + found.stability) / 2
    chosen = nms(found.boxes, score, thresh)
    assert len(chosen) == (count or len(chosen)) >= 1
    np.testing.assert_allclose([record["score"] for record in records], score[chosen], atol=1e-5)
    for record, number in zip(records, chosen, strict=True):
        assert record["bbox"][:2] == found.boxes[number, :2].tolist()
        np.testing.assert_array_equal(decode_mask(record["segmentation"]), found.mask(number))
    few = proposals(variables, image, box_nms_thresh=thresh, most=4)
    assert [record["score"] for record in few] == [record["score"] for record in records[:4]]


def test_one_mask_a_point(variables, image):
    records = proposals(variables, image, single_output=True, box_nms_thresh=1.0)
    assert len(records) == 25
    assert len({tuple(record["point_coords"][0]) for record in records}) == 25
    three = {record["segmentation"]["counts"] for record in proposals(variables, image, box_nms_thresh=1.0)}
    assert not {record["segmentation"]["counts"] for record in records} <= three


def test_settings(variables):
    with pytest.raises(ValueError, match="most is 0"):
        ProposalOptions(most=0)
    with pytest.raises(ValueError, match="box_nms_thresh"):
        ProposalSegmenter(Sam(TINY), variables, ProposalOptions(box_nms_thresh=2.0))


def test_empty_masks_are_no_proposals(variables, image):
    """Nothing lies above a threshold that no logit reaches."""
    model = Sam(dataclasses.replace(TINY, mask_threshold=1e6))
    segmenter = ProposalSegmenter(model, variables, ProposalOptions(**OPTIONS))
    assert segmenter.records(segmenter.find(image), SIZE) == []


@pytest.fixture
def run(run_task):
    options = ["--points-per-side", "3", "--points-per-batch", "9", "--box-nms-thresh", "1"]
    return lambda *arguments: run_task("proposals", *arguments, *options)


def write_annotations(path, ids=(7, 8)):
    box = [10, 10, 50, 40]
    polygon = [[10, 10, 60, 10, 60, 50, 10, 50]]
    images = [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in ids]
    objects = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": box, "area": 2000, "segmentation": polygon, "iscrowd": 0}
        for n in ids
    ]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.long
def test_the_command(run, tmp_path):
    code, out, err = run("--most", 5)
    assert code == 0, err
    assert "2 images done with 10 proposals" in out
    results = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert [entry["image_id"] for entry in results] == [7] * 5 + [8] * 5
    assert results[0]["score"] >= results[4]["score"]
    code, out, _ = run("--most", 5)
    assert "already finished: 2" in out


@pytest.mark.oracle
def test_the_command_scores(run, tmp_path):
    code, out, err = run("--annotations", write_annotations(tmp_path / "coco.json", (7, 8)), "--most", 6)
    assert code == 0, err
    assert "AR@6" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert 0 <= report["scores"]["AR@6"] <= 1
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<figure") == 2
    code, _, err = run("--annotations", write_annotations(tmp_path / "other.json", (1, 2)))
    assert code == 2
    assert "has none of the images: it names '1.png', and there is '7.png'" in err


def test_annotations_that_are_none(run, tmp_path):
    (tmp_path / "none.json").write_text("{}")
    code, _, err = run("--annotations", tmp_path / "none.json")
    assert code == 2
    assert "none.json" in err or "faster-coco-eval" in err
